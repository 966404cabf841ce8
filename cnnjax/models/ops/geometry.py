"""Windows and padding: which pixels an output reads."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from cnnjax.errors import CnnjaxError

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]
Padding = int | Pair | Pads | str


def pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else value


def pads(size: Sequence[int], window: Pair, stride: Pair, pad: Padding, *, ceil: bool = False) -> Pads:
    """Rows and columns added before and after, so that out = (size + before + after - window) // stride + 1.

    `pad` is an int, (rows, columns), ((top, bottom), (left, right)), "VALID" or "SAME" (TensorFlow's, uneven at stride
    2). With `ceil` the division rounds up as in Caffe; a last window that would start beyond size + pad is dropped.

    Raises `CnnjaxError` where the window does not fit.
    """
    if isinstance(pad, str):
        explicit = lax.padtype_to_pads(size, window, stride, pad)
    else:
        explicit = [p if isinstance(p, tuple) else (p, p) for p in (pad if isinstance(pad, tuple) else (pad, pad))]
    result = []
    for n, k, s, (before, after) in zip(size, window, stride, explicit, strict=True):
        span = n + before + after - k
        if span < 0:
            raise CnnjaxError(
                f"a {window[0]}×{window[1]} window does not fit an input of {size[0]}×{size[1]} padded by {pad}\n"
                f"the input is too small for this network: give it larger images"
            )
        if ceil:
            last = -(-span // s)
            if last * s >= n + before:
                last -= 1
            after += max(0, last * s - span)
        result.append((before, after))
    return (result[0], result[1])


def windows(x: jax.Array, window: Pair, stride: Pair, padding: Pads, fill: float = 0.0) -> list[jax.Array]:
    """The window's positions, row by row, each a strided slice [batch, out height, out width, channels]."""
    if any(p != (0, 0) for p in padding):
        x = lax.pad(x, jnp.asarray(fill, x.dtype), ((0, 0, 0), (*padding[0], 0), (*padding[1], 0), (0, 0, 0)))
    (kh, kw), (sh, sw) = window, stride
    rows, columns = ((x.shape[1] - kh) // sh * sh + 1, (x.shape[2] - kw) // sw * sw + 1)

    def position(i: int, j: int) -> jax.Array:
        last = (x.shape[0], i + rows, j + columns, x.shape[3])
        return lax.slice(x, (0, i, j, 0), last, (1, sh, sw, 1))

    return [position(i, j) for i in range(kh) for j in range(kw)]
