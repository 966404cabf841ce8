"""Where the weights of a network are, and what the tables of other libraries' names call these places.

A layer is called by the names of the rows down to it, joined by "/": "conv4_2/conv1", "inception_4a/3x3". Inside the
Inception modules, whose own names say kernels and not places, it is "Mixed_6b/2/1" for step 1 of branch 2, "Mixed_6b/0"
for the only step of a branch, "Mixed_6b/3/pool" for the one behind a mean, "Mixed_7b/1/1a" for an arm of a fork.
"""

from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn

from cnnjax.models.chain import Block, Chain, Concat, Layer, Residual, Rows
from cnnjax.models.layers import AvgPool, BatchNorm, Conv, Dense, GlobalAvgPool


class Site(NamedTuple):
    """A layer with weights: where it is in our trees, and what it is called."""

    path: tuple[str, ...]
    name: str
    module: nn.Module
    maps: int = 1
    """Of a fully connected layer that reads maps, how many they are."""


def sites(net: Chain) -> Iterator[Site]:
    """Every layer with weights, in the order of the rows, those of the training heads last."""
    yield from _rows(net.layers, (), "")
    for head in net.aux:
        yield from _rows((Layer(head.name, head.module),), (), "")


def _rows(rows: Rows, path: tuple[str, ...], name: str) -> Iterator[Site]:
    maps = 1
    for row in rows:
        here, called = (*path, row.name), f"{name}/{row.name}".removeprefix("/")
        match row.module:
            case Conv(features=maps):
                yield Site(here, called, row.module)
            case BatchNorm():
                yield Site(here, called, row.module)
            case Dense():
                yield Site(here, called, row.module, maps)
                maps = 1
            case GlobalAvgPool():
                maps = 1
            case Block(layers=inner) if row.name.startswith("Branch_"):
                yield from _branch(inner, here, f"{name}/{row.name.removeprefix('Branch_')}")
            case Block(layers=inner):
                yield from _rows(inner, here, called)
            case Concat(branches=branches):
                for inner in branches:
                    yield from _rows(inner, here, called)
            case Residual(body=body, shortcut=shortcut):
                yield from _rows((*body, *shortcut), here, called)


def _branch(rows: Rows, path: tuple[str, ...], name: str) -> Iterator[Site]:
    steps = [row for row in rows if isinstance(row.module, (Conv, Concat))]
    pooled = any(isinstance(row.module, AvgPool) for row in rows)
    for i, row in enumerate(steps):
        step = f"{name}/pool" if pooled else name if len(steps) == 1 else f"{name}/{i}"
        if isinstance(row.module, Concat):
            for letter, (arm,) in zip("ab", row.module.branches, strict=True):
                yield Site((*path, row.name, arm.name), step + letter, arm.module)
        else:
            yield Site((*path, row.name), step, row.module)
