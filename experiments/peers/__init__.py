"""The same network in other libraries, written with their own layers, for races against them.

A peer is made from the table that our network is made from, and gets our weights; so its parameters and its logits are
ours, and what differs is the library. Each module here has `build(task) -> Running`.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from cnnjax.models import layers as own
from cnnjax.models.chain import Block, Chain, Concat, Residual, Rows
from cnnjax.models.ops import Pads, Pair, pads, pair

LEARNING_RATE, MOMENTUM = 1e-4, 0.9


class Task(NamedTuple):
    """What every peer does: inference, or steps of stochastic gradient descent with momentum on one batch.

    `weights`: ours, {"params": …, "batch_stats": …} of NumPy arrays. `images` float32 [batch, height, width, channels],
    `labels` int32 [batch]. `variant`: which of a library's own ways.
    """

    net: Chain
    weights: Mapping[str, Any]
    images: np.ndarray
    labels: np.ndarray
    train: bool
    dtype: str = "float32"
    variant: str = ""


class Running(NamedTuple):
    """A peer, compiled. `parameters`: how many it trains. `logits` at inference before any step. `losses` of the first
    two steps. `repeat(n)` does n calls and waits for the last. `cold`, `warm`: seconds to compile without and with what
    an earlier process left on the disk; None where nothing is compiled.
    """

    parameters: int
    logits: np.ndarray
    losses: tuple[float, ...]
    repeat: Callable[[int], None]
    cold: float | None
    warm: float | None


@contextlib.contextmanager
def kept_programs() -> Iterator[None]:
    """JAX keeps what it compiles in a folder, for as long as this lasts."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        compilation_cache.reset_cache()
        try:
            yield
        finally:
            jax.config.update("jax_compilation_cache_dir", None)
            compilation_cache.reset_cache()


def leaf(weights: Mapping[str, Any], collection: str, path: tuple[str, ...]) -> Mapping[str, np.ndarray]:
    """The arrays of the layer at `path`; {} where it has none."""
    tree = weights.get(collection, {})
    for name in path:
        tree = tree.get(name, {})
    return tree


def explicit(x_shape: tuple[int, ...], module: Any) -> Pads:
    """Rows and columns that a convolution or pooling adds before and after."""
    window = pair(module.kernel if isinstance(module, own.Conv) else module.window)
    return pads(x_shape, window, pair(module.stride), module.pad, ceil=getattr(module, "ceil", False))


def same(window: Pair, stride: Pair, padding: Pads) -> bool:
    """Whether this padding is what "SAME" gives at stride 1."""
    return stride == (1, 1) and padding == (
        ((window[0] - 1) // 2, window[0] // 2),
        ((window[1] - 1) // 2, window[1] // 2),
    )


def through(library: Any, rows: Rows, x: Any, path: tuple[str, ...] = ()) -> Any:
    """`x` through `rows` in a library whose layers are called on arrays or symbols: the methods of `library` do it."""
    for row in rows:
        x = _layer(library, row.module, x, (*path, row.name))
    return x


def _layer(library: Any, module: Any, x: Any, path: tuple[str, ...]) -> Any:
    match module:
        case Block():
            return through(library, module.layers, x, path)
        case Concat():
            return library.concat([through(library, branch, x, path) for branch in module.branches])
        case Residual():
            body = through(library, module.body, x, path)
            x = through(library, module.shortcut, x, path) + body
            return x if module.act is None else library.activation(module.act, x)
        case own.Conv() | own.Dense():
            x = library.conv(module, x, path) if isinstance(module, own.Conv) else library.dense(module, x, path)
            if module.norm is not None:
                x = library.norm(module.norm, x, (*path, "norm"))
            if module.act is not None:
                x = library.activation(module.act, x)
            return library.dropout(module.dropout, x) if module.dropout else x
        case own.BatchNorm():
            return library.norm(module.norm, x, path)
        case own.MaxPool():
            return library.max_pool(module, x)
        case own.AvgPool():
            return library.avg_pool(module, x)
        case own.GlobalAvgPool():
            return library.global_pool(x)
        case own.LRN():
            return library.lrn(module, module.alpha / module.n if module.alpha_over_n else module.alpha, x)
        case own.Activation():
            return library.activation(module.act, x)
        case own.Dropout():
            return library.dropout(module.rate, x)
    raise TypeError(f"no peer has a layer for {module}")
