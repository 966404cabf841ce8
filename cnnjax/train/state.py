"""What training carries from step to step, and how it begins."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cnnjax.errors import CnnjaxError

Tree = Any  # of arrays
Layers = dict[str, Tree]  # parameters or statistics by layer name


class State(NamedTuple):
    """All that training carries and all that is saved.

    `step`: int32, the number of updates made. `params`, `stats`: float32, by layer.
    `opt_state`: of the trained layers alone.
    `ema`: running averages of the variables, {"params": …, "batch_stats": …}, or None.
    """

    step: jax.Array
    params: Layers
    stats: Layers
    opt_state: Tree
    ema: Tree | None = None


def split(layers: Mapping[str, Tree], frozen: frozenset[str]) -> tuple[Layers, Layers]:
    """`layers` as (those trained, those held)."""
    return (
        {name: tree for name, tree in layers.items() if name not in frozen},
        {name: tree for name, tree in layers.items() if name in frozen},
    )


def merge(trained: Layers, held: Layers) -> Layers:
    """The inverse of `split`."""
    return {**trained, **held}


def variables(state: State) -> dict[str, Layers]:
    """What a network is evaluated with: the running averages where there are any, else parameters and statistics."""
    return {"params": state.params, "batch_stats": state.stats} if state.ema is None else state.ema


# The initialisers of a big net compile as long as its step; without optimisation they compile several times faster.
# The values differ in the last bits from those of an optimised initialiser, so every state begins here.
@functools.partial(
    jax.jit,
    static_argnames=("net", "tx", "image_shape", "frozen", "average"),
    compiler_options={"xla_backend_optimization_level": 0},
)
def create(
    net: Any,
    tx: optax.GradientTransformation,
    key: jax.Array,
    image_shape: tuple[int, ...],
    *,
    frozen: frozenset[str] = frozenset(),
    average: bool = False,
) -> State:
    """The state before the first step, from one compiled program for all keys.

    `image_shape`: (height, width, channels) of what the network sees. `average`: keep running averages of the
    variables. Raises `CnnjaxError` where `frozen` names a layer that the network lacks, or leaves nothing to train.
    """
    made = net.init({"params": key, "dropout": key}, jnp.zeros((1, *image_shape)), frozen=frozen)
    params, stats = made["params"], made.get("batch_stats", {})
    trained, _ = split(params, frozen)
    if not trained:
        raise CnnjaxError("every layer with parameters is frozen; nothing is left to train")
    ema = {"params": params, "batch_stats": stats} if average else None
    return State(jnp.zeros((), jnp.int32), params, stats, tx.init(trained), ema)
