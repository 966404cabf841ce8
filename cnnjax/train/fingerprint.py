"""What must be the same when a run goes on: its settings, as flat JSON."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn

from cnnjax.errors import CnnjaxError


def of(value: Any, path: str = "") -> dict[str, Any]:
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
    return {name: leaf for key, item in items.items() for name, leaf in of(item, f"{path}.{key}".strip(".")).items()}


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
