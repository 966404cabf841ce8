"""NumPy's .npz: a zip archive of arrays. Arrays of Python objects, which NumPy pickles, are refused."""

import math
import tokenize
import zipfile

from cnnjax.weights.archive import member_bytes, open_archive
from cnnjax.weights.tensors import Source, Tensor, Tensors, np, show


def read_npz(source: Source) -> Tensors:
    """The arrays of an .npz archive by their names, packed or not."""
    archive = open_archive(source)
    return Tensors(source, {name.removesuffix(".npy"): _tensor(source, archive, name) for name in archive.namelist()})


def _tensor(source: Source, archive: zipfile.ZipFile, name: str) -> Tensor:
    with archive.open(name) as stream:
        shape, fortran, dtype, start = _header(stream, name)
    if start + math.prod(shape) * dtype.itemsize != archive.getinfo(name).file_size:
        raise ValueError(f"array {show(name)} claims shape {show(list(shape))}, which is not what its member holds")

    def load() -> np.ndarray:
        values = member_bytes(source, archive, name)[start:]
        aligned = values.copy() if start % dtype.itemsize else values
        values = aligned.view(dtype).reshape(shape, order="F" if fortran else "C")
        return values.astype(dtype.newbyteorder("="), order="C", copy=False)

    return Tensor(shape, dtype.newbyteorder("="), load)


def _header(stream, name: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"array {show(name)} is of version {version} of NumPy's format, not 1.0 or 2.0")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = header(stream)
    except tokenize.TokenError as error:  # NumPy tries what Python 2 wrote, too
        raise ValueError(f"array {show(name)} has a header that is none") from error
    if dtype.hasobject:
        raise ValueError(f"array {show(name)} holds pickled Python objects\na file of weights holds numbers only")
    return shape, fortran, dtype, stream.tell()
