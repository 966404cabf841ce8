"""A convolutional autoencoder: strided convolutions down to a code, transposed ones back to the image.

The idea is that of J. Masci, U. Meier, D. Cireşan, J. Schmidhuber, "Stacked convolutional auto-encoders for
hierarchical feature extraction", ICANN 2011.

Departures
- Strides stand for its max-pooling, decoder and encoder do not share weights, and all layers are trained at once: no
  table of a paper is followed.
"""

from cnnjax.models.chain import Chain, rows
from cnnjax.models.layers import Conv, ConvTranspose


def autoencoder(channels: int = 1, *, widths: tuple[int, ...] = (32, 64), code: int = 8) -> Chain:
    """Images [height, width, channels] to images of the same size; each of `widths` halves the map.

    Sizes are multiples of 2^len(widths): 28×28 gives a code of 7×7×`code`. The output is linear, in the input's units.
    Layers: conv1, conv2, …, code, up1, up2, …, out; `surgery.until(net, "code")` is the encoder.
    """
    down = {f"conv{i}": Conv(width, 3, stride=2, pad=1) for i, width in enumerate(widths, start=1)}
    up = {
        f"up{i}": ConvTranspose(width, 3, stride=2, pad=1, extra=1) for i, width in enumerate(reversed(widths), start=1)
    }
    return Chain(rows(**down, code=Conv(code, 3, pad=1), **up, out=Conv(channels, 3, pad=1, act=None)))
