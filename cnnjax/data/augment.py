"""Augmentation: pure functions `(key, batch) -> batch` of uint8 images, compiled into the training step."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from cnnjax.errors import CnnjaxError


@dataclasses.dataclass(frozen=True)
class CropAndFlip:
    """A random part of `size` = (height, width) of each image, mirrored left to right half of the time.

    Krizhevsky et al. 2012, section 4.1. Raises `CnnjaxError` for images that are smaller.
    """

    size: tuple[int, int]

    def __call__(self, key: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        images, (height, width) = batch["image"], self.size
        count, tall, wide, channels = images.shape
        if height > tall or width > wide:
            raise CnnjaxError(f"images of {tall}×{wide} pixels have no crops of {height}×{width}\ngive a larger --size")
        below, right, mirror = jax.random.split(key, 3)
        tops = jax.random.randint(below, (count,), 0, tall - height + 1)
        lefts = jax.random.randint(right, (count,), 0, wide - width + 1)
        mirrored = jax.random.bernoulli(mirror, shape=(count,))

        def one(image, top, left, flip):
            crop = jax.lax.dynamic_slice(image, (top, left, 0), (height, width, channels))
            return jnp.where(flip, crop[:, ::-1], crop)

        return {**batch, "image": jax.vmap(one)(images, tops, lefts, mirrored)}
