"""A data set in folders: one subfolder per class, or per split and class."""

import os
from pathlib import Path

import numpy as np

from cnnjax.data.splits import EncodedImages, Split, Stored
from cnnjax.errors import CnnjaxError

SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


def read(where: str) -> Stored:
    """Read PATH/CLASS/…/IMAGE or, where all subfolders are called train, val, validation or test, PATH/SPLIT/CLASS/….

    Classes are the sorted names of the subfolders. Every file is taken for an image but the hidden ones. Nothing is
    decoded yet.

    Raises: CnnjaxError where there is no class, a class is empty, or a class is tested and not trained.
    """
    root = Path(where).expanduser()
    if not root.is_dir():
        raise CnnjaxError(f"folder:{where}: there is no folder {root}")
    parts = _subfolders(root)
    if not parts or not set(parts) <= SPLITS.keys():
        return _stored(where, {"all": parts})
    if {"val", "validation"} <= parts.keys():
        raise CnnjaxError(f"folder:{where} has both val and validation\nkeep one of them")
    return _stored(where, {SPLITS[name]: _subfolders(path) for name, path in parts.items()})


def _stored(where: str, splits: dict[str, dict[str, Path]]) -> Stored:
    for split, folders in splits.items():
        place = f"folder:{where}" + (f" ({split})" if split != "all" else "")
        if not folders:
            raise CnnjaxError(f"{place} has no subfolders\nthere must be one per class, with its images")
        if "train" in splits and (strange := sorted(folders.keys() - splits["train"].keys())):
            raise CnnjaxError(f"{place} has classes that train has not: {', '.join(strange[:5])}")
    classes = tuple(sorted(set().union(*splits.values())))
    return Stored({split: _split(f"folder:{where}", folders, classes) for split, folders in splits.items()}, classes)


def _split(name: str, folders: dict[str, Path], classes: tuple[str, ...]) -> Split:
    files = {label: _files(folder) for label, folder in folders.items()}
    for label, found in files.items():
        if not found:
            raise CnnjaxError(f"{name}: the class folder {folders[label]} is empty")
    labels = [np.full(len(files[label]), number, np.int32) for number, label in enumerate(classes) if label in files]
    items = [path for label in classes for path in files.get(label, ())]
    return Split(EncodedImages(items, np.arange(len(items)), name), np.concatenate(labels))


def _subfolders(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")}


def _files(folder: Path) -> list[str]:
    found = []
    for place, subfolders, files in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [os.path.join(place, name) for name in files if not name.startswith(".")]
    return sorted(found)
