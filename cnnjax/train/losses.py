"""What a network is trained to make small: functions of its `Output` and the labels, one value per example.

A loss is a frozen record, so that two that say the same compare equal and share one compiled step. Weight decay is no
part of it: that belongs to the optimiser (`cnnjax.train.optim.sgd`).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from cnnjax.errors import CnnjaxError, unknown
from cnnjax.models.chain import Output

Weight = float | Mapping[str, float]  # of the auxiliary heads: one for all, or one each


@dataclasses.dataclass(frozen=True)
class Loss:
    """`criterion(logits, labels, **options)` of the logits, plus that of each auxiliary head times its weight.

    Called with an `Output` and labels, int [batch] or the probabilities of the classes, float [batch, classes]; gives
    [batch], float32 or wider. Raises `CnnjaxError` for a head that has no weight. Weights of heads that the network
    lacks are not used: surgery may have removed them.
    """

    criterion: Callable[..., jax.Array]
    options: tuple[tuple[str, float], ...]
    aux_weight: float | tuple[tuple[str, float], ...]

    def __call__(self, output: Output, labels: jax.Array) -> jax.Array:
        value = self._of(output.logits, labels)
        for name, logits in output.aux.items():
            value = value + self._weight(name) * self._of(logits, labels)
        return value

    def _of(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        if logits.ndim != 2:
            raise CnnjaxError(f"a loss over classes needs logits [batch, classes], not {logits.shape}")
        if labels.ndim != 1 and labels.shape != logits.shape:
            raise CnnjaxError(f"labels of shape {labels.shape} cannot be compared with logits of {logits.shape}")
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return self.criterion(logits, labels, **dict(self.options))

    def _weight(self, name: str) -> float:
        if not isinstance(self.aux_weight, tuple):
            return self.aux_weight
        weights = dict(self.aux_weight)
        if name not in weights:
            raise unknown("weight for the auxiliary head", name, weights)
        return weights[name]


def _loss(criterion: Callable[..., jax.Array], aux_weight: Weight, **options: float) -> Loss:
    weights = aux_weight if isinstance(aux_weight, Mapping) else {"": aux_weight}
    for name, value in (*weights.items(), *options.items()):
        if not math.isfinite(value) or value < 0:
            raise CnnjaxError(f"{name or 'aux_weight'} is {value!r}; it must be finite and not negative")
    aux = tuple(sorted(weights.items())) if isinstance(aux_weight, Mapping) else aux_weight
    return Loss(criterion, tuple(sorted(options.items())), aux)


def _right(values: jax.Array, labels: jax.Array) -> jax.Array:
    """values[i, labels[i]], or their mean under the probabilities labels[i, :]: [batch]."""
    if labels.ndim == 1:
        return jnp.take_along_axis(values, labels[:, None], axis=1)[:, 0]
    return (labels.astype(values.dtype) * values).sum(axis=1)


def _cross_entropy(logits: jax.Array, labels: jax.Array, *, label_smoothing: float) -> jax.Array:
    log_p = jax.nn.log_softmax(logits)
    return -(1 - label_smoothing) * _right(log_p, labels) - label_smoothing * log_p.mean(axis=1)


def _mean_squared_error(logits: jax.Array, labels: jax.Array) -> jax.Array:
    wanted = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype) if labels.ndim == 1 else labels
    return ((logits - wanted.astype(logits.dtype)) ** 2).mean(axis=1)


def _penalty(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return -_right(logits, labels)


def _discriminative(logits: jax.Array, labels: jax.Array, *, j: float) -> jax.Array:
    rubbish = jnp.full_like(logits[:, :1], -j)
    return -_right(logits, labels) + jax.nn.logsumexp(jnp.concatenate([rubbish, logits], axis=1), axis=1)


def cross_entropy(*, aux_weight: Weight = 0.3, label_smoothing: float = 0.0) -> Loss:
    """-log softmax(logits)[label].

    `aux_weight`: what the auxiliary heads count; 0.3 is GoogLeNet's (Szegedy et al. 2014, section 5).
    `label_smoothing`: ε of q' = (1 - ε) δ + ε / classes (Szegedy et al. 2015, section 7; 0.1 there).
    """
    if not 0 <= label_smoothing < 1:
        raise CnnjaxError(f"label_smoothing is {label_smoothing!r}; it must be in [0, 1)")
    return _loss(_cross_entropy, aux_weight, label_smoothing=label_smoothing)


def mean_squared_error(*, aux_weight: Weight = 0.3) -> Loss:
    """Mean over the classes of (output - one-hot)². The network's last activation decides what the outputs are."""
    return _loss(_mean_squared_error, aux_weight)


def rbf_penalty(*, aux_weight: Weight = 0.3) -> Loss:
    """y_D: the right class's RBF output (LeCun et al. 1998, equation 8), where logits are -y."""
    return _loss(_penalty, aux_weight)


def rbf_discriminative(*, j: float, aux_weight: Weight = 0.3) -> Loss:
    """y_D + log(e^-j + Σ e^-y_i) (LeCun et al. 1998, equation 9), where logits are -y.

    It pulls the right class's penalty down and the others up; the positive `j`, whose value the paper does not print,
    keeps penalties that are already large from being pushed further.
    """
    if not j > 0:
        raise CnnjaxError(f"j is {j!r}; it must be positive")
    return _loss(_discriminative, aux_weight, j=j)
