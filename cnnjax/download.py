"""Large files from the network: resumed where they broke off, under their name only when they are whole and right."""

import contextlib
import fcntl
import hashlib
import os
import re
import sys
import time
import urllib.parse
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from cnnjax.errors import CnnjaxError

CHUNK = 1 << 20
ATTEMPTS = 4
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def cache_folder() -> Path:
    """Where downloads are kept: $CNNJAX_CACHE, else cnnjax in the user's cache folder."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(os.environ.get("CNNJAX_CACHE") or user / "cnnjax").expanduser()


def fetch(
    url: str,
    path: Path,
    digest: str | None = None,
    *,
    recheck: bool = False,
    largest: int = 1 << 32,
    pause: float = 1.0,
) -> Path:
    """The file at `url` as `path`. What is there already was checked when it came, and again only with `recheck`.

    `digest`: "sha256:…", "sha1:…" or "md5:…", or how it begins; of a zip, it may be that of its one member. A download
    that breaks off is resumed, `ATTEMPTS` times now and by the next call, if the server says that it is still the same
    file. `pause`: seconds before the first time, twice as many before each next.

    Raises `CnnjaxError` where the file cannot be had or is another one; `path` is not written then.
    """
    if path.is_file() and not (recheck and digest and _digest(path, digest) != digest):
        return path
    import http.client

    _legal(url, digest)
    part, tag = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.etag")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(part):
            _complete(url, part, tag, digest, largest, pause)
            found = digest and _digest(part, digest)
            if found != digest:
                size = part.stat().st_size
                part.unlink()
                tag.unlink(missing_ok=True)
                raise CnnjaxError(f"{url} is not the file it should be ({size:,} bytes)\nit is {found}\nnot {digest}")
            part.replace(path)
            tag.unlink(missing_ok=True)
    except (OSError, http.client.HTTPException) as error:
        raise CnnjaxError(f"cannot download {url}: {error}") from error
    return path


def _complete(url: str, part: Path, tag: Path, digest: str | None, largest: int, pause: float) -> None:
    """Fetches until `part` is whole. What fails before a byte has come is not tried again."""
    import http.client

    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        before = part.stat().st_size
        try:
            if _continue(url, part, tag, digest, largest):
                return
        except (OSError, http.client.HTTPException):
            if part.stat().st_size == before:
                raise
    raise CnnjaxError(
        f"{url} broke off {ATTEMPTS} times; {part.stat().st_size:,} bytes are kept\nthe same command goes on from there"
    )


def _legal(url: str, digest: str | None) -> None:
    """Without encryption only what a whole hash identifies, or what comes from this machine."""
    parts = urllib.parse.urlsplit(url)
    kind, _, value = (digest or "md5:").partition(":")
    known = len(value) == 2 * hashlib.new(kind).digest_size
    if parts.scheme != "https" and not (parts.scheme == "http" and (known or parts.hostname in LOOPBACK)):
        raise CnnjaxError(f"{url} is no https address, and nothing would tell whether the file was changed on its way")


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Two processes that download the same file do not write into each other's."""
    with open(part, "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CnnjaxError(f"another process is downloading {part.stem}; wait for it") from None
        try:
            yield
        finally:
            if part.is_file() and not part.stat().st_size:
                part.unlink()


def _continue(url: str, part: Path, tag: Path, digest: str | None, largest: int) -> bool:
    """Adds to `part` what the server sends; whether it is whole now."""
    import urllib.request

    have, before = (part.stat().st_size, tag.read_text()) if tag.is_file() else (0, "")
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", before)
    with urllib.request.urlopen(request, timeout=30) as response:
        _legal(response.url, digest)
        resumed = have if have and response.status == 206 else 0
        if resumed and not re.match(rf"bytes {have}-", response.headers.get("Content-Range", "")):
            raise OSError(f"the server sent {response.headers.get('Content-Range')!r}, not the rest of the file")
        length = response.headers.get("Content-Length")
        total = None if length is None else resumed + int(length)
        if (total or 0) > largest:
            raise CnnjaxError(f"{url} is {total:,} bytes; at most {largest:,} are downloaded")
        if mark := response.headers.get("ETag") or response.headers.get("Last-Modified"):
            tag.write_text(mark)
        else:
            tag.unlink(missing_ok=True)  # nothing could tell whether the rest belongs to it
        with open(part, "ab" if resumed else "wb") as file:
            size = _copy(response, file, part.stem, resumed, total, largest)
    return total is None or size == total


def _copy(response: Any, file: IO[bytes], name: str, size: int, total: int | None, largest: int) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(file=sys.stderr, highlight=False)
    if not console.is_terminal:
        console.print(f"downloading {name}" + (f" ({total / 1e6:,.1f} MB)" if total else ""))
    columns = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=total, completed=size)
        while chunk := response.read(CHUNK):
            size += len(chunk)
            if size > largest:
                raise CnnjaxError(f"{name} is larger than {largest:,} bytes")
            file.write(chunk)
            bar.update(task, completed=size)
    return size


def _digest(path: Path, wanted: str) -> str:
    """As long as `wanted`; of the one member of a zip, where that is the right one."""
    kind = wanted.partition(":")[0]
    with open(path, "rb") as file:
        found = _short(kind, file, wanted)
    if found != wanted and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if len(members) == 1:
                with archive.open(members[0]) as file:
                    inner = _short(kind, file, wanted)
                return inner if inner == wanted else found
    return found


def _short(kind: str, file: IO[bytes], wanted: str) -> str:
    hashed = hashlib.new(kind)
    while chunk := file.read(CHUNK):
        hashed.update(chunk)
    return f"{kind}:{hashed.hexdigest()}"[: len(wanted)]
