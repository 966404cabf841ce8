"""What the classes are called that published weights tell apart, in the order of the logits.

imagenet.txt: the 1,000 synsets of ILSVRC 2012, sorted, which is the order of every published network, each with the
first word that WordNet 3.0 has for it; of the four words that stand for two synsets, one says which it is.
"""

import functools
import re
from pathlib import Path

from cnnjax.weights.records import Record

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def names(known: Record) -> tuple[str, ...]:
    """The classes of the weights of a record."""
    return CIFAR10 if known.architecture.endswith("cifar10") else imagenet()


@functools.cache
def imagenet() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes."""
    lines = Path(__file__).with_name("imagenet.txt").read_text(encoding="utf-8").splitlines()
    return tuple(re.sub(r"^n\d{8} ", "", line) for line in lines)
