"""The gradient of a convolution's kernel as matrix products, some rows of the maps at a time.

A kernel's gradient is, for each position of its window, a product of the pixels that are read there with the gradient
of the outputs. Where few rows go through all positions before the next are read, they stay in the caches: on XLA:CPU up
to four times as fast as its own form where maps are large and channels few.
"""

import jax
import jax.numpy as jnp
from jax import lax

from cnnjax.models.ops.geometry import Pads, Pair

PIXELS = 2048  # that are worked on at a time; of fewer the products are slow, of more the caches are too small
NARROW = 64  # columns; rows of the window go into one product until it has about so many


def kernel_gradient(x: jax.Array, g: jax.Array, *, window: Pair, stride: Pair, padding: Pads) -> jax.Array:
    """The gradient [kh, kw, channels, features] from an input and the gradient of the outputs, of any size."""
    (kh, kw), (sh, sw) = window, stride
    (batch, height, width, features), channels = g.shape, x.shape[-1]
    strips = max(1, round(height * width * batch / PIXELS))
    rows = -(-height // min(strips, height))
    strips = -(-height // rows)
    # One operand has the positions of a window's row side by side: the narrower, which at stride 1 may be either.
    spread_g = stride == (1, 1) and features <= channels
    whole = not spread_g and kw * channels < NARROW
    wide = (channels, kw * features) if spread_g else (kw * channels * (kh if whole else 1), features)
    g_first = wide[1] < wide[0]  # the narrower operand: XLA:CPU writes the first one anew

    def strip(x: jax.Array, g: jax.Array) -> jax.Array:
        if spread_g:
            g = jnp.concatenate([_padded(g, (0, 0), (j, kw - 1 - j)) for j in range(kw)], axis=-1)
        else:
            x = jnp.concatenate([x[:, :, j : j + sw * (width - 1) + 1 : sw] for j in range(kw)], axis=-1)
        parts = [x[:, i : i + sh * (rows - 1) + 1 : sh] for i in range(kh)]
        parts = [jnp.concatenate(parts, axis=-1)] if whole else parts
        pairs = [(part.reshape(-1, wide[0]), g.reshape(-1, wide[1])) for part in parts]
        return jnp.stack([_product(*(pair[::-1] if g_first else pair)) for pair in pairs])

    (top, _), (left, _) = padding
    last_row, last_column = sh * (rows * strips - 1) + kh, sw * (width - 1) + kw
    x = _padded(x, (top, last_row - top - x.shape[1]), (left, last_column - left - x.shape[2]))
    if strips == 1:
        total = strip(x, g)
    else:
        g, seen = _padded(g, (0, rows * strips - height), (0, 0)), sh * (rows - 1) + kh

        def add(i, total):
            here = lax.dynamic_slice_in_dim(x, i * rows * sh, seen, 1), lax.dynamic_slice_in_dim(g, i * rows, rows, 1)
            return total + strip(*here)

        total = lax.fori_loop(0, strips, add, jnp.zeros_like(jax.eval_shape(strip, x[:, :seen], g[:, :rows])))
    total = total.swapaxes(1, 2) if g_first else total
    total = total.reshape(kh, channels, kw, features).swapaxes(1, 2) if spread_g else total
    return total.reshape(kh, kw, channels, features).astype(x.dtype)


def _padded(x: jax.Array, rows: Pair, columns: Pair) -> jax.Array:
    """Zeros around the maps; what is negative is cut off."""
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """aᵀ b in float32 or wider."""
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())), preferred_element_type=wide)
