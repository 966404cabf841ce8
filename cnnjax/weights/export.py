"""A network as one file that runs without this project: StableHLO by `jax.export`, for any batch, on CPU and GPU.

The file is read by `jax.export.deserialize(bytes).call(images)`, and its StableHLO by other compilers.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from cnnjax.data.images import Transform, normalise
from cnnjax.errors import CnnjaxError
from cnnjax.models.chain import Chain
from cnnjax.models.ops import reference_forms

PLATFORMS = ("cpu", "cuda")
LARGEST_ERROR = 1e-5
"""Of the logits, relative to the largest."""


def export(
    path: Path,
    net: Chain,
    variables: Mapping[str, Any],
    *,
    image_shape: tuple[int, int, int],
    transform: Transform | None = None,
    platforms: tuple[str, ...] = PLATFORMS,
) -> float:
    """Writes images [batch, *image_shape] -> logits, weights inside, and returns how far that is from `net`.

    With a `transform` the images are uint8, RGB and of the right size, and the file normalises them; else float32 as
    the network wants them. The file is read back and run on this machine, with batches of 1 and 3.

    Raises `CnnjaxError` where the logits differ by more than `LARGEST_ERROR` of the largest, or cannot be run here.
    """

    def forward(images: jax.Array) -> jax.Array:
        return net.apply(variables, images if transform is None else normalise(transform, images)).logits  # type: ignore[union-attr]

    if importlib.util.find_spec("flatbuffers") is None:
        raise CnnjaxError("jax.export writes its files with flatbuffers, which is missing\npip install flatbuffers")
    dtype = jnp.float32 if transform is None else jnp.uint8
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), dtype)
    with reference_forms(True):  # the others are chosen by sizes, and that of the batch is open
        written = jax.export.export(jax.jit(forward), platforms=platforms)(images)
    path.write_bytes(written.serialize())
    return _verified(path, jax.jit(forward), image_shape, dtype)


def _verified(path: Path, forward: Any, image_shape: tuple[int, int, int], dtype: Any) -> float:
    if (here := jax.default_backend().replace("gpu", "cuda")) not in (written := _read(path)).platforms:
        raise CnnjaxError(f"{path} was written for {', '.join(written.platforms)}, and cannot be checked on {here}")
    random, worst = np.random.default_rng(0), 0.0
    for batch in (1, 3):
        shape = (batch, *image_shape)
        images = random.integers(0, 256, shape, np.uint8) if dtype == jnp.uint8 else random.random(shape, np.float32)
        want, have = np.asarray(forward(images)), np.asarray(written.call(images))
        worst = max(worst, float(np.abs(have - want).max() / max(np.abs(want).max(), 1e-30)))
    if not worst <= LARGEST_ERROR:
        path.unlink()
        raise CnnjaxError(f"what was exported gives logits that differ by {worst:.1e} of the largest; it is removed")
    return worst


def _read(path: Path) -> jax.export.Exported:
    return jax.export.deserialize(bytearray(path.read_bytes()))
