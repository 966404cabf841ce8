"""A data set in one NumPy archive."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from cnnjax.data.splits import Split, Stored, select
from cnnjax.errors import CnnjaxError

SPLITS = ("train", "validation", "val", "test")
KEYS = """legal: image uint8 [N, H, W, 3], [N, H, W, 1] or [N, H, W]; label integers [N]; optional: split [N] of
train, validation, val, test; group (or track) [N], equal where images must stay together; classes, their names"""


def read(where: str) -> Stored:
    """Read an .npz archive with the keys of `KEYS`. Pickled content is never loaded.

    Raises: CnnjaxError naming the key that is missing, of another shape or type, or the group that is in two splits.
    """
    path, name = Path(where).expanduser(), f"npz:{where}"
    if not path.is_file():
        raise CnnjaxError(f"{name}: there is no file {path}")
    arrays = _arrays(path, name)
    for key in ("image", "label"):
        if key not in arrays:
            raise CnnjaxError(f"{name} has no {key!r}, it holds: {', '.join(arrays) or 'nothing'}\n{KEYS}")
    image, label = arrays["image"], arrays["label"]
    image = image[..., None] if image.ndim == 3 else image
    if image.ndim != 4 or image.dtype != np.uint8 or image.shape[-1] not in (1, 3) or not image.size:
        raise CnnjaxError(f"{name}: image is {_form(arrays['image'])}\n{KEYS}")
    group = arrays.get("group", arrays.get("track"))
    for key, values in {"label": label, "group": group, "split": arrays.get("split")}.items():
        if values is not None and values.shape != image.shape[:1]:
            raise CnnjaxError(f"{name}: {key} is {_form(values)} and image {_form(image)}\n{KEYS}")
    classes = tuple(map(str, arrays["classes"].ravel())) if "classes" in arrays else None
    if "split" not in arrays:
        return Stored({"all": Split(image, label)}, classes, group)
    return Stored(_splits(name, Split(image, label), arrays["split"], group), classes)


def _arrays(path: Path, name: str) -> dict[str, np.ndarray]:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise CnnjaxError(f"{name} is a single array, not an .npz archive\n{KEYS}")
        with archive:
            return {
                key: archive[key] for key in ("image", "label", "group", "track", "split", "classes") if key in archive
            }
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
        MemoryError,
        NotImplementedError,
    ) as error:
        raise CnnjaxError(
            f"{name} cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}\n{KEYS}"
        ) from error


def _splits(name: str, whole: Split, split: np.ndarray, group: np.ndarray | None) -> dict[str, Split]:
    split = split.astype(str) if split.dtype.kind in "SU" else split
    found = np.unique(split)
    if split.dtype.kind != "U" or not set(found) <= set(SPLITS):
        raise CnnjaxError(f"{name}: split holds {', '.join(map(str, found[:5]))}\nlegal: {', '.join(SPLITS)}")
    if group is not None:
        pairs = np.unique(
            np.stack([np.unique(group, return_inverse=True)[1], np.unique(split, return_inverse=True)[1]], 1), axis=0
        )
        divided = np.flatnonzero(np.bincount(pairs[:, 0]) > 1)
        if len(divided):
            raise CnnjaxError(
                f"{name}: {len(divided)} groups are in more than one split, among them {np.unique(group)[divided[0]]}"
            )
    return {str(part): select(whole, np.flatnonzero(split == part)) for part in found}


def _form(values: np.ndarray) -> str:
    return f"{values.dtype} {list(values.shape)}"
