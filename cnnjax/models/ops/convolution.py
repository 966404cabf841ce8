"""Convolution: the plain form, and what is faster on XLA:CPU."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from cnnjax.models.ops import products, winograd
from cnnjax.models.ops.geometry import Pads, Pair, windows


def reference(x, kernel, *, stride: Pair, padding: Pads, groups: int = 1, dilation: int = 1):
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=stride,
        padding=padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def cpu(x, kernel, *, stride: Pair, padding: Pads, groups: int = 1, dilation: int = 1):
    """Groups one by one (22 times faster backward), and for each the form that its shapes ask for."""
    if dilation > 1 or groups > 8:
        return reference(x, kernel, stride=stride, padding=padding, groups=groups, dilation=dilation)
    if groups > 1:
        pairs = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
        parts = [cpu(part, k, stride=stride, padding=padding) for part, k in pairs]
        return jnp.concatenate(parts, axis=-1)
    kh, kw = kernel.shape[:2]
    height, width = out_size(x, kernel, stride, padding)
    # XLA:CPU takes up to 100 times longer than the dots do where the map is about as small as the kernel.
    tiny = max(height, width) <= 3 or kh > x.shape[1] or kw > x.shape[2]
    if ((kh, kw) == (1, 1) and not any(map(any, padding))) or tiny:
        return _dots(x, kernel, stride=stride, padding=padding)
    return _direct(x, kernel, stride, padding)


def out_size(x, kernel, stride: Pair, padding: Pads) -> Pair:
    rows, columns = ((x.shape[i + 1] + sum(padding[i]) - kernel.shape[i]) // stride[i] + 1 for i in (0, 1))
    return rows, columns


def _dots(x, kernel, *, stride, padding):
    """One matrix product."""
    columns = windows(x, (kernel.shape[0], kernel.shape[1]), stride, padding)
    patches = columns[0] if len(columns) == 1 else jnp.concatenate(columns, axis=-1)
    return product(patches, kernel.reshape(-1, kernel.shape[-1]))


@jax.custom_vjp
def product(x, kernel):
    """x @ kernel, [..., in] by [in, out].

    JAX's own gradient of the kernel comes out as its transpose, for which XLA:CPU writes the outputs' gradient anew,
    column by column: twice the time of all that follows.
    """
    return x @ kernel


def _product_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _product_backward(residuals, g):
    x, kernel = residuals
    rows, columns = (each.reshape(-1, each.shape[-1]) for each in (x, g))
    return (columns @ kernel.T).reshape(x.shape), lax.dot_general(rows, columns, (((0,), (0,)), ((), ())))


product.defvjp(_product_forward, _product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _direct(x, kernel, stride, padding):
    """A convolution whose value and whose two gradients each have the form that is fastest for its shapes."""
    if toeplitz_pays(x, kernel, stride, padding) and math.prod(kernel.shape[:3]) >= 25:
        return toeplitz(x, kernel)
    if m := _winograd(x, kernel, stride, padding):
        return winograd.conv(x, kernel, padding=padding, m=m)
    return reference(x, kernel, stride=stride, padding=padding)


def _forward(x, kernel, stride, padding):
    return _direct(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, residuals, g):
    x, kernel = residuals
    if toeplitz_pays(x, kernel, stride, padding):
        return jax.vjp(toeplitz, x, kernel)[1](g)
    plain = functools.partial(reference, stride=stride, padding=padding)
    if kernel.shape[:2] == (3, 3) and stride == (1, 1) and max(map(max, padding)) <= 2:
        flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        opposite = tuple((2 - before, 2 - after) for before, after in padding)
        dx = _direct(g, flipped, stride, opposite)
    else:
        (dx,) = jax.linear_transpose(lambda x: plain(x, kernel), x)(g)
    if m := _winograd(x, kernel, stride, padding, gradient=True):
        return dx, winograd.kernel_gradient(x, g, padding=padding, m=m)
    if _products_pay(kernel, stride):
        return dx, products.kernel_gradient(x, g, window=kernel.shape[:2], stride=stride, padding=padding)
    return dx, jax.linear_transpose(lambda kernel: plain(x, kernel), kernel)(g)[0]


_direct.defvjp(_forward, _backward)


def _products_pay(kernel, stride: Pair) -> bool:
    """Whether there are channels enough for `products`, or a stride at which XLA:CPU's own form is slow."""
    kh, kw, channels = kernel.shape[:3]
    return channels >= (16 if kh * kw <= 9 else 48) or max(stride) > 3


def _winograd(x, kernel, stride, padding, *, gradient: bool = False) -> int | None:
    """The m of `winograd` that pays here."""
    if kernel.shape[:2] != (3, 3) or stride != (1, 1) or x.dtype.itemsize < 4:
        return None
    return winograd.best(x.shape[0], *out_size(x, kernel, stride, padding), *kernel.shape[2:], gradient=gradient)


def toeplitz_pays(x, kernel, stride: Pair, padding: Pads) -> bool:
    """Whether an image's row is short enough, and its channels few enough, for `toeplitz`."""
    kw, channels = kernel.shape[1:3]
    return stride == (1, 1) and not any(map(any, padding)) and channels <= 8 and kw < x.shape[2] <= 8 * kw


def toeplitz(x, kernel):
    """Some outputs of a row from all pixels that they see: one product with a banded matrix, for few channels.

    Of so many at a time that the product has at least 24 columns: with fewer it is slow, with more it has more zeros.
    """
    (batch, height, width, channels), (kh, kw, _, features) = x.shape, kernel.shape
    down, across = height - kh + 1, width - kw + 1
    outputs = min(across, -(-24 // features))
    tiles, seen = -(-across // outputs), outputs + kw - 1
    # A row of the kernel and as many zeros as there are outputs, repeated, is the band: every repetition starts a
    # pixel later.
    row = jnp.pad(kernel, ((0, 0), (0, outputs), (0, 0), (0, 0)))[:, None]
    band = jnp.broadcast_to(row, (kh, outputs, seen + 1, channels, features))
    band = band.reshape(kh, outputs * (seen + 1), channels, features)[:, : outputs * seen]
    band = band.reshape(kh, outputs, seen, channels, features).transpose(0, 2, 3, 1, 4)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, tiles * outputs - across), (0, 0)))
    rows = x.reshape(batch, height, -1)
    starts = range(0, tiles * outputs * channels, outputs * channels)
    rows = jnp.stack([rows[:, :, start : start + seen * channels] for start in starts], axis=2)
    rows = jnp.concatenate([rows[:, i : i + down] for i in range(kh)], axis=-1)
    found = product(rows, band.reshape(-1, outputs * features))
    return found.reshape(batch, down, tiles * outputs, features)[:, :, :across]
