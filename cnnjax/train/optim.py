"""Learning rates and stochastic gradient descent as the papers print them; everything else is optax as it stands.

A schedule is a function of the step, and a transformation is made once per variant: two made alike are never equal,
and each would be compiled anew.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnnjax.errors import CnnjaxError

Schedule = optax.Schedule


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise CnnjaxError(f"{name} is {value!r}; it must be positive and finite")


def _fraction(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise CnnjaxError(f"{name} is {value!r}; it must be in [0, 1)")


def _between(end: float, rate: float) -> None:
    if not 0 <= end <= rate:
        raise CnnjaxError(f"end is {end!r}; it must be between 0 and the rate, {rate!r}")


def piecewise(rates: Sequence[float], lengths: Sequence[float]) -> Schedule:
    """`rates[i]` for `lengths[i]` steps; the last rate has no length and stays.

    LeNet-5's passes over the data (LeCun et al. 1998, section III.B) are
    `piecewise((5e-4, 2e-4, 1e-4, 5e-5, 1e-5), [n * steps_per_pass for n in (2, 3, 3, 4)])`, the warm-up of ResNet-110
    (He et al. 2015, section 4.2) is `piecewise((0.01, 0.1, 0.01, 0.001), (400, 31_600, 16_000))`.
    """
    if len(rates) != len(lengths) + 1:
        raise CnnjaxError(f"{len(rates)} rates need {len(rates) - 1} lengths (the last rate stays), not {len(lengths)}")
    for rate in rates:
        _positive(rate=rate)
    for length in lengths:
        _positive(length=length)
    ends = [round(sum(lengths[: i + 1])) for i in range(len(lengths))]

    def schedule(count):
        return jnp.asarray(rates, jnp.float32)[jnp.searchsorted(jnp.asarray(ends, jnp.int32), count, side="right")]

    return schedule


def step_decay(rate: float, at: Sequence[int], *, factor: float = 0.1) -> Schedule:
    """`rate`, multiplied by `factor` at each of the steps `at`.

    ResNet on CIFAR-10 is `step_decay(0.1, (32_000, 48_000))` (He et al. 2015, section 4.2).
    """
    _positive(factor=factor)
    lengths = [after - before for before, after in zip((0, *at), at, strict=False)]
    if any(length <= 0 for length in lengths):
        raise CnnjaxError(f"at is {tuple(at)}; its steps must be positive and increase")
    return piecewise([rate * factor**i for i in range(len(at) + 1)], lengths)


def staircase(rate: float, every: int, *, factor: float) -> Schedule:
    """`rate`, multiplied by `factor` every `every` steps: GoogLeNet's 4 % every 8 epochs is `factor=0.96`."""
    _positive(rate=rate, every=every, factor=factor)
    return optax.exponential_decay(rate, every, factor, staircase=True)


def polynomial(rate: float, steps: int, *, power: float = 1.0, end: float = 0.0) -> Schedule:
    """From `rate` to `end` over `steps` steps as (1 - step / steps)^power."""
    _positive(rate=rate, steps=steps, power=power)
    _between(end, rate)
    return optax.polynomial_schedule(rate, end, power, steps)


def cosine(rate: float, steps: int, *, warmup: int = 0, end: float = 0.0) -> Schedule:
    """`warmup` steps from 0 to `rate` on a straight line, then half a cosine down to `end` at step `steps`."""
    _positive(rate=rate, steps=steps)
    _between(end, rate)
    if not 0 <= warmup < steps:
        raise CnnjaxError(f"a warm-up of {warmup} steps does not fit into {steps} steps")
    if warmup == 0:
        return optax.cosine_decay_schedule(rate, steps, alpha=end / rate)
    return optax.warmup_cosine_decay_schedule(0.0, rate, warmup, steps, end)


def kernels(params: Any) -> Any:
    """A mask that is true for weights and false for vectors: biases, and the γ and β of normalisation."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def sgd(
    rate: float | Schedule,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decayed: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """v ← momentum · v - rate · (gradient + weight_decay · w);  w ← w + v (Krizhevsky et al. 2012, section 5).

    The decay is the gradient of weight_decay / 2 · |w|², so it enters the momentum. The rate is inside the velocity,
    as there and in Caffe; `optax.sgd` and torch have it outside, which differs for some steps after the rate has
    changed.

    `decayed`: a mask of what decays, made from the parameters, e.g. `kernels`; None is everything.
    """
    if not callable(rate):
        _positive(rate=rate)
    _fraction(momentum=momentum, weight_decay=weight_decay)
    if nesterov and not momentum:
        raise CnnjaxError("nesterov needs a momentum above 0")
    return optax.chain(
        optax.add_decayed_weights(weight_decay, decayed) if weight_decay else optax.identity(),
        optax.scale_by_learning_rate(rate),
        optax.trace(momentum, nesterov) if momentum else optax.identity(),
    )


class Curvature(NamedTuple):
    """The state of `levenberg_marquardt`: gradients seen, and the running mean of their squares."""

    count: jax.Array
    squares: Any


def levenberg_marquardt(rate: float | Schedule, *, mu: float = 0.02, memory: int = 500) -> optax.GradientTransformation:
    """w_k ← w_k - rate / (mu + h_kk) · gradient, h_kk the curvature of the loss along w_k.

    The "stochastic diagonal Levenberg-Marquardt method" (LeCun et al. 1998, appendix C), with another estimate of h_kk:
    the mean square of about the last `memory` gradients, which for the gradients of single examples and a loss that is
    a log-likelihood is the diagonal of the Gauss-Newton matrix at the optimum, up to its scale. The paper propagates
    second derivatives of 500 examples before each pass. `mu` bounds the rate where the loss is flat.
    """
    _positive(mu=mu, memory=memory)

    def init(params):
        return Curvature(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None):
        count = state.count + 1
        share = 1 / jnp.minimum(count, memory)
        squares = jax.tree.map(lambda h, g: h + share * (g * g - h), state.squares, updates)
        return jax.tree.map(lambda g, h: g / (mu + h), updates, squares), Curvature(count, squares)

    return optax.chain(optax.GradientTransformation(init, update), optax.scale_by_learning_rate(rate))


def renormalise_filters(rms: float = 0.1) -> optax.GradientTransformation:
    """After the update, every filter of a convolution with a larger root mean square is scaled down to `rms`.

    "We renormalize each filter in the convolutional layers whose RMS value exceeds a fixed radius of 10⁻¹" (Zeiler &
    Fergus 2014, section 3). A filter is all that one map reads: kernel[:, :, :, i]. Put it last in the chain.
    """
    _positive(rms=rms)

    def update(updates, state, params=None):
        def bring_back(change, kernel):
            if kernel.ndim != 4:
                return change
            new = kernel + change
            size = jnp.sqrt(jnp.mean(jnp.square(new), axis=(0, 1, 2), keepdims=True))
            return new * (rms / jnp.maximum(size, rms)) - kernel

        return jax.tree.map(bring_back, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


class Plateau(NamedTuple):
    """The state of `plateau`: optax's rule, and the last error, `fresh` until a step has taken note of it."""

    rule: Any
    error: jax.Array
    fresh: jax.Array


def plateau(
    *, factor: float = 0.1, patience: int = 1, min_improvement: float = 1e-4, smallest: float = 0.0
) -> optax.GradientTransformation:
    """Multiplies the updates by `factor` after `patience` evaluations in a row without improvement.

    "Divided by 10 when the validation error stopped improving" (Krizhevsky et al. 2012; Simonyan & Zisserman 2014; He
    et al. 2015). An error improves when it falls below (1 - `min_improvement`) times the best. The product of the
    factors stays at or above `smallest`. Put it last in the chain. It hears of evaluations through `observe`, which
    `fit` calls.
    """
    _positive(patience=patience)
    for name, value in {"factor": factor, "min_improvement": min_improvement}.items():
        if not 0 < value < 1:
            raise CnnjaxError(f"{name} is {value!r}; it must be in (0, 1)")
    inner = optax.contrib.reduce_on_plateau(factor, patience, min_improvement, min_scale=smallest)

    def init(params):
        return Plateau(inner.init(params), jnp.zeros((), jnp.float32), jnp.zeros((), bool))

    def update(updates, state, params=None):
        _, heard = inner.update({}, state.rule, value=state.error)
        rule = jax.tree.map(lambda new, old: jnp.where(state.fresh, new, old), heard, state.rule)
        updates = jax.tree.map(lambda leaf: rule.scale * leaf, updates)
        return updates, Plateau(rule, state.error, jnp.zeros((), bool))

    return optax.GradientTransformation(init, update)


def observe(opt_state: Any, error: Any) -> Any:
    """`opt_state` in which every `plateau` will take note of an evaluation's `error` at the next step.

    `error`: a number, or [runs] of them where `opt_state` is that of several runs.
    """
    heard = np.asarray(error, np.float32)

    def note(node):
        if not isinstance(node, Plateau):
            return node
        error_, fresh = jax.device_put((heard, np.ones(heard.shape, bool)), node.error.sharding)
        return node._replace(error=error_, fresh=fresh)

    return jax.tree.map(note, opt_state, is_leaf=lambda node: isinstance(node, Plateau))


class Scaled(NamedTuple):
    """The state of `scaled`: that of the transformation inside, and the factor on its updates."""

    inner: Any
    factor: jax.Array


@functools.cache
def scaled(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` with a factor in its state on all its updates, 1 until `with_factor` sets another.

    So that runs that differ in the learning rate alone go through one compiled program.
    """

    def init(params):
        return Scaled(tx.init(params), jnp.ones((), jnp.float32))

    def update(updates, state, params=None):
        updates, inner = tx.update(updates, state.inner, params)
        return jax.tree.map(lambda leaf: state.factor.astype(leaf.dtype) * leaf, updates), Scaled(inner, state.factor)

    return optax.GradientTransformation(init, update)


def with_factor(opt_state: Scaled, factor: float) -> Scaled:
    """The state of a `scaled` transformation with another factor."""
    return opt_state._replace(factor=jnp.full((), factor, opt_state.factor.dtype))
