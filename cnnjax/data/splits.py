"""What a data set is once it is read: images and labels, in splits."""

import concurrent.futures
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from cnnjax.data.images import Transform, conform, decode, to_channels
from cnnjax.errors import CnnjaxError

IN_MEMORY = 1 << 30
"""Images of at most this many bytes, decoded and resized, are kept in memory."""


class Images(Protocol):
    """A uint8 array [N, H, W, C], or what acts like one and decodes the images that it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, indices: Any, /) -> np.ndarray: ...


class Split(NamedTuple):
    """One part of a data set."""

    image: Images
    label: np.ndarray
    """int32 [N]"""


class Dataset(NamedTuple):
    """What experiments train on and score."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    """Names of the classes: label i is `classes[i]`."""


class Stored(NamedTuple):
    """What a reader found, before it is divided, checked and resized."""

    splits: dict[str, Split]
    classes: tuple[str, ...] | None = None
    """None: not named; as many as the largest label says."""
    group: np.ndarray | None = None
    """int [N], when there is one split: images of one group are alike, and are never divided."""


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedImages:
    """Images that are decoded when they are asked for: `images[indices]` is uint8 [n, H, W, C]."""

    items: Sequence[Any]
    """Of every image its path, its encoded bytes, or uint8 [h, w, C]."""
    index: np.ndarray
    """Which items these images are, in their order."""
    name: str
    """Says in messages where the images come from."""
    channels: int = 3
    transform: Transform = dataclasses.field(default_factory=Transform)
    """Its geometry is applied; the values stay as they are."""
    size: tuple[int, int] | None = None
    """Height and width of every image; None: not known yet."""

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *(self.size or self.one(0).shape[:2]), self.channels)

    def one(self, position: int) -> np.ndarray:
        """The image at one position: uint8 [H, W, C]."""
        number = int(self.index[position])
        item = self.items[number]
        name = f"{self.name}, example {number}" if isinstance(item, bytes | np.ndarray) else str(item)
        if isinstance(item, np.ndarray):
            pixels = to_channels(item, self.channels)
        else:
            pixels = decode(item, channels=self.channels, name=name)
        try:
            pixels = conform(self.transform, pixels)
        except CnnjaxError as error:
            raise CnnjaxError(f"{name}: {error}") from error
        height, width = self.size or pixels.shape[:2]
        if pixels.shape[:2] != (height, width):
            raise CnnjaxError(
                f"the images of {self.name} have different sizes: {width}×{height} pixels,\n"
                f"but {pixels.shape[1]}×{pixels.shape[0]} in {name}\ngive the size that all of them shall have"
            )
        return pixels

    def __getitem__(self, positions: Any) -> np.ndarray:
        return np.stack([self.one(position) for position in np.asarray(positions)])

    def decoded(self) -> np.ndarray:
        """All images at once, by as many threads as there are cores."""
        pixels = np.empty(self.shape, np.uint8)
        with concurrent.futures.ThreadPoolExecutor() as threads:
            for position, image in enumerate(threads.map(self.one, range(len(self)))):
                pixels[position] = image
        return pixels


def select(split: Split, indices: np.ndarray) -> Split:
    """The examples at `indices`, in that order."""
    image = split.image
    if isinstance(image, EncodedImages):
        return Split(dataclasses.replace(image, index=image.index[indices]), split.label[indices])
    return Split(image[indices], split.label[indices])


def prepare(images: Images, transform: Transform, channels: int | None) -> Images:
    """Images of one size (`transform.size`; None: as stored) and one number of channels, in memory if they are few."""
    if isinstance(images, EncodedImages):
        images = dataclasses.replace(images, transform=transform, channels=channels or images.channels)
        images = dataclasses.replace(images, size=images.shape[1:3])
        return images.decoded() if int(np.prod(images.shape, dtype=np.int64)) <= IN_MEMORY else images
    pixels = to_channels(np.asarray(images), channels or images.shape[-1])
    return pixels if transform.size is None else np.stack([conform(transform, image) for image in pixels])


def permutation(n: int, *seed: int) -> np.ndarray:
    """The numbers below n in an order that is a function of the seed alone.

    Sorted raw Philox words: NumPy promises that these never change, which it does not of `Generator.permutation`.
    """
    return np.argsort(np.random.Philox(np.random.SeedSequence(seed)).random_raw(n), kind="stable")


def divide(
    label: np.ndarray, group: np.ndarray | None = None, *, test: float = 0.2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Divide a set at random into train and test: two sorted arrays of indices.

    Stratified: of every class, as near as can be to the part `test` of its images goes to the test split. A group goes
    whole, and counts for the class of its first image.
    """
    group = np.arange(len(label)) if group is None else group
    _, first, group, count = np.unique(group, return_index=True, return_inverse=True, return_counts=True)
    to_test = np.zeros(len(first), bool)
    for number, name in enumerate(np.unique(label[first])):
        members = np.flatnonzero(label[first] == name)
        members = members[permutation(len(members), seed, number)]
        filled = np.cumsum(count[members])
        taken = int(np.argmin(np.abs(np.concatenate([[0], filled]) - test * filled[-1])))
        to_test[members[:taken]] = True
    in_test = to_test[group]
    return np.flatnonzero(~in_test), np.flatnonzero(in_test)


def check_labels(label: np.ndarray, classes: int, name: str) -> np.ndarray:
    """The labels as int32 [N]. Raises CnnjaxError where they are not integers from 0 to classes - 1."""
    label = np.asarray(label)
    if label.ndim != 1 or label.dtype.kind not in "iu":
        raise CnnjaxError(f"labels of {name} must be integers, one per image, got {label.dtype} of shape {label.shape}")
    outside, count = np.unique(label[(label < 0) | (label >= classes)], return_counts=True)
    if len(outside):
        named = ", ".join(f"{value} ({n} images)" for value, n in list(zip(outside, count, strict=True))[:5])
        raise CnnjaxError(f"labels of {name} are outside its {classes} classes: {named}\nlegal: 0 to {classes - 1}")
    return label.astype(np.int32)


def standardise(split: Split, *, at_most: int = 10_000) -> Transform:
    """The transform that gives every channel of a split mean 0 and standard deviation 1.

    They are measured on at most so many images, evenly spread.
    """
    chosen = np.unique(np.linspace(0, len(split.image) - 1, min(at_most, len(split.image))).astype(int))
    total, squares, pixels = np.zeros(split.image.shape[-1]), np.zeros(split.image.shape[-1]), 0
    for few in np.array_split(chosen, -(-len(chosen) // 500)):
        values = split.image[few].astype(np.uint64)
        total, squares = total + values.sum((0, 1, 2)), squares + (values**2).sum((0, 1, 2))
        pixels += values[..., 0].size
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 1.0))  # a constant channel stays finite
    return Transform(mean=tuple((mean / 255).tolist()), std=tuple((std / 255).tolist()))
