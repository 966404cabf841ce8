"""Layers written out in NumPy, in float64, for a second opinion; and probes of our own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from narrow import compiled

from cnnjax.models.chain import Chain
from cnnjax.models.surgery import map_modules


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def conv(x: np.ndarray, kernel: np.ndarray, *, stride: int = 1, pad: int = 0) -> np.ndarray:
    """Cross-correlation of [batch, height, width, in] with [height, width, in, out], position by position."""
    x = np.pad(np.asarray(x, np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    kh, kw = kernel.shape[:2]
    height, width = (x.shape[1] - kh) // stride + 1, (x.shape[2] - kw) // stride + 1
    y = np.empty((len(x), height, width, kernel.shape[3]))
    for i in range(height):
        for j in range(width):
            y[:, i, j] = np.tensordot(x[:, i * stride : i * stride + kh, j * stride : j * stride + kw], kernel, 3)
    return y


def norm(x: np.ndarray, params, stats, *, epsilon: float = 1e-5) -> np.ndarray:
    """Batch normalisation by running statistics."""
    return params["scale"] * (x - stats["mean"]) / np.sqrt(stats["var"] + epsilon) + params["bias"]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def scrambled(module: nn.Module, images: np.ndarray, seed: int = 0) -> dict:
    """Variables of a network or a row in which no scale is 1, no bias 0 and no statistic neutral, as NumPy arrays."""
    inputs = (images,) if isinstance(module, Chain) else (images, False)
    tree = jax.eval_shape(lambda key: module.init({"params": key}, *inputs), jax.random.key(0))
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = random.standard_normal(leaf.shape, np.float32)
        match path[-1].key:
            case "kernel":
                return noise * np.float32(np.sqrt(2 / np.prod(leaf.shape[:-1])))
            case "scale" | "var":
                return np.exp(np.float32(0.3) * noise)
        return np.float32(0.3) * noise

    return jax.tree_util.tree_map_with_path(draw, tree)


def modules(net: Chain) -> list[nn.Module]:
    """Every module of a network in order, those inside blocks before their block."""
    found: list[nn.Module] = []
    map_modules(net, lambda module: found.append(module) or module)
    return found


def evaluate(row: nn.Module, variables: dict, x: np.ndarray) -> jax.Array:
    """What one row gives at inference."""
    return compiled(lambda v, x: row.apply(v, x, False))(variables, x)


def leaves_without_gradient(net: Chain, images: np.ndarray) -> list[str]:
    """The parameters whose gradient, of a loss that no symmetry makes flat, is zero everywhere or not finite."""
    variables = scrambled(net, images)

    def loss(params):
        y = net.apply({**variables, "params": params}, images).logits
        return (y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)).sum()

    gradient = compiled(jax.grad(loss))(variables["params"])
    return [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.tree.map(np.asarray, gradient))
        if not (np.isfinite(leaf).all() and leaf.any())
    ]
