"""safetensors: https://github.com/huggingface/safetensors#format. The library checks the header; nothing can run."""

import json
import math
from typing import Any

from safetensors import SafetensorError, safe_open

from cnnjax.weights.tensors import BFLOAT16, LONGEST, Source, Tensor, Tensors, bytes_at, np, show

# fmt: off
DTYPES = {
    "F64": np.dtype("f8"), "F32": np.dtype("f4"), "F16": np.dtype("f2"), "BF16": BFLOAT16,
    "I64": np.dtype("i8"), "I32": np.dtype("i4"), "I16": np.dtype("i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("u8"), "U32": np.dtype("u4"), "U16": np.dtype("u2"), "U8": np.dtype("u1"), "BOOL": np.dtype("?"),
}
# fmt: on


def read_safetensors(source: Source) -> Tensors:
    """The tensors of a safetensors file; its `__metadata__` is theirs."""
    header = int.from_bytes(source.file.read(8), "little")
    if header > LONGEST:
        raise ValueError(f"its header claims to be {header:,} bytes long, more than {LONGEST:,}")
    try:  # the library knows all that can be wrong with a header
        with safe_open(source.path, framework="np", backend="pread") as opened:
            names, metadata = opened.offset_keys(), opened.metadata()
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    told = json.loads(source.file.read(header))
    return Tensors(source, {name: _tensor(source, name, told[name], 8 + header) for name in names}, metadata)


def _tensor(source: Source, name: str, told: dict[str, Any], data: int) -> Tensor:
    shape = tuple(told["shape"])
    if told["dtype"] not in DTYPES:
        raise ValueError(f"tensor {show(name)} is of type {told['dtype']}\nlegal: {', '.join(DTYPES)}")
    dtype, start = DTYPES[told["dtype"]], data + told["data_offsets"][0]

    def rows(first: int, last: int) -> np.ndarray:
        row = math.prod(shape[1:]) * dtype.itemsize
        return bytes_at(source.file, start + first * row, (last - first) * row).view(dtype).reshape(-1, *shape[1:])

    def load() -> np.ndarray:
        return bytes_at(source.file, start, math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)

    return Tensor(shape, dtype, load, rows)
