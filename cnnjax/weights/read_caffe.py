"""Caffe's `.caffemodel`: a NetParameter of https://github.com/BVLC/caffe/blob/master/src/caffe/proto/caffe.proto."""

import functools
import math

from cnnjax.weights.protobuf import Span, Wire, number, place
from cnnjax.weights.tensors import Source, Tensor, Tensors, np, show

FLOAT, DOUBLE = np.dtype("<f4"), np.dtype("<f8")
LAYER, LAYERS = 100, 2
# Field of a message -> the fields of its name and of its blobs.
PARTS = {LAYER: (1, 7), LAYERS: (4, 6)}
V0 = 1, (1, 50)  # the first version wrapped a layer once more


def read_caffe(source: Source) -> Tensors:
    """The blobs of a trained net by layer and place: "conv1.0" is usually the weight, "conv1.1" the bias.

    Both versions of the layers, and the one before. Shapes are as they are stored: nets from before 2014 have four
    dimensions everywhere, [1, 1, out, in] for a dense weight and [1, 1, 1, out] for a bias.
    """
    wire, tensors = Wire(source), {}
    for field, value in wire.fields(wire.whole):
        if field in PARTS:
            for index, (name, blob) in enumerate(_blobs(wire, place(value), *PARTS[field], wrapped=field == LAYERS)):
                if f"{name}.{index}" in tensors:
                    raise ValueError(f"it has two layers {show(name)}")
                tensors[f"{name}.{index}"] = _tensor(wire, name, blob)
    return Tensors(source, tensors)


def _blobs(wire: Wire, layer: Span, name_field: int, blobs_field: int, *, wrapped: bool) -> list[tuple[str, Span]]:
    name, blobs = "", []
    for field, value in wire.fields(layer):
        if field == name_field:
            name = wire.text(value)
        elif field == blobs_field:
            blobs.append(place(value))
        elif wrapped and field == V0[0]:
            return _blobs(wire, place(value), *V0[1], wrapped=False)
    return [(name, blob) for blob in blobs]


def _tensor(wire: Wire, name: str, blob: Span) -> Tensor:
    old, shape, found = [0, 0, 0, 0], None, {5: [], 8: []}
    for field, value in wire.fields(blob):
        if field in (1, 2, 3, 4):  # num, channels, height, width
            old[field - 1] = number(value)
        elif field == 7:
            shape = wire.varints([dim for inner, dim in wire.fields(place(value)) if inner == 1])
        elif field in found:
            found[field].append(place(value))
    dtype, spans = (DOUBLE, found[8]) if found[8] else (FLOAT, found[5])
    shape = tuple(old if shape is None else shape)
    have = sum(span.nbytes for span in spans)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != have or any(s.nbytes % 4 for s in spans):
        raise ValueError(f"a blob of layer {show(name)} should be {show(list(shape))} and has {have:,} bytes")
    return Tensor(shape, dtype, functools.partial(_load, wire, spans, dtype, shape))


def _load(wire: Wire, spans: list[Span], dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    return wire.numbers(spans, dtype).reshape(shape)
