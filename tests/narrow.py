"""Narrow members of a family for tests, and how to run them without compiling for longer than running."""

import functools
from typing import Any

import jax

from cnnjax.models import chain
from cnnjax.models.chain import Chain
from cnnjax.models.surgery import map_modules, with_head

# The kernels of random numbers take XLA:CPU seconds apiece, one by one or optimised.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def narrow(net: Chain, *, by: int = 8, classes: int = 10) -> Chain:
    """The network with every number of maps and units divided by `by` (rounded down, one at least)."""
    net = map_modules(net, lambda m: m.clone(features=max(1, m.features // by)) if hasattr(m, "features") else m)
    return with_head(net, classes)


def initial(net: Chain, key: jax.Array, images: jax.Array) -> dict:
    """The variables of `net`."""
    return compiled(net.init)({"params": key}, images)


def applied(net: Chain, variables: dict, images: jax.Array, *, dropout: jax.Array | None = None, **options: Any) -> Any:
    """`net.apply` with static options; `dropout` is a key."""
    rngs = {} if dropout is None else {"dropout": dropout}
    return compiled(lambda v, x, r: net.apply(v, x, rngs=r, **options))(variables, images, rngs)


def features(net: Chain, variables: dict, images: jax.Array, at: tuple[str, ...]) -> dict[str, jax.Array]:
    """What the layers `at` give."""
    return compiled(lambda v, x: chain.features(net, v, x, at))(variables, images)
