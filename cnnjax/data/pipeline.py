"""Batches as functions of (seed, step).

No iterator has a state that must be saved: the batch of a step is always the same, whoever asks for it and whatever was
asked before. So a run resumes at any step, with any number of workers.
"""

import functools
import os
import signal
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.data.splits import Split, permutation
from cnnjax.errors import CnnjaxError

AHEAD = 1 << 30
"""Batches that are decoded ahead of need hold at most this many bytes, but are at least two."""


class DeviceSplit(NamedTuple):
    """A split that lives on the device."""

    image: jax.Array
    label: jax.Array


def in_memory(split: Split) -> bool:
    """Whether the images of a split are an array, which can live on the device, or must be decoded batch by batch."""
    return isinstance(split.image, np.ndarray)


@functools.lru_cache(maxsize=8)
def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order in which an epoch visits n examples: a permutation, and another one for every seed and epoch."""
    indices = permutation(n, seed, epoch)
    indices.flags.writeable = False
    return indices


def batch_indices(seed: int, step: int, batch: int, n: int) -> np.ndarray:
    """Which examples make up a batch: int32 [batch].

    The epochs, each in its own order, form one stream, of which step s takes the part from s · batch on. A batch may
    lie across the end of an epoch: so no example is ever dropped, and all batches have one shape.
    """
    start, stop = step * batch, (step + 1) * batch
    epochs = range(start // n, -(-stop // n))
    stream = np.concatenate([order(seed, epoch, n) for epoch in epochs])
    return stream[start - epochs[0] * n :][:batch].astype(np.int32)


class Pipeline:
    """The training stream of a split: `pipeline.batch(step)` is {"image": uint8 [B, H, W, C], "label": int32 [B]}."""

    def __init__(self, split: Split, *, batch: int, seed: int, workers: int = 0, rows: slice = slice(None)):
        """`rows`: the part of each batch that is wanted here, where several processes read one batch.

        A split that is not in memory is decoded by so many worker processes, or (0) by threads of this one.

        Processes take seconds to start, and want the program's main module to be importable.
        """
        for name, value, least in (
            ("batch", batch, 1),
            ("seed", seed, 0),
            ("workers", workers, 0),
            ("images", len(split.label), 1),
        ):
            if value < least:
                raise CnnjaxError(f"{name} must be at least {least}, got {value}")
        self.split, self.size, self.seed, self.workers, self.rows = split, batch, seed, workers, rows

    def indices(self, step: int) -> np.ndarray:
        """Which examples of the split the batch of a step holds: int32 [B]."""
        return batch_indices(self.seed, step, self.size, len(self.split.label))[self.rows]

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The batch of one step."""
        return _gather(self.split, self.indices(step))

    def iterate(self, start: int, stop: int) -> Generator[dict[str, np.ndarray]]:
        """The batches of the steps from start to stop, made ahead where they must be decoded.

        Exhaust or close it, to free its threads and processes.
        """
        return _ahead(self.batch, start, stop, self.split, self.size, self.workers)


def evaluation_indices(n: int, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every one of n examples once, in order: pairs of indices int32 [batch] and mask bool [batch].

    The last batch is filled up with index 0, and masked there.
    """
    for start in range(0, n, batch):
        indices = np.arange(start, start + batch, dtype=np.int32)
        yield np.where(indices < n, indices, 0).astype(np.int32), indices < n


def evaluation_batches(split: Split, batch: int, *, workers: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Every example of a split once, in order: {"image": uint8 [B, H, W, C], "label": int32 [B], "mask": bool [B]}.

    The last batch is filled up with zeros, and masked there.
    """
    n = len(split.label)
    if batch < 1:
        raise CnnjaxError(f"batch must be at least 1, got {batch}")
    return _ahead(functools.partial(_evaluation_batch, split, batch), 0, -(-n // batch), split, batch, workers)


def _evaluation_batch(split: Split, batch: int, number: int) -> dict[str, np.ndarray]:
    indices = np.arange(number * batch, min((number + 1) * batch, len(split.label)))
    padding = (0, batch - len(indices))
    found = {"mask": np.ones(len(indices), bool), **_gather(split, indices)}
    return {key: np.pad(values, [padding, *[(0, 0)] * (values.ndim - 1)]) for key, values in found.items()}


def _gather(split: Split, indices: np.ndarray) -> dict[str, np.ndarray]:
    return {"image": split.image[indices], "label": split.label[indices]}


def _ahead(
    function: Callable[[int], Any], start: int, stop: int, split: Split, batch: int, workers: int
) -> Generator[dict[str, np.ndarray]]:
    """`map(function, range(start, stop))`; batches of a lazy split are made ahead, by grain's threads or processes."""
    if in_memory(split):
        yield from map(function, range(start, stop))
        return
    import grain
    from absl import flags

    most = AHEAD // (batch * int(np.prod(split.image.shape[1:])))
    threads = max(2, min(os.cpu_count() or 1, 16, most))
    batches = grain.MapDataset.range(start, stop).map(function)
    iterable = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's processes ask for a flag, which only an absl application parses
        options = grain.MultiprocessingOptions(num_workers=workers)
        iterable = iterable.mp_prefetch(options, worker_init_fn=_leave_ctrl_c_to_the_program)
    iterator = iter(iterable)
    try:
        for found in iterator:
            # A worker's arrays lie in shared memory, and one that is left when the program ends is complained of
            yield {key: np.array(found.pop(key)) for key in list(found)} if workers else found
    finally:
        iterator.close()


def _leave_ctrl_c_to_the_program(*_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the workers too, which would print tracebacks


def on_device(split: Split, sharding: Any = None) -> DeviceSplit:
    """A split in memory, put on the device (or where `sharding` says) once, so that a step only sends indices."""
    return DeviceSplit(*jax.device_put((np.asarray(split.image), split.label), sharding))


def take(split: DeviceSplit, indices: jax.Array) -> dict[str, jax.Array]:
    """The batch at indices int [B], gathered on the device: {"image": [B, H, W, C], "label": [B]}. Jittable."""
    return {
        "image": jnp.take(split.image, indices, axis=0, mode="clip"),
        "label": jnp.take(split.label, indices, axis=0, mode="clip"),
    }
