"""The operations under the layers: the only file that calls JAX's convolution and pooling primitives.

Each operation has a *reference* form, plain `jax.lax`, used on GPU and TPU, and where XLA:CPU is slow a second form
that gives the same value and the same gradient (ties of a max-pool included). The choice is made at lowering, so that
what is exported from a laptop for a GPU holds the GPU's form. `with reference_forms(True):` selects the reference
everywhere: the fast forms have custom VJPs and therefore no forward mode, and costs are counted on the reference.

Arrays are [batch, height, width, channels]; kernels [height, width, in / groups, out].
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnnjax.errors import CnnjaxError

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]
Padding = int | Pair | Pads | str

reference_forms = jax.make_user_context(False)


def by_platform(cpu: Callable, reference: Callable, *args: jax.Array) -> jax.Array:
    if reference_forms.value:
        return reference(*args)
    return lax.platform_dependent(*args, cpu=cpu, default=reference)


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


# --- convolution ------------------------------------------------------------------------------------------------------


def conv(
    x: jax.Array, kernel: jax.Array, *, stride: int | Pair = 1, pad: Padding = 0, groups: int = 1, dilation: int = 1
) -> jax.Array:
    """Cross-correlation, what every paper here calls convolution. Output channels are in group order."""
    stride = pair(stride)
    kh, kw = kernel.shape[:2]
    span = ((kh - 1) * dilation + 1, (kw - 1) * dilation + 1)
    padding = pads(x.shape[1:3], span, stride, pad)
    reference = functools.partial(_conv, stride=stride, padding=padding, groups=groups, dilation=dilation)
    height, width = ((x.shape[i + 1] + sum(padding[i]) - span[i]) // stride[i] + 1 for i in (0, 1))
    pointwise = (kh, kw) == (1, 1) and not any(map(any, padding))
    # XLA:CPU takes up to 100 times longer than the dots do where the map is about as small as the kernel.
    tiny = max(height, width) <= 3 or kh > x.shape[1] or kw > x.shape[2]
    if dilation > 1 or groups > 8 or not (groups > 1 or pointwise or tiny):
        return reference(x, kernel)
    fast = functools.partial(_conv_cpu, stride=stride, padding=padding, groups=groups, as_dot=pointwise or tiny)
    return by_platform(fast, reference, x, kernel)


def _conv(x, kernel, *, stride, padding, groups=1, dilation=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=stride,
        padding=padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _conv_cpu(x, kernel, *, stride, padding, groups, as_dot):
    """Groups one by one (22 times faster backward); 1×1 kernels and tiny maps as one matrix product."""
    if groups > 1:
        one = functools.partial(_conv_cpu, stride=stride, padding=padding, groups=1, as_dot=as_dot)
        pairs = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
        return jnp.concatenate([one(part, k) for part, k in pairs], axis=-1)
    if not as_dot:
        return _conv(x, kernel, stride=stride, padding=padding)
    columns = windows(x, (kernel.shape[0], kernel.shape[1]), stride, padding)
    patches = columns[0] if len(columns) == 1 else jnp.concatenate(columns, axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


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


# --- pooling ----------------------------------------------------------------------------------------------------------


def max_pool(
    x: jax.Array, window: int | Pair, *, stride: int | Pair, pad: Padding = 0, ceil: bool = False
) -> jax.Array:
    """The maximum of each window; padding never wins. The gradient goes to the first maximum of a window."""
    window, stride = pair(window), pair(stride)
    padding = pads(x.shape[1:3], window, stride, pad, ceil=ceil)
    return by_platform(
        functools.partial(_max_pool_cpu, window=window, stride=stride, padding=padding),
        functools.partial(_max_pool, window=window, stride=stride, padding=padding),
        x,
    )


def _max_pool(x, *, window, stride, padding):
    full = ((0, 0), *padding, (0, 0))
    # The initial value must be NumPy's: only then does JAX see a maximum, which has a gradient, in the general
    # reduction.
    return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, (1, *window, 1), (1, *stride, 1), full)


def _max_pool_cpu(x, *, window, stride, padding):
    """The maximum over strided slices; backward, each window's gradient back to where its index points, no scatter."""
    shape = x.shape

    @jax.custom_vjp
    def pool(x):
        return functools.reduce(jnp.maximum, windows(x, window, stride, padding, -jnp.inf))

    def forward(x):
        parts = windows(x, window, stride, padding, -jnp.inf)
        best, index = parts[0], jnp.zeros(parts[0].shape, jnp.uint8)
        for i, part in enumerate(parts[1:], start=1):
            index = jnp.where(part > best, jnp.uint8(i), index)
            best = jnp.maximum(best, part)
        return best, index

    def backward(index, g):
        return (
            _unpool(
                lambda i: jnp.where(index == jnp.uint8(i), g, jnp.zeros((), g.dtype)), shape, window, stride, padding
            ),
        )

    pool.defvjp(forward, backward)
    return pool(x)


def _unpool(part: Callable[[int], jax.Array], shape, window: Pair, stride: Pair, padding: Pads) -> jax.Array:
    """The adjoint of `windows`: `part(i)` is what position i of every window sends back; overlaps add up.

    The rows that share a remainder by the stride form a phase. Within a phase the windows' positions are shifts by
    whole steps, so that each is a pad and an add, and the phases interleave by a reshape.
    """
    (kh, kw), (sh, sw) = window, stride
    rows, columns = (-(-(shape[i + 1] + sum(padding[i])) // stride[i]) for i in (0, 1))
    phases = []
    for p in range(sh):
        for q in range(sw):
            total = None
            for i in range(p, kh, sh):
                for j in range(q, kw, sw):
                    g = part(i * kw + j)
                    a, b = i // sh, j // sw
                    sides = ((0, 0, 0), (a, rows - a - g.shape[1], 0), (b, columns - b - g.shape[2], 0), (0, 0, 0))
                    g = lax.pad(g, jnp.zeros((), g.dtype), sides)
                    total = g if total is None else total + g
            phases.append(total)
    filler = jnp.zeros_like(next(t for t in phases if t is not None))  # the stride may exceed the window
    stacked = jnp.stack([filler if t is None else t for t in phases]).reshape(sh, sw, *filler.shape)
    whole = stacked.transpose(2, 3, 0, 4, 1, 5).reshape(shape[0], rows * sh, columns * sw, shape[3])
    (top, _), (left, _) = padding
    return whole[:, top : top + shape[1], left : left + shape[2]]


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
    window, stride = pair(window), pair(stride)
    padding = pads(x.shape[1:3], window, stride, pad, ceil=ceil)
    declared = pads(x.shape[1:3], window, stride, pad)
    full = ((0, 0), *padding, (0, 0))
    total = lax.reduce_window(x, np.zeros((), x.dtype), lax.add, (1, *window, 1), (1, *stride, 1), full)
    counts = []
    for axis in (0, 1):
        n, (before, after) = x.shape[axis + 1], declared[axis]
        low, high = (-before, n + after) if count_padding else (0, n)
        start = np.arange(total.shape[axis + 1]) * stride[axis] - before
        counts.append(np.minimum(start + window[axis], high) - np.maximum(start, low))
    scale = 1.0 / np.outer(*counts)
    return total * jnp.asarray(scale[None, :, :, None], x.dtype)


# --- normalisation ----------------------------------------------------------------------------------------------------


def lrn(x: jax.Array, *, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> jax.Array:
    """Local response normalisation: x_i / (k + alpha · Σ_j x_j²)^beta over the `n` channels around i.

    Krizhevsky et al. 2012, section 3.3, as printed: alpha multiplies the raw sum. torch and Caffe divide alpha by n.
    """
    cpu = functools.partial(_lrn_cpu, n=n, k=k, alpha=alpha, beta=beta)
    return by_platform(cpu, lambda x: x * (k + alpha * _channel_sum(x * x, n)) ** -beta, x)


def _channel_sum(x: jax.Array, n: int) -> jax.Array:
    """Σ over channels i - n//2 … i + n//2, clipped at both ends."""
    channels = x.shape[-1]
    sides = [(0, 0)] * (x.ndim - 1) + [(n // 2, n // 2)]
    padded = jnp.pad(x, sides)
    return sum((padded[..., i : i + channels] for i in range(1, 2 * (n // 2) + 1)), start=padded[..., :channels])


def _lrn_cpu(x, *, n, k, alpha, beta):
    def power(z):  # z^-beta; the general power costs more than everything else here
        return lax.rsqrt(z) * jnp.sqrt(lax.rsqrt(z)) if beta == 0.75 else z**-beta

    @jax.custom_vjp
    def normalise(x):
        return x * power(k + alpha * _channel_sum(x * x, n))

    def forward(x):
        z = k + alpha * _channel_sum(x * x, n)
        return x * power(z), (x, z)

    def backward(residuals, g):
        x, z = residuals
        scale = power(z)
        return (g * scale - (2 * alpha * beta) * x * _channel_sum(g * x * scale / z, n),)

    normalise.defvjp(forward, backward)
    return normalise(x)


def batch_moments(x: jax.Array, *, axis_name: str | None = None) -> tuple[jax.Array, jax.Array]:
    """Mean and (biased) variance per channel in float32 or wider, over every device of `axis_name` where one is
    given.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = wide.mean(axes)
    if axis_name is not None:
        mean = lax.pmean(mean, axis_name)
    variance = jnp.square(wide - mean.reshape((1,) * (x.ndim - 1) + (-1,))).mean(axes)
    if axis_name is not None:
        variance = lax.pmean(variance, axis_name)
    return mean, variance


def normalise(
    x: jax.Array, mean: jax.Array, variance: jax.Array, scale: jax.Array | None, bias: jax.Array, epsilon: float
) -> jax.Array:
    """γ · (x - mean) / √(variance + epsilon) + β per channel, computed in the statistics' type, returned in that of
    x.
    """
    row = (1,) * (x.ndim - 1) + (-1,)
    factor = lax.rsqrt(variance + epsilon)
    if scale is not None:
        factor = factor * scale.astype(factor.dtype)
    y = (x.astype(mean.dtype) - mean.reshape(row)) * factor.reshape(row) + bias.astype(mean.dtype).reshape(row)
    return y.astype(x.dtype)


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Zeroes each value with probability `rate` and scales the others by 1 / (1 - rate)."""
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))
