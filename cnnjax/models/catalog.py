"""Every network by name: what the command line and the tests read. Experiments import the constructors themselves.

Names are those of the published facts ("resnet50_optB_v1"), plus short ones for the paper's version ("resnet50").
"""

from collections.abc import Callable
from typing import NamedTuple

from cnnjax.errors import unknown
from cnnjax.models.chain import Chain


class Entry(NamedTuple):
    """A network and the images it was made for, (height, width, channels)."""

    make: Callable[[], Chain]
    input: tuple[int, int, int]


CATALOG: dict[str, Entry] = {
    # --- perceptrons, LeNet, the lectures' small networks ---
    # --- AlexNet, ZFNet ---
    # --- NiN, All-CNN, locally connected ---
    # --- VGG ---
    # --- GoogLeNet ---
    # --- Inception-BN, v2, v3 ---
    # --- Inception-v4, Inception-ResNet ---
    # --- ResNet, plain ---
    # --- Highway ---
    # --- DenseNet ---
    # --- image to image ---
}

# Short names for the paper's version.
SHORT: dict[str, str] = {}


def entry(name: str) -> Entry:
    """The catalogue's row for a name, full or short. Raises `CnnjaxError` naming the legal ones."""
    full = SHORT.get(name, name)
    if full not in CATALOG:
        raise unknown("network", name, [*SHORT, *CATALOG])
    return CATALOG[full]
