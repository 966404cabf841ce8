"""Checkpoints: what training carries, as arrays by name, beside a few facts that must agree before they are loaded.

A state is stored flat, `{"params.conv1.kernel": …, "opt_state.2.trace.conv1.kernel": …}`, so that what is on disk can
be compared with what is wanted before anything is read.

STEP           a checkpoint: orbax's files, facts.json, and the SHA-256 of each of them in MANIFEST.sha256
STEP.partial   one that is being written; it is renamed when all of it and its manifest are on the disk, so that one
               that was killed half-way is never seen again, and one without a manifest is damaged
STEP.corrupt   one whose files were no longer as they had been written
.lock          locked by the process that writes here
"""

import contextlib
import dataclasses
import errno
import fcntl
import importlib.metadata
import json
import logging
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cnnjax.errors import CnnjaxError, differences
from cnnjax.train import manifest
from cnnjax.train.state import Tree

Facts = Mapping[str, Any]


class NotSaved(CnnjaxError):
    """The disk is full or the folder no longer to be written; the older checkpoints are as they were."""

    exit_code = os.EX_IOERR


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in `folder`, to be read; `opened` is for writing.

    Saving keeps the newest `keep` of them and, where `best` names a fact, the one where that is lowest.
    """

    folder: Path
    keep: int = 2
    best: str | None = None
    whole: dict[int, Facts] = dataclasses.field(default_factory=dict)  # the facts of those found to be whole


@contextlib.contextmanager
def opened(folder: Path, *, keep: int = 2, best: str | None = None) -> Iterator[Checkpoints]:
    """The checkpoints in `folder`, which is made and is ours until the block ends; what killed saves left is removed.

    Raises `CnnjaxError` where the folder cannot be written or somebody else writes there.
    """
    with contextlib.ExitStack() as stack:
        if _leads():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(open(folder / ".lock", "a"))
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for left in folder.glob("*.partial*"):
                    shutil.rmtree(left)
            except BlockingIOError:
                raise CnnjaxError(f"another process keeps its checkpoints in {folder}") from None
            except OSError as error:
                raise CnnjaxError(f"cannot keep checkpoints in {folder}: {error.strerror or error}") from None
        yield Checkpoints(folder, keep, best)


def latest(saved: Checkpoints) -> int | None:
    """The step of the newest checkpoint that is whole, or None. Those that are not are set aside, with a warning."""
    steps = reversed(_steps(saved)) if _leads() else ()
    return _agreed(next((step for step in steps if _whole(saved, step) is not None), None))


def best(saved: Checkpoints, fact: str = "error") -> int | None:
    """The step of the checkpoint, among those that are whole, where `fact` is lowest; None where none has it."""
    steps = _steps(saved) if _leads() else ()
    told = {step: (_whole(saved, step) or {}).get(fact) for step in steps}
    told = {step: value for step, value in told.items() if value is not None}
    return _agreed(min(told, key=told.__getitem__, default=None))


def facts(saved: Checkpoints, step: int) -> Facts:
    """The facts that were saved with checkpoint `step`. Raises `CnnjaxError` where it is not there or not whole."""
    told = _whole(saved, step)
    if told is None:
        raise CnnjaxError(f"there is no whole checkpoint {step} in {saved.folder}\nthere are: {_steps(saved)}")
    return told


def save(saved: Checkpoints, step: int, state: Tree, facts: Facts) -> None:
    """Writes `state` and `facts` (JSON) as checkpoint `step`, and returns when they are on the disk.

    Raises `NotSaved` where they cannot be written.
    """
    from orbax.checkpoint import v1 as ocp

    partial = saved.folder.resolve() / f"{step}.partial"
    named = _named(state)
    try:
        with _quiet():
            ocp.save(str(partial), named)
        if _leads():
            (partial / "facts.json").write_text(json.dumps(facts))
            manifest.write(partial)
            partial.rename(saved.folder / str(step))
            manifest.sync(saved.folder)
    except (OSError, ValueError) as error:
        for left in saved.folder.glob("*.partial*"):
            shutil.rmtree(left, ignore_errors=True)
        raise _not_saved(saved, step, named, error) from None
    saved.whole[step] = dict(facts)
    _remove_old(saved)


def restore(saved: Checkpoints, step: int, like: Tree) -> Tree:
    """Checkpoint `step` as a tree like `like`, whose leaves have a shape, a dtype and a sharding.

    Raises `CnnjaxError` where the checkpoint is not there or not whole, and with a table of differences where names,
    shapes or dtypes do not agree; nothing is read then.
    """
    from orbax.checkpoint import v1 as ocp

    facts(saved, step)
    folder = saved.folder.resolve() / str(step)
    want = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in _named(like).items()
    }
    with _reading(folder):
        have = dict(ocp.metadata(str(folder)).metadata)
    error = differences(
        f"checkpoint {step} in {saved.folder} does not fit",
        {name: _shape(leaf) for name, leaf in have.items()},
        {name: _shape(leaf) for name, leaf in want.items()},
    )
    if error is not None:
        raise error
    with _reading(folder):
        loaded = ocp.load(str(folder), want)
    return jax.tree.unflatten(jax.tree.structure(like), [loaded[name] for name in want])


def _leads() -> bool:
    """Whether this process is the one, of those that train together, that looks after the folder."""
    return jax.process_index() == 0


def _agreed(step: int | None) -> int | None:
    """What the leading process says, in all of them."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        step = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if step is None else step)))
    return None if step == -1 else step


def _steps(saved: Checkpoints) -> list[int]:
    if not saved.folder.is_dir():
        return []
    return sorted(int(path.name) for path in saved.folder.iterdir() if path.name.isdecimal())


def _whole(saved: Checkpoints, step: int) -> Facts | None:
    """The facts of checkpoint `step`, whose files are compared with their manifest once; None if they are not whole."""
    folder = saved.folder / str(step)
    if step not in saved.whole and folder.exists():
        wrong = manifest.damage(folder) if _leads() else None
        if wrong is None:
            saved.whole[step] = json.loads((folder / "facts.json").read_text())
        else:
            print(f"warning: {folder} is damaged and passed over: {wrong}", file=sys.stderr)
            with contextlib.suppress(OSError):  # where nothing can be renamed it stays
                shutil.rmtree(aside := folder.with_suffix(".corrupt"), ignore_errors=True)
                folder.rename(aside)
    return saved.whole.get(step)


def _remove_old(saved: Checkpoints) -> None:
    steps = _steps(saved)
    kept = {*steps[-saved.keep :], *([best(saved, saved.best)] if saved.best else [])}
    for step in steps if _leads() else []:
        if step not in kept:
            gone = saved.folder / f"{step}.partial"
            (saved.folder / str(step)).rename(gone)  # at once: a checkpoint is whole, or it is not there
            shutil.rmtree(gone, ignore_errors=True)


def _not_saved(saved: Checkpoints, step: int, named: Mapping[str, Any], error: Exception) -> Exception:
    """What to raise for what came up in writing: only what the disk said is a `NotSaved`."""
    number = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's way to say it
    code = error.errno if isinstance(error, OSError) else int(number[1]) if number else None
    if code is None:
        return error
    lines = [f"cannot save checkpoint {step} in {saved.folder}: {os.strerror(code)}"]
    if code in (errno.ENOSPC, errno.EDQUOT):
        need = sum(leaf.nbytes for leaf in named.values()) / 1e6
        lines[0] += f"; it needs about {need:.1f} MB, {shutil.disk_usage(saved.folder).free / 1e6:.1f} MB are free"
    if there := _steps(saved):
        lines.append(f"checkpoint {there[-1]} is there, and the same command goes on from it")
    return NotSaved("\n".join(lines))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what orbax's threads say of an error: pages about the one that is raised, and some come after it."""
    log = logging.getLogger("absl")
    level, hook = log.level, sys.unraisablehook
    log.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        for thread in threading.enumerate():
            if type(thread).__module__.startswith("orbax."):
                thread.join(timeout=60)
        log.setLevel(level)
        sys.unraisablehook = hook


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Around orbax where the files are as they were written: what it raises there is that it cannot read them."""
    try:
        with _quiet():
            yield
    except Exception as error:
        version = importlib.metadata.version("orbax-checkpoint")
        raise CnnjaxError(f"orbax-checkpoint {version} cannot read {folder}: {str(error)[:200]}") from error


def _named(tree: Tree) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _shape(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"
