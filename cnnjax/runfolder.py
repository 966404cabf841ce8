"""The folder of a run: one run, one writer.

config.json     what was asked for, every field; written when the training begins
results.json    what came out; there when the run is finished, and only then
.lock           locked by the process at work here; names its pid and host
VARIANT/seed-K  the single trainings
"""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from cnnjax.errors import CnnjaxError


def write_json(path: Path, value: Any) -> None:
    """Writes `value`, whole or not at all: a reader never sees half a file."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a `CnnjaxError` where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CnnjaxError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # also what is not UTF-8
        raise CnnjaxError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CnnjaxError(f"{path} holds {type(value).__name__}, not an object with fields")
    return value


@contextlib.contextmanager
def opened(
    folder: Path, config: dict[str, Any], *, fresh: bool = False, growing: Collection[str] = ()
) -> Iterator[None]:
    """Makes `folder` ours until the block ends: nobody else in it, and no other run's results.

    fresh: what is there is renamed to `FOLDER.1` (the first free number), and an empty folder takes its place.
    growing: numbers of the configuration that may be larger than there, for what is there is then a part of the run.
    Raises `CnnjaxError` where the folder cannot be written, is in use, or holds another run or something else.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_locked(folder))
        _refuse_another_run(folder, None if fresh else config, growing)
        if fresh and (folder / "config.json").exists():
            number = next(n for n in range(1, 10**6) if not folder.with_name(f"{folder.name}.{n}").exists())
            folder.rename(folder.with_name(f"{folder.name}.{number}"))
            stack.enter_context(_locked(folder))
        yield


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 (closed below, after the try)
    except OSError as error:
        raise CnnjaxError(
            f"cannot write in {folder}: {error.strerror}\ngive a folder that can be written with --workdir DIR"
        ) from error
    with file:
        try:
            # lockf: its lock belongs to this process alone, goes when that dies, and is not kept by forked workers
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise CnnjaxError(
                f"{folder} is in use by {owner}\nwait until it is done, or give another folder with --workdir DIR"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on host {socket.gethostname()}\n")
        file.flush()
        yield


def _refuse_another_run(folder: Path, config: dict[str, Any] | None, growing: Collection[str]) -> None:
    path = folder / "config.json"
    if not path.exists():
        if strangers := sorted(p.name for p in folder.iterdir() if p.name != ".lock"):
            raise CnnjaxError(
                f"{folder} is not the folder of a run: it holds {', '.join(strangers[:3])} and no config.json\n"
                "give another folder with --workdir DIR"
            )
    elif config is not None:
        there = read_json(path)
        larger = {name for name in growing if name in there and name in config and there[name] < config[name]}
        pairs = {name: (there.get(name), config.get(name)) for name in {**there, **config} if name not in larger}
        if changed := [f"{name} ({old!r} there, {new!r} here)" for name, (old, new) in pairs.items() if old != new]:
            raise CnnjaxError(
                f"{folder} holds a run with another configuration\nit differs in {', '.join(changed)}\n"
                "--fresh starts over and keeps the old folder under another name; --workdir DIR goes elsewhere"
            )
