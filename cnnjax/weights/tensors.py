"""What every reader gives: the tensors of a file by name, each read when it is asked for and once its header is sound.

Readers raise `ValueError` with one line for whatever is wrong with a file; `reading` turns it, and what the libraries
below them raise on bad bytes, into `UnreadableWeights` with the name of the file.
"""

import contextlib
import functools
import math
import os
import struct
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from cnnjax.errors import CnnjaxError

RATIO, FREE = 20, 256 << 20
"""What a file unpacks to is at most RATIO times its size, or FREE bytes if that is more: weights hardly compress."""
LARGEST = 16 << 30
"""Bytes of the largest tensor."""
MANY = 100_000
"""More tensors or archive members than this are refused; ResNet-1202 has 8,000."""
LONGEST = 16 << 20
"""Bytes of the longest header, archive directory or pickled string."""

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
CHUNK = 1 << 20
PIECE = 16 << 20
"""Bytes of a tensor that are read at a time where it is taken in pieces."""
TENSORS_ONLY = (
    "a file of weights holds tensors and nothing that runs: torch.save(model.state_dict(), …), or safetensors"
)


class UnreadableWeights(CnnjaxError):
    """A file of weights that is missing, damaged, hostile or of another format."""


class Source(NamedTuple):
    """An open file."""

    path: Path
    """What messages call it; for a member of an archive, archive/member."""
    file: BinaryIO
    size: int

    @contextlib.contextmanager
    def closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.file.close()
            raise


class Tensor(NamedTuple):
    """What a header says about a tensor, and how to read its values."""

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]
    part: Callable[[int, int], np.ndarray] | None = None
    """Some of the rows, where they can be read without the others; by several threads at once."""


class Tensors(Mapping[str, np.ndarray]):
    """Name -> array. An array is read at each look-up and belongs to the caller; shapes and types are known before.

    Keeps the file open for as long as it lives. `metadata` is what the file says beside its tensors, as text.
    """

    def __init__(self, source: Source, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None):
        """Raises: ValueError where the header promises what no file of this size should hold."""
        if not tensors:
            raise ValueError("it holds no tensors")
        if len(tensors) > MANY:
            raise ValueError(f"it holds {len(tensors):,} tensors, more than {MANY:,}")
        for name, (shape, dtype, *_) in tensors.items():
            # Empty tensors count as if their zeros were ones: NumPy cannot make a 0 × 2^60 array either
            if any(d < 0 for d in shape) or math.prod(max(d, 1) for d in shape) * dtype.itemsize > LARGEST:
                raise ValueError(f"tensor {show(name)} has the absurd shape {show(list(shape))}")
            if len(shape) > 8 or not (dtype.kind in "biuf" or dtype == BFLOAT16):
                raise ValueError(f"tensor {show(name)} is {len(shape)}-dimensional {show(str(dtype))}, not numbers")
        within(sum(math.prod(shape) * dtype.itemsize for shape, dtype, *_ in tensors.values()), source.size)
        self.source = source
        self.metadata = MappingProxyType(dict(metadata or {}))
        self._tensors = dict(tensors)
        weakref.finalize(self, source.file.close)

    def __getitem__(self, name: str) -> np.ndarray:
        """Raises: KeyError; UnreadableWeights where the values are damaged."""
        return self._read(name, self._tensors[name].load)

    def pieces(self, name: str) -> Iterator[tuple[int, Callable[[], np.ndarray]]]:
        """The array in pieces along its first axis: the number of a piece's first row, and what gives it.

        A large array is read when its pieces are, which several threads may do at once; a small one is one piece, and
        is read before.

        Raises: as a look-up does.
        """
        shape, dtype, _, part = self._tensors[name]
        row = math.prod(shape[1:]) * dtype.itemsize if shape else 0
        if part is None or row * max(shape[0] if shape else 0, 1) <= PIECE:
            whole = self[name]
            yield 0, lambda: whole
            return
        step = max(1, PIECE // row)
        for start in range(0, shape[0], step):
            yield start, functools.partial(self._read, name, part, start, min(start + step, shape[0]))

    def _read(self, name: str, load: Callable[..., np.ndarray], *rows: int) -> np.ndarray:
        with reading(self.source.path, f"tensor {show(name)} "):
            return load(*rows)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"Tensors({str(self.source.path)!r}, {len(self)} tensors)"

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def dtype(self, name: str) -> np.dtype:
        return self._tensors[name].dtype


def check_finite(tensors: Mapping[str, np.ndarray]) -> None:
    """Read every tensor once and raise `UnreadableWeights` that names those with NaN or infinite values."""
    found = {name: count for name in tensors if (count := not_finite(tensors[name]))}
    if found:
        where = tensors.source.path if isinstance(tensors, Tensors) else "the weights"
        shown = [f"{show(name)}: {count:,}" for name, count in list(found.items())[:3]]
        raise UnreadableWeights(
            f"{where}: values that are NaN or infinite in {len(found)} of {len(tensors)} tensors\n"
            f"{', '.join(shown)}{', …' if len(found) > 3 else ''}\nweights must be finite numbers"
        )


def not_finite(values: np.ndarray) -> int:
    """How many values are NaN or infinite."""
    if values.dtype.kind in "biu":
        return 0
    flat = values.reshape(-1)  # in pieces, or the masks would be a quarter of the largest tensor
    with np.errstate(invalid="ignore"):  # signalling NaN of half precision
        finite = (np.count_nonzero(np.isfinite(flat[i : i + CHUNK])) for i in range(0, len(flat), CHUNK))
        return len(flat) - int(sum(finite))


@contextlib.contextmanager
def reading(path: Path, what: str = "") -> Iterator[None]:
    """What goes wrong inside is said as `UnreadableWeights`: the file, what is wrong, what would be right."""
    try:
        yield
    except UnreadableWeights:
        raise
    except (
        ValueError,
        OSError,
        EOFError,
        RuntimeError,  # zipfile and h5py
        MemoryError,
        OverflowError,
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
        Warning,  # where they are made errors
    ) as error:
        wrong, _, right = str(error).partition("\n")
        raise UnreadableWeights(
            f"{path}: {what}{'is damaged: ' if what else ''}{wrong[:300] or type(error).__name__}\n"
            + (right or "a whole file is needed, as its source publishes it")
        ) from error


def show(value: str | list[int]) -> str:
    """What a file says, fit for one line of a message."""
    return repr(value[:80]) if isinstance(value, str) else repr(value[:10])[:80]


def within(unpacked: int, size: int) -> None:
    """Raises: ValueError where a file of `size` bytes claims to unpack to more than it should."""
    if unpacked > max(FREE, RATIO * size):
        raise ValueError(f"{size:,} bytes claim to unpack to {unpacked:,}, more than {RATIO} times as much")


class Bounded:
    """A file of which no single read takes more than `LONGEST` bytes, whatever length a hostile field claims."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        if count > LONGEST:
            raise ValueError(f"a field claims to be {count:,} bytes long")
        found = self.file.read(LONGEST + 1 if count < 0 else count)
        if len(found) > LONGEST:
            raise ValueError(f"a field is longer than {LONGEST:,} bytes")
        return found

    def readline(self) -> bytes:
        return self.file.readline(LONGEST)


def stream_bytes(stream: IO[bytes], count: int) -> np.ndarray:
    """The next `count` bytes, which must be the last, as uint8; in pieces, so that they are in memory once."""
    values = np.empty(count, np.uint8)
    view, found = values.data, 0
    while found < count and (more := stream.readinto(view[found : found + CHUNK])):  # type: ignore[attr-defined]
        found += more
    if found < count or stream.read(1):
        raise ValueError(f"{count:,} bytes are promised, and {'more' if found == count else f'{found:,}'} found")
    return values


def bytes_at(file: BinaryIO, start: int, count: int) -> np.ndarray:
    """`count` bytes from `start` on, as uint8; leaves the file where it is."""
    values = np.empty(count, np.uint8)
    view, found = values.data, 0
    while found < count and (more := os.preadv(file.fileno(), [view[found:]], start + found)):
        found += more
    if found < count:
        raise ValueError(f"{count:,} bytes are promised at {start:,}, and {found:,} found")
    return values
