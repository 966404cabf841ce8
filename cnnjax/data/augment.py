"""Augmentation: pure functions `(key, batch) -> batch`, compiled into the training step. Here: composition and crops.

A batch is {"image": uint8 or float32 [B, H, W, C], "label": int [B] or float [B, classes]}. An augmentation is a frozen
record that hashes and compares, and every image of a batch has draws of its own, which `key` alone decides.

Values stay in the units of pixels, 0 to 255. Steps that only move pixels or look them up keep their dtype; those that
compute new values give float32 and round nothing. `normalise` takes both. The usual ones are

    Compose((mean_image(train), RandomCrop((32, 32), pad=4), RandomFlip()))              # CIFAR: He et al. 2015
    Compose((RandomCrop((227, 227)), RandomFlip(), lighting(train)))                      # AlexNet
    Compose((ScaleJitter((224, 224)), RandomFlip(), lighting(train)))                     # VGG
    Compose((RandomResizedCrop((224, 224)), RandomFlip(), Photometric(), Mixup(1000)))    # Inception, and today
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cnnjax.errors import CnnjaxError

Batch = Mapping[str, Any]  # of arrays
Key = Any  # of jax.random; None for steps that draw nothing


class Fixed(abc.ABC):
    """A step that draws nothing. What it does to the images of training, it must do to those of evaluation."""

    @abc.abstractmethod
    def all(self, images: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', C]."""

    def __call__(self, key: Key, batch: Batch) -> dict[str, Any]:
        return {**batch, "image": self.all(batch["image"])}


class PerImage(abc.ABC):
    """A step that treats every image by itself, each with a key of its own."""

    @abc.abstractmethod
    def one(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """[H, W, C] -> [H', W', C]."""

    def __call__(self, key: jax.Array, batch: Batch) -> dict[str, Any]:
        images = batch["image"]
        return {**batch, "image": jax.vmap(self.one)(jax.random.split(key, images.shape[0]), images)}


@dataclasses.dataclass(frozen=True)
class Compose:
    """The steps one after another, each with a key of its own."""

    steps: tuple[Callable[[Any, Batch], Batch], ...]

    def __post_init__(self):
        fine = isinstance(self.steps, tuple) and all(map(callable, self.steps))
        require(self, fine, "steps must be a tuple of augmentations")

    def __call__(self, key: Key, batch: Batch) -> Batch:
        for number, step in enumerate(self.steps):
            batch = step(None if key is None else jax.random.fold_in(key, number), batch)
        return batch


def fixed(augment: Any) -> Compose:
    """What evaluation must do as well: the steps of `augment` that draw nothing. Its key may be None."""
    if isinstance(augment, Compose):
        return Compose(tuple(step for part in augment.steps for step in fixed(part).steps))
    return Compose((augment,) if isinstance(augment, Fixed) else ())


def require(step: Any, fine: bool, rule: str) -> None:
    """Raises `CnnjaxError` for an augmentation that breaks a rule."""
    if not fine:
        raise CnnjaxError(f"{step!r}: {rule}")


def is_size(size: Any) -> bool:
    """Whether it is (height, width)."""
    return isinstance(size, tuple) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)


def uniform(key: jax.Array, low: Any, high: Any, shape: tuple[int, ...] = ()) -> jax.Array:
    """float32 in [low, high), also where 64 bits are the default."""
    return jax.random.uniform(key, shape, jnp.float32, low, high)


# --- crops


@dataclasses.dataclass(frozen=True)
class RandomCrop(PerImage):
    """A random part of `size` = (height, width) of each image, after `pad` pixels of 0 were put on every side.

    Krizhevsky et al. 2012, section 4.1, with pad 0; He et al. 2015, section 4.2, with pad 4 for CIFAR, where the mean
    image was subtracted before, so that 0 is the mean. Keeps the dtype. Raises `CnnjaxError` for images too small.
    """

    size: tuple[int, int]
    pad: int = 0

    def __post_init__(self):
        require(self, is_size(self.size), "size must be two positive integers")
        require(self, isinstance(self.pad, int) and self.pad >= 0, "pad must be an integer, 0 or more")

    def one(self, key: jax.Array, image: jax.Array) -> jax.Array:
        padded = jnp.pad(image, ((self.pad, self.pad), (self.pad, self.pad), (0, 0)))
        room = [have - want for have, want in zip(padded.shape[:2], self.size, strict=True)]
        if min(room) < 0:
            tall, wide, _ = padded.shape
            raise CnnjaxError(
                f"images of {tall}×{wide} pixels (with {self.pad} around them) have no crops of "
                f"{self.size[0]}×{self.size[1]}\ngive larger images"
            )
        start = jax.random.randint(key, (2,), 0, jnp.array(room, jnp.int32) + 1, jnp.int32)
        return jax.lax.dynamic_slice(padded, (start[0], start[1], jnp.int32(0)), (*self.size, image.shape[-1]))


@dataclasses.dataclass(frozen=True)
class RandomFlip:
    """Mirrors half of the images left to right. Krizhevsky et al. 2012, section 4.1. Keeps the dtype."""

    def __call__(self, key: jax.Array, batch: Batch) -> dict[str, Any]:
        images = batch["image"]
        mirrored = jax.random.bernoulli(key, jnp.float32(0.5), (images.shape[0], 1, 1, 1))
        return {**batch, "image": jnp.where(mirrored, images[:, :, ::-1], images)}


class Box(NamedTuple):
    """A part of an image, in pixels that need not be whole."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


def resized_crop(image: jax.Array, box: Box, size: tuple[int, int]) -> jax.Array:
    """A part of an image, resized to `size` in one bilinear, antialiased sampling: [H, W, C] -> float32 [*size, C]."""
    extent, corner = jnp.stack([box.height, box.width]), jnp.stack([box.top, box.left])
    scale = jnp.array(size, jnp.float32) / extent
    shape = (*size, image.shape[-1])
    return jax.image.scale_and_translate(image.astype(jnp.float32), shape, (0, 1), scale, -corner * scale, "linear")


@dataclasses.dataclass(frozen=True)
class ScaleJitter(PerImage):
    """Rescales each image so that its shorter side is S from [smallest, largest], and crops `size` at random: float32.

    Simonyan & Zisserman 2014, section 3.1, "training image size". S and the place of the crop are drawn from the
    reals, and both are done by one sampling. Images are best stored with a shorter side of `largest`.
    """

    size: tuple[int, int]
    smallest: int = 256
    largest: int = 512

    def __post_init__(self):
        require(self, is_size(self.size), "size must be two positive integers")
        ordered = max(self.size) <= self.smallest <= self.largest < math.inf
        require(self, ordered, "size <= smallest <= largest must hold")

    def box(self, key: jax.Array, height: int, width: int) -> Box:
        """What an image of height×width shows."""
        to_scale, to_top, to_left = jax.random.split(key, 3)
        scale = uniform(to_scale, self.smallest, self.largest) / min(height, width)
        tall, wide = self.size[0] / scale, self.size[1] / scale
        return Box(uniform(to_top, 0, height - tall), uniform(to_left, 0, width - wide), tall, wide)

    def one(self, key: jax.Array, image: jax.Array) -> jax.Array:
        return resized_crop(image, self.box(key, *image.shape[:2]), self.size)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(PerImage):
    """A random part of each image, of random area and aspect ratio, resized to `size`: float32.

    Szegedy et al. 2014 (GoogLeNet), section 6: the area is "distributed evenly" between 8 % and 100 % of the image's,
    width / height is "chosen randomly" between 3/4 and 4/3, here evenly in its logarithm, so that upright and flat are
    alike. The ratio is drawn from those with which the area fits into the image; others draw both again where it does
    not fit, and so see fewer large parts. Areas for which no ratio fits become the largest with one.
    """

    size: tuple[int, int]
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self):
        require(self, is_size(self.size), "size must be two positive integers")
        require(self, 0 < self.area[0] <= self.area[1] <= 1, "area must be a range in (0, 1]")
        require(self, 0 < self.aspect[0] <= self.aspect[1] < math.inf, "aspect must be a range of positive ratios")

    def box(self, key: jax.Array, height: int, width: int) -> Box:
        """What an image of height×width shows."""
        to_area, to_aspect, to_top, to_left = jax.random.split(key, 4)
        flattest = min(max(width / height, self.aspect[0]), self.aspect[1])  # the legal ratio next to the image's own
        most = min(flattest * height / width, width / height / flattest)
        least, most = (min(share, most) for share in self.area)
        area = uniform(to_area, least, most) * height * width
        low, high = jnp.maximum(self.aspect[0], area / height**2), jnp.minimum(self.aspect[1], width**2 / area)
        aspect = jnp.exp(uniform(to_aspect, jnp.log(low), jnp.log(high)))
        tall, wide = jnp.minimum(jnp.sqrt(area / aspect), height), jnp.minimum(jnp.sqrt(area * aspect), width)
        return Box(uniform(to_top, 0, height - tall), uniform(to_left, 0, width - wide), tall, wide)

    def one(self, key: jax.Array, image: jax.Array) -> jax.Array:
        return resized_crop(image, self.box(key, *image.shape[:2]), self.size)
