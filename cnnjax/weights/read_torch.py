"""PyTorch's `.pth` and `.pt`: what `torch.save` made of a state_dict, a zip archive (since 1.6) or a stream (before).

Read without PyTorch and without pickle: the pickled part goes through `unpickle`, and the names that it may use are
those in `NAMES`, which build descriptions of tensors.
"""

import functools
import itertools
import math
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from cnnjax.weights.archive import member_bytes, open_archive
from cnnjax.weights.tensors import (
    BFLOAT16,
    MANY,
    TENSORS_ONLY,
    Source,
    Tensor,
    Tensors,
    bytes_at,
    np,
    show,
)
from cnnjax.weights.unpickle import Builder, unpickle

MAGIC = 0x1950A86A20F9469CFC6C
LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
"""The first bytes of a stream: `MAGIC`, pickled."""
NESTED = ("state_dict", "model_state_dict", "model")
"""Where training scripts keep the state_dict of the network beside that of the optimiser."""


class Storage(NamedTuple):
    """A run of numbers in the file."""

    dtype: np.dtype
    key: str
    count: int


class View(NamedTuple):
    """A tensor as a pickle describes it: a view of a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _view(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> View:
    if not (
        type(storage) is Storage
        and _whole(offset)
        and type(shape) is type(strides) is tuple
        and len(shape) == len(strides) <= 8
        and all(map(_whole, shape + strides))
    ):
        raise ValueError("its pickle builds a tensor from what makes none")
    end = offset + sum((d - 1) * s for d, s in zip(shape, strides, strict=True)) + 1 if all(shape) else 0
    if end > storage.count or math.prod(shape) > storage.count:
        raise ValueError(f"a tensor of shape {show(list(shape))} does not fit its storage of {storage.count:,}")
    return View(storage, offset, shape, strides)


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


NAMES: dict[tuple[str, ...], object] = {
    ("collections", "OrderedDict"): Builder(lambda: {}),
    ("torch", "Size"): Builder(lambda sizes: sizes),
    ("torch._utils", "_rebuild_tensor"): Builder(_view),
    ("torch._utils", "_rebuild_tensor_v2"): Builder(_view),
    ("torch._utils", "_rebuild_parameter"): Builder(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): Builder(_parameter),
    **{
        ("torch", f"{name}Storage"): np.dtype(dtype)
        for name, dtype in {
            "Float": "<f4", "Double": "<f8", "Half": "<f2", "BFloat16": BFLOAT16, "Long": "<i8", "Int": "<i4",
            "Short": "<i2", "Char": "i1", "Byte": "u1", "Bool": "?",
        }.items()
    },
}  # fmt: skip


class _Storages(dict[str, Storage]):
    """The storages that a pickle names, by key."""

    def persistent(self, identity: Any) -> Storage:
        if not (
            type(identity) is tuple
            and len(identity) >= 5
            and identity[0] == "storage"
            and isinstance(identity[1], np.dtype)
            and type(identity[2]) is str
            and _whole(identity[4])
            and identity[5:] in ((), (None,))  # only PyTorch before 0.4 wrote storages that are views of others
        ):
            raise ValueError(f"its pickle refers to what is no storage\n{TENSORS_ONLY}")
        storage = Storage(identity[1], identity[2], identity[4])
        if self.setdefault(storage.key, storage) != storage:
            raise ValueError(f"storage {show(storage.key)} is described twice, and differently")
        return storage


def read_torch(source: Source) -> Tensors:
    """The tensors of a state_dict; those of dicts in it are named by the path of their keys, with dots."""
    start = source.file.read(len(LEGACY))
    source.file.seek(0)
    return _read_stream(source) if start == LEGACY else _read_zip(source)


def pickle_of(archive: zipfile.ZipFile) -> str | None:
    """The member that describes the tensors, */data.pkl, of an archive by torch.save; None: it is another archive."""
    return next((n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")), None)


def _read_zip(source: Source) -> Tensors:
    archive, storages = open_archive(source), _Storages()
    pickled = pickle_of(archive)
    if pickled is None:
        raise ValueError(f"it is a zip archive without a state_dict\n{TENSORS_ONLY}")
    folder = pickled.removesuffix("data.pkl")
    members = {info.filename: info.file_size for info in archive.infolist()}
    if members.get(f"{folder}byteorder", 0) == 3:  # "big"
        raise ValueError("it was written on a big-endian machine\nsave it again on a little-endian one")
    with archive.open(pickled) as stream:
        views = _flatten(unpickle(stream, NAMES, storages.persistent))
    for storage in storages.values():
        found, promised = members.get(f"{folder}data/{storage.key}"), storage.count * storage.dtype.itemsize
        if found != promised:
            raise ValueError(f"storage {show(storage.key)} should have {promised:,} bytes and has {found or 0:,}")

    def storage_bytes(storage: Storage) -> np.ndarray:
        return member_bytes(source, archive, f"{folder}data/{storage.key}")

    return _tensors(source, views, storage_bytes)


def _read_stream(source: Source) -> Tensors:
    """The format that PyTorch wrote before 1.6: five pickles, then each storage behind its length."""
    file, storages = source.file, _Storages()
    if unpickle(file) != MAGIC or unpickle(file) != 1001:
        raise ValueError(f"it is a pickle, but not one that torch.save made\n{TENSORS_ONLY}")
    machine = unpickle(file)
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise ValueError("it was written on a big-endian machine\nsave it again on a little-endian one")
    views = _flatten(unpickle(file, NAMES, storages.persistent))
    keys = unpickle(file)
    at, starts = file.tell(), {}
    for key in keys if type(keys) is list else ():
        if type(key) is not str or key not in storages or key in starts:
            raise ValueError("its list of storages is not that of its tensors")
        count = int(bytes_at(file, at, 8).view("<i8")[0])
        if count != storages[key].count:
            raise ValueError(f"storage {show(key)} should have {storages[key].count:,} numbers and has {count:,}")
        starts[key] = at + 8
        at += 8 + count * storages[key].dtype.itemsize
        if at > source.size:
            raise ValueError(f"storage {show(key)} goes on for {at - source.size:,} bytes after the end of the file")
    if starts.keys() != storages.keys():
        raise ValueError("its list of storages is not that of its tensors")

    def storage_bytes(storage: Storage) -> np.ndarray:
        return bytes_at(file, starts[storage.key], storage.count * storage.dtype.itemsize)

    return _tensors(source, views, storage_bytes)


def _tensors(source: Source, views: dict[str, View], storage_bytes: Callable[[Storage], np.ndarray]) -> Tensors:
    def load(view: View) -> np.ndarray:
        values = storage_bytes(view.storage).view(view.storage.dtype)
        if len(values) == math.prod(view.shape) and view.strides == _contiguous(view.shape):
            return values.reshape(view.shape)
        strides = tuple(stride * values.itemsize for stride in view.strides)
        # In bounds: `_view` has checked the last element
        return np.lib.stride_tricks.as_strided(values[view.offset :], view.shape, strides).copy()

    return Tensors(
        source,
        {n: Tensor(view.shape, view.storage.dtype, functools.partial(load, view)) for n, view in views.items()},
    )


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(itertools.accumulate(shape[:0:-1], lambda total, d: total * d, initial=1))[::-1] if shape else ()


def _flatten(root: object) -> dict[str, View]:
    """The tensors in nested dicts, named by the path of keys with dots; those of the network alone, if told apart."""
    for name in NESTED:
        if isinstance(root, dict) and isinstance(root.get(name), dict):
            root = root[name]
    if not isinstance(root, dict):
        raise ValueError(f"it holds no dict of tensors\n{TENSORS_ONLY}")
    views: dict[str, View] = {}
    for count, (name, value) in enumerate(_walk(root, ())):
        if count > 10 * MANY:
            raise ValueError(f"its dicts hold more than {10 * MANY:,} things")
        if type(value) is View and views.setdefault(name, value) is not value:
            raise ValueError(f"it holds two tensors {show(name)}")
    return views


def _walk(value: object, path: tuple[str, ...]) -> Iterator[tuple[str, object]]:
    yield ".".join(path), value
    if isinstance(value, dict):
        if len(path) == 16:
            raise ValueError("its dicts are nested more than 16 deep")
        for key, inner in value.items():
            yield from _walk(inner, (*path, str(key)))
