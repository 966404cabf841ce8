"""The layers that a chain is made of: Linen modules `(x, train) -> x` whose fields are the columns of the papers'
tables.

What belongs to a layer is a field of it (bias, normalisation, activation, dropout: applied in this order) and goes when
the layer goes. Fields are plain data, checked when the layer is made, so that networks compare, hash and can be
searched.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.errors import CnnjaxError, unknown
from cnnjax.models import ops
from cnnjax.models.ops import Padding, Pair


def scaled_tanh(x: jax.Array) -> jax.Array:
    """1.7159 · tanh(2x / 3), so that f(±1) = ±1 (LeCun et al. 1998, appendix A)."""
    return 1.7159 * jnp.tanh(x * (2 / 3))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "scaled_tanh": scaled_tanh,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "elu": jax.nn.elu,
    "leaky_relu": jax.nn.leaky_relu,
}

# Initial weights, (key, shape, fan_in, fan_out) -> array. The fans count what one output sees and what one input feeds.
INITS: dict[str, Callable[..., jax.Array]] = {
    # N(0, 2 / fan_in), He et al. 2015
    "he": lambda key, shape, fan_in, fan_out: (2 / fan_in) ** 0.5 * jax.random.normal(key, shape),
    # U(±√(6 / (fan_in + fan_out))), Glorot & Bengio 2010; Keras' default
    "glorot": lambda key, shape, fan_in, fan_out: (6 / (fan_in + fan_out)) ** 0.5 * _uniform(key, shape),
    # U(±2.4 / fan_in), LeCun et al. 1998, appendix A
    "lecun": lambda key, shape, fan_in, fan_out: 2.4 / fan_in * _uniform(key, shape),
    # Krizhevsky et al. 2012, section 5
    "normal_0.01": lambda key, shape, fan_in, fan_out: 0.01 * jax.random.normal(key, shape),
    # Simonyan & Zisserman 2014, section 3.1: variance 10^-2
    "normal_0.1": lambda key, shape, fan_in, fan_out: 0.1 * jax.random.normal(key, shape),
}


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)


@dataclasses.dataclass(frozen=True)
class Norm:
    """Batch normalisation (Ioffe & Szegedy 2015) as a field of a layer.

    `momentum` is the share of the running statistics that an update keeps (torch's 0.1 is 0.9 here); `scale=False` has
    no γ. The batch is the whole one also where devices share it; with `per_device`, under `pmap`, each device's part.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9
    scale: bool = True
    per_device: bool = False


class BatchNorm(nn.Module):
    """Brings each channel to mean β and standard deviation γ: by the batch in training, by running statistics else.

    The running variance is the unbiased one, m / (m - 1) times the batch's (Algorithm 2, step 10), as in torch.
    """

    norm: Norm = Norm()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = (x.shape[-1],)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, channels) if self.norm.scale else None
        bias = self.param("bias", nn.initializers.zeros, channels)
        if not train or self.is_initializing():
            return ops.normalise(x, running_mean.value, running_var.value, scale, bias, self.norm.epsilon)
        y, mean, variance, count = ops.batch_norm(x, scale, bias, self.norm.epsilon, per_device=self.norm.per_device)
        keep, unbiased = self.norm.momentum, count / max(count - 1, 1)
        running_mean.value = keep * running_mean.value + (1 - keep) * mean
        running_var.value = keep * running_var.value + (1 - keep) * unbiased * variance
        return y


class Weighted(nn.Module, kw_only=True):  # pyright: ignore[reportCallIssue, reportGeneralTypeIssues]
    """The fields that every layer with weights has."""

    bias: bool = True
    bias_init: float = 0.0
    norm: Norm | None = None
    act: str | None = "relu"
    dropout: float = 0.0
    weight_init: str = "he"

    def __post_init__(self):
        super().__post_init__()
        if self.act is not None and self.act not in ACTIVATIONS:
            raise unknown("activation", self.act, [*ACTIVATIONS, None])
        if self.weight_init not in INITS:
            raise unknown("initialiser", self.weight_init, INITS)
        if not 0 <= self.dropout < 1:
            raise CnnjaxError(f"dropout {self.dropout!r} is not a probability in [0, 1)")

    def weight(self, name: str, shape: tuple[int, ...], *, fan_in: Any, fan_out: Any) -> jax.Array:
        return self.param(name, functools.partial(INITS[self.weight_init], fan_in=fan_in, fan_out=fan_out), shape)

    def finish(self, x: jax.Array, train: bool, *, unshared: bool = False) -> jax.Array:
        """+ bias (one a map, or one a position where `unshared`), normalisation, activation, dropout."""
        if self.bias:
            shape = x.shape[1:] if unshared else x.shape[-1:]
            bias = self.param("bias", nn.initializers.constant(self.bias_init), shape)
            x = x + bias.reshape((1,) * (x.ndim - bias.ndim) + shape)
        if self.norm is not None:
            x = BatchNorm(self.norm, name="norm")(x, train)
        if self.act is not None:
            x = ACTIVATIONS[self.act](x)
        if train and self.dropout and not self.is_initializing():
            x = ops.dropout(x, self.dropout, self.make_rng("dropout"))
        return x


class Conv(Weighted):
    """`features` maps of a `kernel` × `kernel` convolution; `kernel`, `stride` may be (rows, columns).

    `groups` as AlexNet's two towers: output group i reads input group i. For `pad` see `ops.pads`.
    """

    features: int
    kernel: int | Pair
    stride: int | Pair = 1
    pad: Padding = 0
    groups: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        (kh, kw), channels = ops.pair(self.kernel), x.shape[-1]
        if channels % self.groups or self.features % self.groups:
            raise CnnjaxError(
                f"{self.groups} groups do not divide {channels} input and {self.features} output channels"
            )
        fan_in, fan_out = kh * kw * channels // self.groups, kh * kw * self.features // self.groups
        shape = (kh, kw, channels // self.groups, self.features)
        kernel = self.weight("kernel", shape, fan_in=fan_in, fan_out=fan_out)
        x = ops.conv(x, kernel, stride=self.stride, pad=self.pad, groups=self.groups, dilation=self.dilation)
        return self.finish(x, train)


class ConvTranspose(Weighted):
    """Convolution with stride 1 / `stride`; the output is (in - 1) · stride - 2 · pad + kernel + extra."""

    features: int
    kernel: int
    stride: int = 2
    pad: int = 0
    extra: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels, area = x.shape[-1], self.kernel**2
        shape = (self.kernel, self.kernel, channels, self.features)
        kernel = self.weight("kernel", shape, fan_in=area * channels, fan_out=area * self.features)
        return self.finish(ops.conv_transpose(x, kernel, stride=self.stride, pad=self.pad, extra=self.extra), train)


class LocalConv(Weighted):
    """A locally connected layer: a convolution's geometry, but every position has weights of its own."""

    features: int
    kernel: int | Pair
    stride: int | Pair = 1
    pad: Padding = 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        window, stride = ops.pair(self.kernel), ops.pair(self.stride)
        padding = ops.pads(x.shape[1:3], window, stride, self.pad)
        out = tuple((x.shape[i + 1] + sum(padding[i]) - window[i]) // stride[i] + 1 for i in (0, 1))
        fan_in = math.prod(window) * x.shape[-1]
        kernel = self.weight(
            "kernel", (*out, fan_in, self.features), fan_in=fan_in, fan_out=math.prod(window) * self.features
        )
        x = ops.conv_local(x, kernel, window=window, stride=stride, pad=self.pad)
        return self.finish(x, train, unshared=True)


class Dense(Weighted):
    """A fully connected layer; maps [batch, height, width, channels] are flattened in this order first."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        kernel = self.weight("kernel", (x.shape[1], self.features), fan_in=x.shape[1], fan_out=self.features)
        return self.finish(x @ kernel, train)


class MaxPool(nn.Module):
    """The maximum of each window; a window larger than its stride overlaps. `ceil` rounds the output size up, as
    Caffe.
    """

    window: int | Pair
    stride: int | Pair
    pad: Padding = 0
    ceil: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return ops.max_pool(x, self.window, stride=self.stride, pad=self.pad, ceil=self.ceil)


class AvgPool(nn.Module):
    """The mean of each window; `count_padding=False` leaves the padding out of the mean, as TensorFlow does."""

    window: int | Pair
    stride: int | Pair
    pad: Padding = 0
    ceil: bool = False
    count_padding: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return ops.avg_pool(
            x, self.window, stride=self.stride, pad=self.pad, ceil=self.ceil, count_padding=self.count_padding
        )


class GlobalAvgPool(nn.Module):
    """The mean of each map: [batch, height, width, channels] -> [batch, channels]."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return x.mean((1, 2))


class LRN(nn.Module):
    """Local response normalisation across `n` channels (Krizhevsky et al. 2012, section 3.3).

    As printed, `alpha` multiplies the raw sum of squares; `alpha_over_n=True` divides it by n, as Caffe and torch do.
    """

    n: int = 5
    k: float = 2.0
    alpha: float = 1e-4
    beta: float = 0.75
    alpha_over_n: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        alpha = self.alpha / self.n if self.alpha_over_n else self.alpha
        return ops.lrn(x, n=self.n, k=self.k, alpha=alpha, beta=self.beta)


class Activation(nn.Module):
    """A non-linearity as a row of its own, for networks that put something between it and the weights."""

    act: str = "relu"

    def __post_init__(self):
        super().__post_init__()
        if self.act not in ACTIVATIONS:
            raise unknown("activation", self.act, ACTIVATIONS)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return ACTIVATIONS[self.act](x)


class Pad(nn.Module):
    """`amount` pixels more on each side: mirrored at the border ("reflect") or zeros ("constant")."""

    amount: int
    mode: Literal["reflect", "constant"] = "reflect"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if self.mode == "reflect" and min(x.shape[1:3]) <= self.amount:
            raise CnnjaxError(
                f"an image of {x.shape[1]}×{x.shape[2]} has no {self.amount} pixels to mirror\n"
                f"give one of at least {self.amount + 1}×{self.amount + 1}"
            )
        sides = (self.amount, self.amount)
        return jnp.pad(x, ((0, 0), sides, sides, (0, 0)), mode=self.mode)


class Dropout(nn.Module):
    """Dropout as a row of its own, for networks that drop what a pooling or concatenation gives."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        active = train and self.rate and not self.is_initializing()
        return ops.dropout(x, self.rate, self.make_rng("dropout")) if active else x


class Flatten(nn.Module):
    """[batch, …] -> [batch, values], where a network's table has it as a row; `Dense` flattens by itself."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return x.reshape(x.shape[0], -1)
