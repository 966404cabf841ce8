"""Keras weights: HDF5 files (`.h5`, `.weights.h5`) and `.keras` archives, which hold one. Read by h5py, without Keras.

The configuration of the model, where Lambda layers keep code, is passed on as text in `metadata` and never built.
"""

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

from cnnjax.weights.archive import open_archive, unpack
from cnnjax.weights.tensors import LONGEST, MANY, Source, Tensor, Tensors, UnreadableWeights, np, show, within

WEIGHTS = "model.weights.h5"
"""Where a `.keras` archive keeps its weights."""
FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32"}
"""What may pack a data set; HDF5 would look for any other as a plug-in to load."""


def read_keras(source: Source) -> Tensors:
    """The tensors of a `.keras` archive; its config.json is in the metadata as "config"."""
    archive, metadata = open_archive(source), {}
    if "config.json" in archive.namelist():
        if archive.getinfo("config.json").file_size > LONGEST:
            raise ValueError(f"its config.json is longer than {LONGEST:,} bytes")
        metadata["config"] = archive.read("config.json").decode()
    inner = unpack(source, archive, WEIGHTS)
    with inner.closed_on_error():
        return read_hdf5(inner, metadata)


def read_hdf5(source: Source, metadata: dict[str, str] | None = None) -> Tensors:
    """The data sets of an HDF5 file by their paths, "block1_conv1/block1_conv1/kernel:0".

    `metadata`: Keras 3 gives a layer's variables the path of its class and keeps its own name as an attribute of that
    group, so for each such group path -> name.
    """
    try:
        import h5py  # type: ignore[import-not-found]
    except ImportError as error:
        raise UnreadableWeights(
            f"{source.path} is an HDF5 file, and h5py, which reads them, is missing\npip install 'cnnjax[keras]'"
        ) from error
    metadata, tensors = dict(metadata or {}), {}
    with _as_value_error():
        for path, item in _items(h5py, h5py.File(source.file, "r"), "", set()):
            if isinstance(item, h5py.Dataset):
                tensors[path] = _tensor(item, path, source.size)
            elif isinstance(name := item.attrs.get("name"), str):
                metadata[path] = name
    return Tensors(source, tensors, metadata)


def _items(h5py: Any, group: Any, path: str, seen: set) -> Iterator[tuple[str, Any]]:
    """What is in a group, and in the groups in it; each once, and none by a link to elsewhere."""
    if path.count("/") > 16:
        raise ValueError("its groups are nested more than 16 deep")
    for name in group:
        here = f"{path}{name}"
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{show(here)} is a link to elsewhere\na file of weights holds them itself")
        item = group[name]
        where = h5py.h5o.get_info(item.id).addr
        if where in seen or len(seen) > 2 * MANY:
            raise ValueError(f"{show(here)} is there twice, or one of more than {2 * MANY:,}")
        seen.add(where)
        yield here, item
        if isinstance(item, h5py.Group):
            yield from _items(h5py, item, f"{here}/", seen)


def _tensor(dataset: Any, path: str, size: int) -> Tensor:
    if dataset.shape is None or dataset.dtype.hasobject:
        raise ValueError(f"{show(path)} holds no numbers")
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{show(path)} keeps its values in another file\na file of weights holds them itself")
    plist = dataset.id.get_create_plist()
    if any(plist.get_filter(i)[0] not in FILTERS for i in range(plist.get_nfilters())):
        raise ValueError(f"{show(path)} is packed\nlegal: {', '.join(FILTERS.values())}")
    nbytes = math.prod(dataset.shape) * dataset.dtype.itemsize
    if dataset.chunks:
        within(math.prod(dataset.chunks) * dataset.dtype.itemsize, size)
    elif dataset.id.get_storage_size() != nbytes:
        raise ValueError(f"{show(path)} should have {nbytes:,} bytes and has {dataset.id.get_storage_size():,}")
    native = dataset.dtype.newbyteorder("=")
    return Tensor(tuple(dataset.shape), native, functools.partial(_load, dataset, native))


def _load(dataset: Any, dtype: np.dtype) -> np.ndarray:
    values = np.empty(dataset.shape, dtype)
    with _as_value_error():
        if values.size:
            dataset.read_direct(values)
    return values


@contextlib.contextmanager
def _as_value_error() -> Iterator[None]:
    """h5py raises TypeError and KeyError, too, on what the file says."""
    try:
        yield
    except (TypeError, KeyError) as error:
        raise ValueError(f"HDF5: {error}") from error
