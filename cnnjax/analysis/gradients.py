"""How much gradient reaches each layer of a network."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cnnjax.models.chain import Chain, Output
from cnnjax.models.deep import Stack

LEAST = 1e-37  # float32 knows hardly any smaller number
Loss = Callable[[Output, jax.Array], jax.Array]


# Each network is looked at a few times only: compiling costs more than running.
_compiled = functools.partial(
    jax.jit, static_argnames=("net", "loss"), compiler_options={"xla_backend_optimization_level": 0}
)


@_compiled
def gradient_norms(
    net: Chain, loss: Loss, variables: Mapping[str, Any], images: jax.Array, labels: jax.Array
) -> dict[str, jax.Array]:
    """By layer, log10 of the norm of the gradient of its parameters: a scalar, or [depth] for a `Stack`.

    The gradient is that of the mean loss over the batch in training, without dropout; nothing below 10^-37 is told
    apart. Layers without parameters are left out.
    """
    return _norms(net, loss, variables, images, labels)


@_compiled
def initial_gradient_norms(
    net: Chain, loss: Loss, key: jax.Array, images: jax.Array, labels: jax.Array
) -> dict[str, jax.Array]:
    """`gradient_norms` of the network with the weights that `key` gives it: one program for all keys."""
    return _norms(net, loss, net.init(key, images[:1]), images, labels)


def _norms(net: Chain, loss: Loss, variables: Mapping[str, Any], images: jax.Array, labels: jax.Array) -> Any:
    def mean(params):
        output, _ = net.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return loss(output, labels).mean()

    def norm(name: str, tree: Any) -> jax.Array:
        stacked = isinstance(net[name], Stack)
        squares = [jnp.square(leaf).sum(tuple(range(int(stacked), leaf.ndim))) for leaf in jax.tree.leaves(tree)]
        return jnp.log10(jnp.maximum(jnp.sqrt(sum(squares, jnp.zeros(()))), LEAST))

    grads = jax.grad(mean)(variables["params"])
    return {name: norm(name, grads[name]) for name in net.names if name in grads}
