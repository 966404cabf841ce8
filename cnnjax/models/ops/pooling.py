"""Pooling: the plain forms, and what is faster on XLA:CPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnnjax.models.ops.geometry import Pads, Pair, windows


def max_reference(x, *, window: Pair, stride: Pair, padding: Pads):
    full = ((0, 0), *padding, (0, 0))
    # The initial value must be NumPy's: only then does JAX see a maximum, which has a gradient, in the general
    # reduction.
    return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, (1, *window, 1), (1, *stride, 1), full)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_cpu(x, window: Pair, stride: Pair, padding: Pads):
    """The maximum over strided slices; backward, each window's gradient back to where its index points, no scatter."""
    return functools.reduce(jnp.maximum, windows(x, window, stride, padding, -jnp.inf))


def _forward(x, window, stride, padding):
    parts = windows(x, window, stride, padding, -jnp.inf)
    best, index = parts[0], jnp.zeros(parts[0].shape, jnp.uint8)
    for i, part in enumerate(parts[1:], start=1):
        index = jnp.where(part > best, jnp.uint8(i), index)
        best = jnp.maximum(best, part)
    # Of x only the shape is needed, which an empty array has without its memory.
    return best, (index, jnp.zeros((0, *x.shape), x.dtype))


def _backward(window, stride, padding, residuals, g):
    """Every pixel asks the windows that hold it whether their index points to it.

    Pixels that share a remainder by the stride form a phase: for them, the windows in question are one slice of the
    outputs for each position, and the phases interleave by a reshape.
    """
    index, empty = residuals
    (batch, height, width, channels), (sh, sw), (kh, kw) = empty.shape[1:], stride, window
    rows, columns = (-(-(n + sum(sides)) // s) for n, s, sides in zip((height, width), stride, padding, strict=True))
    up, left = (kh - 1) // sh, (kw - 1) // sw  # the farthest window that holds a pixel lies so many steps before it
    sides = ((0, 0, 0), (up, rows - g.shape[1], 0), (left, columns - g.shape[2], 0), (0, 0, 0))
    g = lax.pad(g, jnp.zeros((), g.dtype), sides)
    index = lax.pad(index, jnp.uint8(255), sides)

    def phase(p: int, q: int) -> jax.Array:
        total = jnp.zeros((batch, rows, columns, channels), g.dtype)
        for i in range(p, kh, sh):
            for j in range(q, kw, sw):
                top, start = up - i // sh, left - j // sw
                here = (slice(None), slice(top, top + rows), slice(start, start + columns))
                total += jnp.where(index[here] == jnp.uint8(i * kw + j), g[here], jnp.zeros((), g.dtype))
        return total

    whole = jnp.stack([jnp.stack([phase(p, q) for q in range(sw)], axis=3) for p in range(sh)], axis=2)
    whole = whole.reshape(batch, rows * sh, columns * sw, channels)
    (top, _), (start, _) = padding
    return (whole[:, top : top + height, start : start + width],)


max_cpu.defvjp(_forward, _backward)


def sum_reference(x, *, window: Pair, stride: Pair, padding: Pads):
    full = ((0, 0), *padding, (0, 0))
    return lax.reduce_window(x, np.zeros((), x.dtype), lax.add, (1, *window, 1), (1, *stride, 1), full)


def sum_cpu(x, *, window: Pair, stride: Pair, padding: Pads):
    """A sum of strided slices. Windows that tile the image have a gradient of their own."""
    parted = x.shape[1] % window[0] or x.shape[2] % window[1] or any(map(any, padding))
    if window == stride and not parted:
        return _tiled_sum(x, window)
    return functools.reduce(jnp.add, windows(x, window, stride, padding))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _tiled_sum(x, window: Pair):
    if x.shape[-1] >= 8:
        return functools.reduce(jnp.add, windows(x, window, window, ((0, 0), (0, 0))))
    batch, height, width, channels = x.shape  # a slice of a few channels is no vector
    kh, kw = window
    return x.reshape(batch, height // kh, kh, width // kw, kw, channels).sum((2, 4))


def _tiled_forward(x, window):
    return _tiled_sum(x, window), None


def _tiled_backward(window, _, g):
    """Each window's gradient to all of its pixels. Padded slices would each compute anew what `g` comes from."""
    (batch, height, width, channels), (kh, kw) = g.shape, window
    pixels = jnp.broadcast_to(g[:, :, None, :, None], (batch, height, kh, width, kw, channels))
    return (pixels.reshape(batch, height * kh, width * kw, channels),)


_tiled_sum.defvjp(_tiled_forward, _tiled_backward)


def counts(size: Pair, out: Pair, window: Pair, stride: Pair, declared: Pads, *, count_padding: bool) -> np.ndarray:
    """How many values each window's mean divides by, [out height, out width]. `declared`: padding without `ceil`."""
    found = []
    for n, m, k, s, (before, after) in zip(size, out, window, stride, declared, strict=True):
        low, high = (-before, n + after) if count_padding else (0, n)
        start = np.arange(m) * s - before
        found.append(np.minimum(start + k, high) - np.maximum(start, low))
    return np.outer(*found)
