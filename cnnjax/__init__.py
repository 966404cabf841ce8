"""cnnjax: the classic convolutional networks in JAX, exact to their papers.

Images are NHWC throughout. A network is an ordered tuple of named layers (`cnnjax.models.chain`), and the names are the
paper's.
"""

__version__ = "0.1.0"
