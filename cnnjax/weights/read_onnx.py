"""The initialisers of an ONNX graph: a ModelProto of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto."""

import functools
import math
from pathlib import Path

from cnnjax.weights.protobuf import Span, Wire, number, place
from cnnjax.weights.tensors import BFLOAT16, Source, Tensor, Tensors, bytes_at, np, show

GRAPH, INITIALISER = 7, 5
DIMS, DATA_TYPE, FLOATS, INTS, LONGS, NAME, RAW, DOUBLES, EXTERNAL, LOCATION = 1, 2, 4, 5, 7, 8, 9, 10, 13, 14

# TensorProto.DataType -> the type, and the field that holds its values where raw_data does not
# fmt: off
TYPES = {
    1: (np.dtype("<f4"), FLOATS), 11: (np.dtype("<f8"), DOUBLES), 10: (np.dtype("<f2"), INTS), 16: (BFLOAT16, INTS),
    2: (np.dtype("u1"), INTS), 3: (np.dtype("i1"), INTS), 4: (np.dtype("<u2"), INTS), 5: (np.dtype("<i2"), INTS),
    6: (np.dtype("<i4"), INTS), 7: (np.dtype("<i8"), LONGS), 9: (np.dtype("?"), INTS),
}
# fmt: on


def read_onnx(source: Source) -> Tensors:
    """The initialisers of the main graph by name. Values in files of their own are read where they lie beside it."""
    wire, tensors, beside = Wire(source), {}, {}
    for field, value in wire.fields(wire.whole):
        for inner, initialiser in wire.fields(place(value)) if field == GRAPH else ():
            if inner == INITIALISER:
                name, tensor = _tensor(wire, place(initialiser), source.path.parent.resolve(), beside)
                if name in tensors:
                    raise ValueError(f"it has two initialisers {show(name)}")
                tensors[name] = tensor
    return Tensors(source._replace(size=source.size + sum(beside.values())), tensors)


def _tensor(wire: Wire, message: Span, folder: Path, beside: dict[Path, int]) -> tuple[str, Tensor]:
    """`beside`: the other files that hold values, with their sizes."""
    found: dict[int, list[int | Span]] = {}
    for field, value in wire.fields(message):
        found.setdefault(field, []).append(value)
    name = wire.text(found[NAME][-1]) if NAME in found else ""
    shape = tuple(wire.varints(found.get(DIMS, [])))
    kind = number(found.get(DATA_TYPE, [0])[-1])
    if kind not in TYPES:
        raise ValueError(f"initialiser {show(name)} is of type {kind} of ONNX\nlegal: {', '.join(map(str, TYPES))}")
    dtype, field = TYPES[kind]
    count = math.prod(shape)
    if min(shape, default=0) < 0:
        raise ValueError(f"initialiser {show(name)} has the absurd shape {show(list(shape))}")
    if found.get(LOCATION, [0])[-1] == 1:
        said = _external(wire, [place(value) for value in found.get(EXTERNAL, [])])
        path, start = _beside(folder, said, count * dtype.itemsize)
        beside[path] = path.stat().st_size
        return name, Tensor(shape, dtype, functools.partial(_load_external, path, start, dtype, shape))
    if RAW not in found and field in (INTS, LONGS):
        values = wire.varints(found.get(field, []))
        if len(values) != count:
            raise ValueError(f"initialiser {show(name)} should be {show(list(shape))} and has {len(values):,} numbers")
        return name, Tensor(shape, dtype, functools.partial(_from_ints, values, dtype, shape))
    spans = [place(value) for value in found.get(RAW if RAW in found else field, [])]
    have = sum(span.nbytes for span in spans)
    if have != count * dtype.itemsize or any(span.nbytes % dtype.itemsize for span in spans):
        raise ValueError(f"initialiser {show(name)} should be {show(list(shape))} and has {have:,} bytes")
    return name, Tensor(shape, dtype, functools.partial(_load, wire, spans, dtype, shape))


def _load(wire: Wire, spans: list[Span], dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    return wire.numbers(spans, dtype).reshape(shape)


def _from_ints(values: list[int], dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Half precision is stored as the bits of its numbers."""
    bits = np.array(values, np.int64)
    if dtype.itemsize == 2 and dtype.kind not in "iu":
        return bits.astype(np.uint16).view(dtype).reshape(shape)
    return bits.astype(dtype).reshape(shape)


def _external(wire: Wire, entries: list[Span]) -> dict[str, str]:
    pairs = [{field: wire.text(value) for field, value in wire.fields(entry)} for entry in entries]
    return {pair.get(1, ""): pair.get(2, "") for pair in pairs}


def _beside(folder: Path, said: dict[str, str], nbytes: int) -> tuple[Path, int]:
    """The file, in the folder of the model, and the place in it where an initialiser has its values."""
    path = (folder / said.get("location", "")).resolve()  # through links, too
    if not path.is_relative_to(folder):
        raise ValueError(
            f"it keeps values outside of its folder, in {show(said.get('location', ''))}\n"
            "values may lie in files beside it"
        )
    if not path.is_file():
        raise ValueError(f"it keeps values in {show(said.get('location', ''))}, which is not there")
    start, length = (said.get(key, default) for key, default in (("offset", "0"), ("length", str(nbytes))))
    if not (start.isdecimal() and length.isdecimal() and int(length) == nbytes):
        raise ValueError(f"it wants {nbytes:,} bytes of {show(path.name)}, and says {show(length)} at {show(start)}")
    if int(start) + nbytes > path.stat().st_size:
        raise ValueError(f"it keeps values behind the end of {show(path.name)}")
    return path, int(start)


def _load_external(path: Path, start: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    with open(path, "rb") as file:
        return bytes_at(file, start, math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
