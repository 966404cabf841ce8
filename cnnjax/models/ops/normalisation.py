"""Normalisation: the plain forms, and what is faster on XLA:CPU."""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def channel_sum(x: jax.Array, n: int) -> jax.Array:
    """Σ over channels i - n//2 … i + n//2, clipped at both ends."""
    channels = x.shape[-1]
    sides = [(0, 0)] * (x.ndim - 1) + [(n // 2, n // 2)]
    padded = jnp.pad(x, sides)
    return sum((padded[..., i : i + channels] for i in range(1, 2 * (n // 2) + 1)), start=padded[..., :channels])


def lrn_reference(x, *, n: int, k: float, alpha: float, beta: float):
    return x * (k + alpha * channel_sum(x * x, n)) ** -beta


def lrn_cpu(x, *, n: int, k: float, alpha: float, beta: float):
    def power(z):  # z^-beta; the general power costs more than everything else here
        return lax.rsqrt(z) * jnp.sqrt(lax.rsqrt(z)) if beta == 0.75 else z**-beta

    @jax.custom_vjp
    def normalise(x):
        return x * power(k + alpha * channel_sum(x * x, n))

    def forward(x):
        z = k + alpha * channel_sum(x * x, n)
        return x * power(z), (x, z)

    def backward(residuals, g):
        x, z = residuals
        scale = power(z)
        return (g * scale - (2 * alpha * beta) * x * channel_sum(g * x * scale / z, n),)

    normalise.defvjp(forward, backward)
    return normalise(x)


def batch_reference(x, scale, bias, *, epsilon: float, axis: str | None):
    """y, mean and (biased) variance, the latter two without gradient."""
    mean, variance = _moments(x, axis)
    y = affine(x, mean, variance, scale, bias, epsilon)
    return y, lax.stop_gradient(mean), lax.stop_gradient(variance)


def batch_cpu(x, scale, bias, *, epsilon: float, axis: str | None):
    if axis is not None:
        return batch_reference(x, scale, bias, epsilon=epsilon, axis=axis)
    return _batch(x, scale, bias, epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _batch(x, scale, bias, epsilon):
    return batch_reference(x, scale, bias, epsilon=epsilon, axis=None)


def _batch_forward(x, scale, bias, epsilon):
    y, mean, variance = batch_reference(x, scale, bias, epsilon=epsilon, axis=None)
    return (y, mean, variance), (x, mean, lax.rsqrt(variance + epsilon), scale, bias)


def _batch_backward(epsilon, residuals, grads):
    """The closed form: two sums over the batch and one pass (Ioffe & Szegedy 2015, section 3)."""
    x, mean, inverse, scale, bias = residuals
    row, axes, count = (1,) * (x.ndim - 1) + (-1,), tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    g = grads[0].astype(mean.dtype)
    centred = x.astype(mean.dtype) - mean.reshape(row)
    d_bias, d_scale = g.sum(axes), (g * centred).sum(axes) * inverse
    slope = (d_scale * inverse / count).reshape(row)
    factor = (inverse * scale.astype(mean.dtype)).reshape(row)
    dx = (g - (d_bias / count).reshape(row) - centred * slope) * factor
    return dx.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(bias.dtype)


_batch.defvjp(_batch_forward, _batch_backward)


def _moments(x: jax.Array, axis: str | None) -> tuple[jax.Array, jax.Array]:
    """Mean and variance per channel, in float32 or wider, over all devices of `axis`."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = wide.mean(axes)
    if axis is not None:
        mean = lax.pmean(mean, axis)
    variance = jnp.square(wide - mean.reshape((1,) * (x.ndim - 1) + (-1,))).mean(axes)
    return mean, variance if axis is None else lax.pmean(variance, axis)


def affine(x, mean, variance, scale, bias, epsilon: float):
    row = (1,) * (x.ndim - 1) + (-1,)
    factor = lax.rsqrt(variance + epsilon) * scale.astype(variance.dtype)
    y = (x.astype(mean.dtype) - mean.reshape(row)) * factor.reshape(row) + bias.astype(mean.dtype).reshape(row)
    return y.astype(x.dtype)
