"""Checkpoints: what training carries, as arrays by name, beside a few facts that must agree before they are loaded.

A state is stored flat, `{"params.conv1.kernel": …, "opt_state.2.trace.conv1.kernel": …}`, so that what is on disk can
be compared with what is wanted before anything is read. Saves are atomic: one that was killed half-way is never seen
again.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from cnnjax.errors import CnnjaxError
from cnnjax.train.state import Tree

Checkpointer = Any  # orbax's, which is imported where it is used


@contextlib.contextmanager
def opened(folder: Path, *, keep: int = 2) -> Iterator[Checkpointer]:
    """The checkpoints in `folder`, which is made; saving keeps the newest `keep` and removes what killed saves left.

    Raises `CnnjaxError` where the folder cannot be written.
    """
    from orbax.checkpoint import v1 as ocp

    try:
        folder.mkdir(parents=True, exist_ok=True)
        checkpointer = ocp.training.Checkpointer(
            str(folder.resolve()),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),  # pyright: ignore[reportArgumentType]
            cleanup_tmp_directories=True,
        )
    except OSError as error:
        raise CnnjaxError(f"cannot keep checkpoints in {folder}: {error.strerror or error}") from None
    with checkpointer:
        yield checkpointer


def latest(checkpointer: Checkpointer) -> int | None:
    """The step of the newest checkpoint, or None."""
    newest = checkpointer.latest
    return None if newest is None else newest.step


def save(checkpointer: Checkpointer, step: int, state: Tree, facts: Mapping[str, Any]) -> None:
    """Writes `state` and `facts` (JSON) as checkpoint `step`, and returns when they are on the disk."""
    checkpointer.save(step, _named(state), force=True, custom_metadata=dict(facts))


def facts(checkpointer: Checkpointer, step: int) -> dict[str, Any]:
    """The facts that were saved with checkpoint `step`."""
    return checkpointer.metadata(step).custom_metadata


def restore(checkpointer: Checkpointer, step: int, like: Tree) -> Tree:
    """Checkpoint `step` as a tree like `like`, whose leaves have a shape, a dtype and a sharding.

    Raises `CnnjaxError` with a table of differences where names, shapes or dtypes do not agree; nothing is read then.
    """
    want = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in _named(like).items()
    }
    have = checkpointer.metadata(step).metadata
    differences = {
        "missing": [name for name in want if name not in have],
        "unexpected": [name for name in have if name not in want],
        "different": [
            f"{name}: have {_shape(have[name])}, want {_shape(leaf)}"
            for name, leaf in want.items()
            if name in have and _shape(have[name]) != _shape(leaf)
        ],
    }
    if any(differences.values()):
        rows = [f"  {kind}: {_some(names)}" for kind, names in differences.items() if names]
        raise CnnjaxError("\n".join([f"checkpoint {step} in {checkpointer.directory} does not fit:", *rows]))
    loaded = checkpointer.load(step, want)
    return jax.tree.unflatten(jax.tree.structure(like), [loaded[name] for name in want])


def fingerprint(value: Any, path: str = "") -> dict[str, Any]:
    """`value` as flat JSON, `{"net.layers.0.module.features": 96, …}`: equal in every process for equal settings.

    Records list the fields that are not at their defaults, so that a field added later changes nothing.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return {path: value}
    if isinstance(value, Mapping):
        items = dict(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        linen = {"parent", "name"} if isinstance(value, nn.Module) else set()
        fields = [field for field in dataclasses.fields(value) if field.name not in linen]
        told = {field.name: getattr(value, field.name) for field in fields}
        items = {"": type(value).__name__, **{f.name: told[f.name] for f in fields if told[f.name] != f.default}}
    elif isinstance(value, tuple | list):
        items = dict(enumerate(value))
    elif isinstance(value, set | frozenset):
        items = dict(enumerate(sorted(value)))
    else:
        name = getattr(value, "__qualname__", None) or re.sub(r" at 0x[0-9a-f]+", "", repr(value))
        return {path: name}
    return {
        name: leaf
        for key, item in items.items()
        for name, leaf in fingerprint(item, f"{path}.{key}".strip(".")).items()
    }


def check(folder: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises `CnnjaxError` naming the settings in which the run in `folder` differs from this one."""
    different = [
        f"  {name}: saved {saved.get(name)!r}, now {now.get(name)!r}"
        for name in dict.fromkeys((*saved, *now))
        if saved.get(name) != now.get(name)
    ]
    if different:
        more = [f"  and {len(different) - 3} more"] if len(different) > 3 else []
        raise CnnjaxError("\n".join([f"{folder} holds a run with other settings:", *different[:3], *more]))


def _named(tree: Tree) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _shape(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _some(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
