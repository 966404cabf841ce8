"""safetensors: https://github.com/huggingface/safetensors#format. The library checks the header; nothing can run."""

import functools
from collections.abc import Callable

from safetensors import SafetensorError, safe_open

from cnnjax.weights.tensors import BFLOAT16, LONGEST, Source, Tensor, Tensors, np, show

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
    try:
        # Not mapped into memory: the pages of the file would count beside the arrays
        opened = safe_open(source.path, framework="np", backend="pread")
        tensors = {name: _tensor(opened, name) for name in opened.offset_keys()}
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return Tensors(source, tensors, opened.metadata())


def _tensor(opened: safe_open, name: str) -> Tensor:
    view = opened.get_slice(name)
    if view.get_dtype() not in DTYPES:
        raise ValueError(f"tensor {show(name)} is of type {view.get_dtype()}\nlegal: {', '.join(DTYPES)}")

    def rows(start: int, stop: int) -> np.ndarray:
        return _sound(lambda: opened.get_slice(name)[start:stop])

    return Tensor(tuple(view.get_shape()), DTYPES[view.get_dtype()], functools.partial(_load, opened, name), rows)


def _load(opened: safe_open, name: str) -> np.ndarray:
    return _sound(lambda: opened.get_tensor(name))


def _sound(read: Callable[[], np.ndarray]) -> np.ndarray:
    try:
        return read()
    except SafetensorError as error:
        raise ValueError(str(error)) from error
