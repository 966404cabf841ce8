"""The SHA-256 of every file of a folder, in a file that `sha256sum --check MANIFEST.sha256` understands as well."""

import hashlib
import os
from pathlib import Path

NAME = "MANIFEST.sha256"


def write(folder: Path) -> None:
    """Writes the manifest. When it returns, all of `folder` is on the disk, where a power cut leaves it."""
    (folder / NAME).write_text(_text(_digests(folder)))
    for path in (folder, *folder.rglob("*")):
        sync(path)


def sync(path: Path) -> None:
    """Waits until a file, or what a folder says of its entries, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(folder: Path) -> str | None:
    """What is wrong with the first file that is not as it was when the manifest was written; None if nothing is."""
    try:
        text, have = (folder / NAME).read_text(errors="replace"), _digests(folder)
    except FileNotFoundError:
        return f"{NAME} is missing"
    except OSError as error:
        return f"{error.filename or NAME} cannot be read: {error.strerror}"
    if text == _text(have):
        return None
    want = {name: digest for digest, _, name in (line.partition("  ") for line in text.splitlines())}
    for name in want:
        if name not in have:
            return f"{name} is missing"
        if want[name] != have[name]:
            return f"{name} has changed"
    return f"{next((name for name in have if name not in want), NAME)} is not in {NAME}"


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    return {path.relative_to(folder).as_posix(): _digest(path) for path in files}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text(digests: dict[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())
