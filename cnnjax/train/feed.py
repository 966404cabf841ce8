"""What reaches the step: batches as a function of (seed, step), made into images on the device."""

import contextlib
import dataclasses
from collections.abc import Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.data.images import Transform, normalise
from cnnjax.data.pipeline import DeviceSplit, Pipeline, on_device, take
from cnnjax.data.splits import IN_MEMORY, Split
from cnnjax.errors import CnnjaxError
from cnnjax.train.parallel import ALL, Launch, replicate, rows, share
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


def image_shape(prepare: Prepare, split: Split) -> tuple[int, ...]:
    """(height, width, channels) of what a network sees of these images in training; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, *split.image.shape[1:]), np.uint8)
    batch = {"image": image, "label": jax.ShapeDtypeStruct((1,), np.int32)}
    return jax.eval_shape(prepare, jax.random.key(0), batch)["image"].shape[1:]


def stream(
    split: Split,
    *,
    batch: int,
    seeds: Sequence[int],
    start: int,
    stop: int,
    chunk: int = 1,
    workers: int = 0,
    launch: Launch = ALL,
) -> Generator[tuple[range, Batch]]:
    """For the steps `start` to `stop` - 1, spans of them and what `parallel.advance` takes for each.

    A set that fits is put on the devices once, and a span is only the numbers of its examples: "index" [steps, batch],
    or [steps, runs, batch] for the runs of several seeds. Spans have `chunk` steps where they start at a multiple of
    it, else one. A set that does not fit is read step by step, for one run.
    """
    own = rows(launch, batch)
    pipelines = [Pipeline(split, batch=batch, seed=seed, workers=workers, rows=own) for seed in seeds]
    if resident(split):
        images = replicate(launch, on_device(split)._asdict())
        while start < stop:
            span = range(start, start + (chunk if start % chunk == 0 and start + chunk <= stop else 1))
            index = np.stack([np.stack([pipeline.indices(step) for pipeline in pipelines]) for step in span])
            index = index if len(seeds) > 1 else index[:, 0]
            yield span, {**images, "index": share(launch, index, axis=index.ndim - 1)}
            start = span.stop
    else:
        [pipeline] = pipelines
        with contextlib.closing(pipeline.iterate(start, stop)) as batches:
            for step, examples in enumerate(batches, start):
                yield range(step, step + 1), share(launch, examples)


def resident(split: Split) -> bool:
    """Whether the images of a split are kept on the device."""
    return isinstance(split.image, np.ndarray) and split.image.nbytes <= IN_MEMORY
