"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 from their original files, without TensorFlow and without pickle.

The idx format is described at http://yann.lecun.com/exdb/mnist, CIFAR's binary version at https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import functools
import gzip
import math
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from cnnjax.data.splits import Split, Stored
from cnnjax.download import cache_folder, fetch
from cnnjax.errors import CnnjaxError

LARGEST = 1 << 30
"""No original file holds more bytes than this, packed or unpacked."""


class Original(NamedTuple):
    """Where a data set is published, what its files hash to, and who reads them."""

    base: str
    sha256: dict[str, str]
    """By file name; as in the checksum lists of TensorFlow Datasets."""
    read: Callable[[Path], Stored]


def read(name: str, where: str | None = None) -> Stored:
    """Read a data set of `ORIGINALS` from the folder or archive at `where`; None: download it first.

    Raises: CnnjaxError where files are missing, damaged, or cannot be downloaded.
    """
    if where is None:
        return ORIGINALS[name].read(download(name))
    path = Path(where).expanduser()
    if not path.exists():
        raise CnnjaxError(
            f"{name}:{where}: there is no {path}\ngive the folder that holds {', '.join(ORIGINALS[name].sha256)}"
        )
    return ORIGINALS[name].read(path)


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in an idx file, packed by gzip or not."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            start = file.read(4)
            if len(start) != 4 or start[:3] != b"\0\0\x08" or start[3] not in (1, 3):
                raise CnnjaxError(f"{path} is not an idx file of bytes: it begins with {start.hex() or 'nothing'}")
            shape = tuple(np.frombuffer(file.read(4 * start[3]).ljust(4 * start[3], b"\0"), ">u4").tolist())
            count = math.prod(shape)
            # One byte more than promised would show a file that goes on; and nothing unpacks without end
            values = file.read(count + 1) if count <= LARGEST else b""
    except (OSError, EOFError, zlib.error) as error:
        raise CnnjaxError(f"cannot read {path}: {error}") from error
    if not count or len(values) != count:
        raise CnnjaxError(f"{path} is damaged: {'×'.join(map(str, shape))} bytes are promised, but {len(values)} found")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _find(folder: Path, name: str) -> Path:
    for candidate in (name, f"{name}.gz", name.replace("-idx", ".idx")):
        if (folder / candidate).is_file():
            return folder / candidate
    raise CnnjaxError(f"{folder} has no {name} or {name}.gz{_holds(folder)}")


def _holds(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return f"\nit holds: {', '.join(names[:8]) or 'nothing'}" if folder.is_dir() else ""


def _read_idx_pair(folder: Path, part: str) -> Split:
    image = read_idx(_find(folder, f"{part}-images-idx3-ubyte"))
    label = read_idx(_find(folder, f"{part}-labels-idx1-ubyte"))
    if image.ndim != 3 or label.ndim != 1 or len(image) != len(label):
        raise CnnjaxError(f"{folder}: {part} images {image.shape} and labels {label.shape} do not belong together")
    return Split(image[..., None], label)


def _read_mnist(folder: Path, *, classes: tuple[str, ...]) -> Stored:
    return Stored({"train": _read_idx_pair(folder, "train"), "test": _read_idx_pair(folder, "t10k")}, classes)


def _read_cifar(path: Path, *, train: tuple[str, ...], test: str, names: str, labels: int, classes: int) -> Stored:
    """CIFAR's binary version: records of `labels` bytes (the last is the class) and 3×32×32 bytes."""
    wanted = (*train, test, names)
    files = _folder_files(path, wanted) if path.is_dir() else _archive_files(path, wanted)
    for name in (*train, test):
        if not files.get(name) or len(files[name]) % (labels + 3072):
            found = f"{len(files[name])} bytes, not records of {labels + 3072}" if name in files else "missing"
            raise CnnjaxError(f"{path}: {name} is {found}{_holds(path)}")
    splits = {}
    for split, parts in (("train", train), ("test", (test,))):
        records = np.frombuffer(b"".join(files[name] for name in parts), np.uint8).reshape(-1, labels + 3072)
        image = records[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        splits[split] = Split(np.ascontiguousarray(image), records[:, labels - 1])
    words = tuple(files.get(names, b"").decode("utf-8", "replace").split())
    return Stored(splits, words if len(words) == classes else tuple(map(str, range(classes))))


def _folder_files(folder: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """The wanted files in a folder, in a folder in it, or in an archive in it."""
    for place in (folder, *sorted(folder.iterdir())):
        if place.is_dir() and (place / wanted[0]).is_file():
            return {name: (place / name).read_bytes() for name in wanted if (place / name).is_file()}
    for place in sorted(folder.glob("*binary.tar.gz")):
        return _archive_files(place, wanted)
    return {}


def _archive_files(path: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """The wanted files in a tar archive. Nothing is unpacked, so no member can land where it should not."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                stream = (
                    archive.extractfile(member)
                    if name in wanted and member.isreg() and member.size <= LARGEST
                    else None
                )
                if stream and name not in files:
                    files[name] = stream.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise CnnjaxError(f"cannot read {path}\nit must be a folder, or a tar.gz archive that is whole") from error
    return files


def download(name: str, *, base: str | None = None, cache: Path | None = None) -> Path:
    """Download the files of a data set into the cache, unless they are there, and return their folder.

    `cache` is by default `cache_folder()`. The sha256 of every file is checked each time.
    """
    original = ORIGINALS[name]
    folder = (cache or cache_folder()) / name
    for file, sha256 in original.sha256.items():
        try:
            fetch((base or original.base) + file, folder / file, f"sha256:{sha256}", recheck=True, largest=LARGEST)
        except CnnjaxError as error:
            raise CnnjaxError(
                f"cannot download {name} into {folder}: {error}\n"
                f"where you have the files, say {name}:PATH (the folder of {', '.join(original.sha256)})\n"
                "mnist5k needs no network"
            ) from error
    return folder


FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

# fmt: off
ORIGINALS = {
    "mnist": Original(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        {"train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
         "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
         "t10k-images-idx3-ubyte.gz":  "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
         "t10k-labels-idx1-ubyte.gz":  "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"},
        functools.partial(_read_mnist, classes=tuple("0123456789")),
    ),
    "fashion_mnist": Original(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        {"train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
         "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
         "t10k-images-idx3-ubyte.gz":  "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
         "t10k-labels-idx1-ubyte.gz":  "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"},
        functools.partial(_read_mnist, classes=FASHION),
    ),
    "cifar10": Original(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
        functools.partial(_read_cifar, train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)), test="test_batch.bin",
                          names="batches.meta.txt", labels=1, classes=10),
    ),
    "cifar100": Original(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-100-binary.tar.gz": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"},
        functools.partial(_read_cifar, train=("train.bin",), test="test.bin", names="fine_label_names.txt", labels=2,
                          classes=100),
    ),
}
# fmt: on
