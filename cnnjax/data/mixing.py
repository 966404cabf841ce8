"""Augmentation that mixes the examples of a batch, or cuts a part out of them, as `cnnjax.data.augment` describes it.

Labels become soft: float32 [B, classes], of sum 1. The partner of an example is the one before it in the batch, which
is in random order already.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from cnnjax.data.augment import Batch, require
from cnnjax.errors import CnnjaxError


def soft(labels: jax.Array, classes: int) -> jax.Array:
    """int [B] -> one-hot float32 [B, classes]; what is soft already stays as it is."""
    if labels.ndim == 1:
        return jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    if labels.ndim != 2 or labels.shape[1] != classes:
        raise CnnjaxError(f"labels of shape {labels.shape} are not soft labels of {classes} classes")
    return labels.astype(jnp.float32)


def squares(key: jax.Array, images: jax.Array, heights: jax.Array, widths: jax.Array) -> jax.Array:
    """Which pixels lie in a rectangle around a random pixel of each image: bool [B, H, W, 1].

    `heights`, `widths`: int [B]. What would lie outside the image is left out.
    """
    batch, height, width, _ = images.shape
    to_row, to_column = jax.random.split(key)

    def within(key: jax.Array, extent: jax.Array, side: int) -> jax.Array:
        start = jax.random.randint(key, (batch, 1), 0, side, jnp.int32) - extent[:, None] // 2
        at = jnp.arange(side, dtype=jnp.int32)[None]
        return (start <= at) & (at < start + extent[:, None])

    rows, columns = within(to_row, heights, height), within(to_column, widths, width)
    return rows[:, :, None, None] & columns[:, None, :, None]


@dataclasses.dataclass(frozen=True)
class Mixup:
    """λ of each example and 1 - λ of its partner, images and labels alike: float32. λ is from Beta(alpha, alpha).

    Zhang et al. 2017, section 2; alpha 0.2 is theirs for ImageNet, 1 for CIFAR. λ is drawn for each pair.
    """

    classes: int
    alpha: float = 0.2

    def __post_init__(self):
        require(self, self.classes >= 1 and 0 < self.alpha < math.inf, "classes >= 1 and alpha > 0 must hold")

    def __call__(self, key: jax.Array, batch: Batch) -> dict[str, Any]:
        images, labels = batch["image"].astype(jnp.float32), soft(batch["label"], self.classes)
        keep = jax.random.beta(key, self.alpha, self.alpha, (images.shape[0],), jnp.float32)

        def mix(values: jax.Array) -> jax.Array:
            partner = jnp.roll(values, 1, axis=0)
            return partner + keep.reshape(-1, *[1] * (values.ndim - 1)) * (values - partner)

        return {**batch, "image": mix(images), "label": mix(labels)}


@dataclasses.dataclass(frozen=True)
class CutMix:
    """Replaces a rectangle of each image by that of its partner, and the labels by their shares of the area.

    Yun et al. 2019, section 3.1: sides √(1 - λ) of the image's, λ from Beta(alpha, alpha), alpha 1. The rectangle's
    centre is anywhere; what remains of it inside the image is what counts for the labels. Images keep their dtype.
    """

    classes: int
    alpha: float = 1.0

    def __post_init__(self):
        require(self, self.classes >= 1 and 0 < self.alpha < math.inf, "classes >= 1 and alpha > 0 must hold")

    def __call__(self, key: jax.Array, batch: Batch) -> dict[str, Any]:
        images, labels = batch["image"], soft(batch["label"], self.classes)
        to_share, to_place = jax.random.split(key)
        count, height, width, _ = images.shape
        side = jnp.sqrt(1 - jax.random.beta(to_share, self.alpha, self.alpha, (count,), jnp.float32))
        extents = (jnp.round(side * length).astype(jnp.int32) for length in (height, width))
        replaced = squares(to_place, images, *extents)
        share = replaced.mean(axis=(1, 2, 3), dtype=jnp.float32)[:, None]
        return {
            **batch,
            "image": jnp.where(replaced, jnp.roll(images, 1, axis=0), images),
            "label": labels + share * (jnp.roll(labels, 1, axis=0) - labels),
        }


@dataclasses.dataclass(frozen=True)
class Cutout:
    """Sets a square of `length` pixels of each image to `fill`; keeps the dtype.

    DeVries & Taylor 2017, section 3: its centre is any pixel, so that a part of the square may lie outside. The paper
    fills with the mean: 0 after `SubtractMean`, else the data set's mean colour. 16 is its length for CIFAR-10.
    """

    length: int
    fill: tuple[float, ...] = (0.0,)

    def __post_init__(self):
        require(self, isinstance(self.length, int) and self.length >= 1, "length must be a positive integer")
        numbers = isinstance(self.fill, tuple) and len(self.fill) >= 1 and all(map(math.isfinite, self.fill))
        require(self, numbers, "fill must be a tuple of finite numbers: one, or one per channel")

    def __call__(self, key: jax.Array, batch: Batch) -> dict[str, Any]:
        images = batch["image"]
        if len(self.fill) not in (1, images.shape[-1]):
            raise CnnjaxError(f"a fill of {len(self.fill)} channels cannot be put into images of {images.shape[-1]}")
        length = jnp.full(images.shape[0], self.length, jnp.int32)
        fill = jnp.array(self.fill, jnp.float32).reshape(1, 1, 1, -1)
        if images.dtype == jnp.uint8:
            fill = jnp.clip(jnp.round(fill), 0, 255)
        return {**batch, "image": jnp.where(squares(key, images, length, length), fill.astype(images.dtype), images)}
