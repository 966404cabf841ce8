"""The operations under the layers: the only room that calls JAX's convolution and pooling primitives.

Each operation has a *reference* form, plain `jax.lax`, used on GPU and TPU, and where XLA:CPU is slow a second form
that gives the same value and the same gradient (ties of a max-pool included). `FORMS` says which is whose. The choice
is made at lowering, so that what is exported from a laptop for a GPU holds the GPU's form. `with
reference_forms(True):` selects the reference everywhere: the fast forms have custom VJPs and therefore no forward mode,
and costs are counted on the reference.

Arrays are [batch, height, width, channels]; kernels [height, width, in / groups, out].
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cnnjax.models.ops import convolution, normalisation, pooling
from cnnjax.models.ops.geometry import Padding, Pads, Pair, pads, pair, windows

__all__ = [
    "FORMS", "Padding", "Pads", "Pair", "avg_pool", "batch_axis", "batch_norm", "by_platform", "conv", "conv_local",
    "conv_transpose", "dropout", "lrn", "max_pool", "normalise", "pads", "pair", "reference_forms", "windows",
]  # fmt: skip

# Operation -> platform -> form. "default" is the reference, and serves every platform that has no form of its own.
FORMS: dict[str, dict[str, Callable[..., Any]]] = {
    "conv": {"cpu": convolution.cpu, "default": convolution.reference},
    "max_pool": {"cpu": pooling.max_cpu, "default": pooling.max_reference},
    "sum_pool": {"cpu": pooling.sum_cpu, "default": pooling.sum_reference},
    "lrn": {"cpu": normalisation.lrn_cpu, "default": normalisation.lrn_reference},
    "batch_norm": {"cpu": normalisation.batch_cpu, "default": normalisation.batch_reference},
}

reference_forms = jax.make_user_context(False)
# The mapped axis over whose devices a batch is spread under `pmap`: what concerns the whole batch then reaches across.
batch_axis = jax.make_user_context(None)


def by_platform(forms: Mapping[str, Callable[..., Any]], *args: jax.Array, **how: Any) -> Any:
    """What the form of the platform gives for which this is lowered; `forms` is a row of `FORMS`."""
    if reference_forms.value:
        return forms["default"](*args, **how)
    return lax.platform_dependent(*args, **{name: functools.partial(form, **how) for name, form in forms.items()})


def conv(
    x: jax.Array, kernel: jax.Array, *, stride: int | Pair = 1, pad: Padding = 0, groups: int = 1, dilation: int = 1
) -> jax.Array:
    """Cross-correlation, what every paper here calls convolution. Output channels are in group order."""
    stride = pair(stride)
    kh, kw = kernel.shape[:2]
    padding = pads(x.shape[1:3], ((kh - 1) * dilation + 1, (kw - 1) * dilation + 1), stride, pad)
    return by_platform(FORMS["conv"], x, kernel, stride=stride, padding=padding, groups=groups, dilation=dilation)


def conv_transpose(x: jax.Array, kernel: jax.Array, *, stride: int, pad: int, extra: int = 0) -> jax.Array:
    """Convolution with stride 1/`stride`: out = (in - 1) · stride - 2 · pad + kernel + extra, as torch counts it."""
    kh, kw = kernel.shape[:2]
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((kh - 1 - pad, kh - 1 - pad + extra), (kw - 1 - pad, kw - 1 - pad + extra)),
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def conv_local(x: jax.Array, kernel: jax.Array, *, window: Pair, stride: int | Pair = 1, pad: Padding = 0) -> jax.Array:
    """Convolution without weight sharing: kernel [out height, out width, window · in, out], one per position."""
    stride = pair(stride)
    patches = jnp.concatenate(windows(x, window, stride, pads(x.shape[1:3], window, stride, pad)), axis=-1)
    return jnp.einsum("bhwi,hwio->bhwo", patches, kernel)


def max_pool(
    x: jax.Array, window: int | Pair, *, stride: int | Pair, pad: Padding = 0, ceil: bool = False
) -> jax.Array:
    """The maximum of each window; padding never wins. The gradient goes to the first maximum of a window."""
    window, stride = pair(window), pair(stride)
    padding = pads(x.shape[1:3], window, stride, pad, ceil=ceil)
    return by_platform(FORMS["max_pool"], x, window=window, stride=stride, padding=padding)


def avg_pool(
    x: jax.Array,
    window: int | Pair,
    *,
    stride: int | Pair,
    pad: Padding = 0,
    ceil: bool = False,
    count_padding: bool = True,
) -> jax.Array:
    """The mean of each window. `count_padding` divides by the padded window, as Caffe and torch do, else by the pixels.

    What `ceil` adds beyond the padding is never counted.
    """
    window, stride, size = pair(window), pair(stride), (x.shape[1], x.shape[2])
    padding, declared = pads(size, window, stride, pad, ceil=ceil), pads(size, window, stride, pad)
    total = by_platform(FORMS["sum_pool"], x, window=window, stride=stride, padding=padding)
    count = pooling.counts(size, total.shape[1:3], window, stride, declared, count_padding=count_padding)
    return total * jnp.asarray(1.0 / count[None, :, :, None], x.dtype)


def lrn(x: jax.Array, *, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> jax.Array:
    """Local response normalisation: x_i / (k + alpha · Σ_j x_j²)^beta over the `n` channels around i.

    Krizhevsky et al. 2012, section 3.3, as printed: alpha multiplies the raw sum. torch and Caffe divide alpha by n.
    """
    return by_platform(FORMS["lrn"], x, n=n, k=k, alpha=alpha, beta=beta)


def batch_norm(
    x: jax.Array, scale: jax.Array | None, bias: jax.Array, epsilon: float, *, per_device: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array, int]:
    """`normalise` by the batch's own mean and (biased) variance per channel: y, these two, and of how many values.

    They are those of the whole batch, also where it is spread over devices, unless `per_device`; they are in float32 or
    wider, and carry no gradient.
    """
    axis = None if per_device else batch_axis.value
    scale = jnp.ones_like(bias) if scale is None else scale
    y, mean, variance = by_platform(FORMS["batch_norm"], x, scale, bias, epsilon=epsilon, axis=axis)
    return y, mean, variance, x.size // x.shape[-1] * (1 if axis is None else lax.axis_size(axis))


def normalise(
    x: jax.Array, mean: jax.Array, variance: jax.Array, scale: jax.Array | None, bias: jax.Array, epsilon: float
) -> jax.Array:
    """γ · (x - mean) / √(variance + epsilon) + β per channel, computed in the statistics' type, returned in that of
    x.
    """
    return normalisation.affine(x, mean, variance, jnp.ones_like(bias) if scale is None else scale, bias, epsilon)


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Zeroes each value with probability `rate` and scales the others by 1 / (1 - rate).

    Where the batch is spread over devices each takes its part of the mask that one device would draw.
    """
    axis, shape = batch_axis.value, x.shape
    if axis is not None:
        shape = (shape[0] * lax.axis_size(axis), *shape[1:])
    keep = jax.random.bernoulli(key, 1.0 - rate, shape)
    if axis is not None:
        keep = lax.dynamic_slice_in_dim(keep, lax.axis_index(axis) * x.shape[0], x.shape[0])
    return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))
