"""3×3 convolutions of stride 1 with fewer multiplications (Winograd 1980; for networks, Lavin & Gray 2016).

F(m×m, 3×3) makes m×m outputs from a tile of (m + 2)×(m + 2) pixels: Aᵀ[(G k Gᵀ) ⊙ (Bᵀ d B)]A. The product ⊙ sums over
channels, so that it is (m + 2)² matrix products, of tiles × channels and channels × channels: 16/4 multiplications an
output at m = 2, 36/16 at m = 4, where the direct sum has 9. What the transforms cost is little where there are many
channels. In float32 the result is within 10⁻⁶ (m = 2) and 10⁻⁵ (m = 4) of the largest value.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnnjax.models.ops.geometry import Pads


class Transform(NamedTuple):
    """Lavin & Gray 2016, equations 10 and 15, and what a transformed value costs, in multiply-adds of a product.

    `value`: of the tiles and outputs. `weight`: of the kernel. Fitted to XLA:CPU's times for the 35 shapes that the
    benchmark's networks have: on the same timings the choices that follow are on average 2 % slower than the fastest,
    7 % for the gradient of the kernel.
    """

    inputs: np.ndarray
    kernel: np.ndarray
    outputs: np.ndarray
    value: int
    weight: int


# fmt: off
TRANSFORMS = {
    2: Transform(
        np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
        np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]),
        np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
        value=20, weight=45,
    ),
    4: Transform(
        np.array([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0],
                  [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]),
        np.array([[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
                  [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]),
        np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]),
        value=40, weight=75,
    ),
}
# fmt: on
GAIN = 0.9  # of the direct sum's cost, at most
CACHED, WEIGHTS = 12_000_000, 8_000_000  # more transformed values, or weights, than this leave the caches


def best(batch: int, height: int, width: int, channels: int, features: int, *, gradient: bool = False) -> int | None:
    """The m to take for outputs of this size, or None where a direct sum is as fast.

    `gradient`: that of the kernel, whose direct sum is slower, and whose transforms are too. Where these leave the
    caches `products` are faster.
    """
    cost = {}
    for m, transform in TRANSFORMS.items():
        tiles, weights = batch * -(-height // m) * -(-width // m), (m + 2) ** 2 * channels * features
        values = (m + 2) ** 2 * tiles * (channels + features)
        if gradient:  # what many channels save is more than what memory costs
            pays = values <= CACHED // 2 or min(channels, features) > 128
        else:
            pays = values <= CACHED and weights <= WEIGHTS
        if pays:
            value = transform.value * (2 if gradient else 1)
            cost[m] = weights * tiles + value * values + transform.weight * weights
    fastest = min(cost, key=cost.__getitem__, default=None)
    direct = 9 * batch * height * width * channels * features
    return None if fastest is None or cost[fastest] > (1 if gradient else GAIN) * direct else fastest


def conv(x: jax.Array, kernel: jax.Array, *, padding: Pads, m: int) -> jax.Array:
    """The convolution [batch, height, width, features] of `x` with a kernel [3, 3, channels, features]."""
    transform, features = TRANSFORMS[m], kernel.shape[-1]
    height, width = _outputs(x, padding)
    weights = _both(transform.kernel, x.dtype) @ kernel.reshape(9, -1)
    weights = weights.reshape(m + 2, m + 2, -1, features)
    products = jnp.einsum("jibhwc,ijcf->jibhwf", _tiles(x, padding, m), weights)
    rows = [_combine(transform.outputs, list(row)) for row in _combine(transform.outputs, list(products))]
    y = jnp.stack([jnp.stack([row[i] for row in rows], axis=3) for i in range(m)], axis=2)
    return y.reshape(x.shape[0], m * y.shape[1], m * y.shape[3], features)[:, :height, :width]


def kernel_gradient(x: jax.Array, g: jax.Array, *, padding: Pads, m: int) -> jax.Array:
    """The gradient [3, 3, channels, features] of a kernel from that of the outputs: the adjoint of `conv` in it."""
    transform, (batch, height, width, features) = TRANSFORMS[m], g.shape
    down, across = -(-height // m), -(-width // m)
    g = jnp.pad(g, ((0, 0), (0, m * down - height), (0, m * across - width), (0, 0)))
    g = g.reshape(batch, down, m, across, m, features)
    rows = jnp.stack(_combine(transform.outputs.T, [g[:, :, i] for i in range(m)]))
    grads = jnp.stack(_combine(transform.outputs.T, [rows[:, :, :, :, j] for j in range(m)]))
    products = jnp.einsum("jibhwc,jibhwf->ijcf", _tiles(x, padding, m), grads)
    weights = _both(transform.kernel, x.dtype).T @ products.reshape((m + 2) ** 2, -1)
    return weights.reshape(3, 3, x.shape[-1], features)


def _outputs(x: jax.Array, padding: Pads) -> tuple[int, int]:
    return x.shape[1] + sum(padding[0]) - 2, x.shape[2] + sum(padding[1]) - 2


def _tiles(x: jax.Array, padding: Pads, m: int) -> jax.Array:
    """Bᵀ d B of every tile, [column, row, batch, tiles down, tiles across, channels].

    Arrays of all rows and columns, not lists: the values are the same, and XLA compiles them several times faster.
    """
    matrix, (down, across) = TRANSFORMS[m].inputs, (-(-n // m) for n in _outputs(x, padding))
    sides = [
        (before, m * n + 2 - before - size)
        for n, size, (before, _) in zip((down, across), x.shape[1:3], padding, strict=True)
    ]
    x = jnp.pad(x, ((0, 0), *sides, (0, 0)))

    def every(x: jax.Array, axis: int, n: int) -> list[jax.Array]:
        return [lax.slice_in_dim(x, i, i + m * (n - 1) + 1, m, axis) for i in range(m + 2)]

    rows = jnp.stack(_combine(matrix, every(x, 1, down)))
    return jnp.stack(_combine(matrix, every(rows, 3, across)))


def _combine(matrix: np.ndarray, parts: Sequence[jax.Array]) -> list[jax.Array]:
    """matrix @ parts, term by term: the matrices are small, and half of them are zeros and ones."""
    terms = ([part if c == 1 else c * part for c, part in zip(row.tolist(), parts, strict=True) if c] for row in matrix)
    return [functools.reduce(jnp.add, row) for row in terms]


def _both(matrix: np.ndarray, dtype) -> jax.Array:
    """The transform of rows and columns at once."""
    return jnp.asarray(np.kron(matrix, matrix), dtype)
