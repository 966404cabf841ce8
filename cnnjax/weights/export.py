"""A network as one file that runs without this project, for any batch: StableHLO, or ONNX.

StableHLO is written by `jax.export` for CPU and GPU, and read by `jax.export.deserialize(bytes).call(images)` and by
other compilers. ONNX is read by its runtimes; it is written by jax2onnx, which asks for an older orbax than it needs:

    pip install "cnnjax[onnx]" && pip install --no-deps jax2onnx
"""

import importlib.util
import logging
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

    if importlib.util.find_spec("flatbuffers") is None:
        raise CnnjaxError("jax.export writes its files with flatbuffers, which is missing\npip install flatbuffers")
    forward, dtype = _forward(net, variables, transform)
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), dtype)
    with reference_forms(True):  # the others are chosen by sizes, and that of the batch is open
        written = jax.export.export(jax.jit(forward), platforms=platforms)(images)
    path.write_bytes(written.serialize())
    if (here := jax.default_backend().replace("gpu", "cuda")) not in (written := _read(path)).platforms:
        raise CnnjaxError(f"{path} was written for {', '.join(written.platforms)}, and cannot be checked on {here}")
    return _verified(path, jax.jit(forward), written.call, image_shape, dtype)


def export_onnx(
    path: Path,
    net: Chain,
    variables: Mapping[str, Any],
    *,
    image_shape: tuple[int, int, int],
    transform: Transform | None = None,
) -> float:
    """`export` as ONNX, with an input [batch, *image_shape], channels last, and an output [batch, classes].

    Raises `CnnjaxError` as `export` does, and where the packages are missing.
    """
    logging.getLogger("jax2onnx").setLevel(logging.ERROR)  # it warns of examples of its own that lack packages
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
        from jax2onnx import to_onnx  # pyright: ignore[reportMissingImports]
    except ImportError as missing:
        raise CnnjaxError(
            f'{missing}\npip install "cnnjax[onnx]" && pip install --no-deps jax2onnx, and try again'
        ) from None
    import onnx  # pyright: ignore[reportMissingImports]

    forward, dtype = _forward(net, variables, transform)
    with reference_forms(True):
        model = to_onnx(forward, [jax.ShapeDtypeStruct(("batch", *image_shape), dtype)])
    onnx.save(_pools_in_two_dimensions(model), path)
    session = onnxruntime.InferenceSession(path)
    name = session.get_inputs()[0].name
    return _verified(path, jax.jit(forward), lambda images: session.run(None, {name: images})[0], image_shape, dtype)


def _pools_in_two_dimensions(model: Any) -> Any:
    """`model`, its max-pools over (height, width) of images with the channels in front, as runtimes have them.

    jax2onnx writes a pool over all four axes, with two of one element in front, which none can run.
    """
    import onnx  # pyright: ignore[reportMissingImports]
    from onnx import helper  # pyright: ignore[reportMissingImports]

    made = {output: node for node in model.graph.node for output in node.output}
    used = {name: node for node in model.graph.node for name in node.input}
    for pool in [node for node in model.graph.node if node.op_type == "MaxPool"]:
        has: dict[str, Any] = {attribute.name: list(attribute.ints) for attribute in pool.attribute}
        if len(has["kernel_shape"]) != 4:
            continue
        inner = made[pool.input[0]]
        outer, squeezed = made[inner.input[0]], used[pool.output[0]]
        assert (inner.op_type, outer.op_type, squeezed.op_type) == ("Unsqueeze", "Unsqueeze", "Squeeze"), pool.name
        front, pooled = f"{pool.name}_front", f"{pool.name}_pooled"
        has = {name: [v for i, v in enumerate(values) if i % 4 in (1, 2)] for name, values in has.items()}
        first = list(model.graph.node).index(outer)
        new = [
            helper.make_node("Transpose", outer.input[:1], [front], perm=[0, 3, 1, 2]),
            helper.make_node("MaxPool", [front], [pooled], **has),
            helper.make_node("Transpose", [pooled], squeezed.output, perm=[0, 2, 3, 1]),
        ]
        for node in (outer, inner, pool, squeezed):
            model.graph.node.remove(node)
        for i, node in enumerate(new):
            model.graph.node.insert(first + i, node)
    needed = {name for node in model.graph.node for name in node.input}
    for constant in [array for array in model.graph.initializer if array.name not in needed]:
        model.graph.initializer.remove(constant)
    onnx.checker.check_model(model)
    return model


def _forward(net: Chain, variables: Mapping[str, Any], transform: Transform | None) -> tuple[Any, Any]:
    """Images -> logits, and the dtype of the images."""

    def forward(images: jax.Array) -> jax.Array:
        return net.apply(variables, images if transform is None else normalise(transform, images)).logits  # type: ignore[union-attr]

    return forward, jnp.float32 if transform is None else jnp.uint8


def _verified(path: Path, forward: Any, written: Any, image_shape: tuple[int, int, int], dtype: Any) -> float:
    """How far what was written is from `forward`; it is removed where that is too far."""
    random, worst = np.random.default_rng(0), 0.0
    for batch in (1, 3):
        shape = (batch, *image_shape)
        images = random.integers(0, 256, shape, np.uint8) if dtype == jnp.uint8 else random.random(shape, np.float32)
        want, have = np.asarray(forward(images)), np.asarray(written(images))
        worst = max(worst, float(np.abs(have - want).max() / max(np.abs(want).max(), 1e-30)))
    if not worst <= LARGEST_ERROR:
        path.unlink()
        raise CnnjaxError(f"what was exported gives logits that differ by {worst:.1e} of the largest; it is removed")
    return worst


def _read(path: Path) -> jax.export.Exported:
    return jax.export.deserialize(bytearray(path.read_bytes()))
