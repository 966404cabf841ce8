"""What reaches the step: batches as a function of (seed, step), made into images on the device."""

import dataclasses
from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.data.images import Transform, normalise
from cnnjax.data.pipeline import DeviceSplit, Pipeline, on_device, take
from cnnjax.data.splits import IN_MEMORY, Split
from cnnjax.errors import CnnjaxError
from cnnjax.train.protocols import Size, scaled
from cnnjax.train.step import Augment, Batch


@dataclasses.dataclass(frozen=True)
class CentreCrop:
    """The central part, `size` = (height, width), of every image of a batch.

    `scale`: the shorter side to which images are brought before; None leaves them as they are.
    """

    size: Size
    scale: int | None = None

    def __call__(self, key: Any, batch: Batch) -> Batch:
        height, width = self.size
        have = scaled(batch["image"].shape[1:3], self.scale)
        if height > have[0] or width > have[1]:
            raise CnnjaxError(f"images of {have} pixels have no central crop of {self.size}")
        top, left = (have[0] - height) // 2, (have[1] - width) // 2
        image = resized(batch["image"], have)
        return {**batch, "image": image[:, top : top + height, left : left + width]}


def resized(images: jax.Array, size: Size) -> jax.Array:
    """[B, H, W, C] -> [B, *size, C], bilinear and antialiased: float32, unless there is nothing to do."""
    if images.shape[1:3] == size:
        return images
    return jax.image.resize(images.astype(jnp.float32), (images.shape[0], *size, images.shape[3]), "linear")


@dataclasses.dataclass(frozen=True)
class Prepare:
    """In this order: pick the examples that "index" names, if any; `augment` their uint8 pixels; normalise them."""

    transform: Transform
    augment: Augment | None = None

    def __call__(self, key: Any, batch: Batch) -> Batch:
        if "index" in batch:
            batch = take(DeviceSplit(batch["image"], batch["label"]), batch["index"])
        if self.augment is not None:
            batch = self.augment(key, batch)
        return {**batch, "image": normalise(self.transform, batch["image"])}


def stream(split: Split, *, batch: int, seed: int, start: int, stop: int, workers: int = 0) -> Generator[Batch]:
    """What `Prepare` makes the batches of the steps `start` to `stop` - 1 of.

    A set that fits is put on the device once, and each batch is only the numbers of its examples.
    """
    pipeline = Pipeline(split, batch=batch, seed=seed, workers=workers)
    if isinstance(split.image, np.ndarray) and split.image.nbytes <= IN_MEMORY:
        resident = on_device(split)._asdict()
        for step in range(start, stop):
            yield {**resident, "index": pipeline.indices(step)}
    else:
        yield from pipeline.iterate(start, stop)
