"""Scores of networks on a split, every example counted once.

`evaluate` is what training looks at: one network, the images as training prepares them, the training's own loss.
`score` is what is published: any protocol, and ensembles of several states of a network or of several networks.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.data.images import Transform, normalise
from cnnjax.data.pipeline import evaluation_batches
from cnnjax.data.splits import Split
from cnnjax.errors import CnnjaxError
from cnnjax.train.feed import Prepare, resized
from cnnjax.train.losses import Loss
from cnnjax.train.parallel import ONE, Launch, rows, share
from cnnjax.train.protocols import AS_IT_IS, Protocol, Size, View, views
from cnnjax.train.state import Layers
from cnnjax.train.step import F32, Augment, Policy, eval_step, forward

_eval_step = jax.jit(eval_step, static_argnums=(0, 1), static_argnames=("prepare", "policy", "skip"))


def evaluate(
    net: Any,
    loss: Loss,
    variables: Mapping[str, Layers],
    split: Split,
    *,
    prepare: Prepare,
    batch: int,
    policy: Policy = F32,
    skip: frozenset[str] = frozenset(),
    launch: Launch = ONE,
) -> dict[str, float]:
    """{"error", "error5": per cent outside the best one and five, "loss": mean, "count": examples seen}.

    `skip`: layers to bypass, for lesion studies. `launch`: the devices that share a batch and have the variables.
    """
    own = rows(launch, batch)
    sums = [
        _eval_step(
            net,
            loss,
            variables,
            share(launch, {name: values[own] for name, values in examples.items()}),
            prepare=prepare,
            policy=policy,
            skip=skip,
        )
        for examples in evaluation_batches(split, batch)
    ]
    total = {name: sum(part[name].item() for part in parts) for parts in [jax.device_get(sums)] for name in parts[0]}
    count = total["count"]
    return {
        "error": 100 * (count - total["correct"]) / count,
        "error5": 100 * (count - total["correct5"]) / count,
        "loss": total["loss"] / count,
        "count": count,
    }


class Member(NamedTuple):
    """One of an ensemble: a network, its variables, and how it looks at images.

    `prepare`: what is done to the values of an image, before (`augment`, which must draw nothing) and after
    (`transform`) the protocol's crops. For a dense protocol the network must take images of any size: see
    `cnnjax.models.surgery.fully_convolutional`.
    """

    net: Any
    variables: Mapping[str, Layers]
    prepare: Prepare
    protocol: Protocol = AS_IT_IS


class Scores(NamedTuple):
    """What `score` counts."""

    confusion: np.ndarray
    """int64 [classes, classes]: how many examples of the class of the row were taken for that of the column."""
    correct5: int
    """Examples whose label is among the five likeliest classes."""
    loss: float
    """Mean of -log p(label)."""

    @property
    def count(self) -> int:
        """Examples seen."""
        return int(self.confusion.sum())

    @property
    def error(self) -> float:
        """Per cent whose likeliest class is not their label."""
        return 100 * (self.count - int(np.trace(self.confusion))) / self.count

    @property
    def error5(self) -> float:
        """Per cent whose label is not among the five likeliest classes."""
        return 100 * (self.count - self.correct5) / self.count

    @property
    def class_accuracy(self) -> np.ndarray:
        """float64 [classes]: per cent of each class that were recognised; NaN for a class without examples."""
        with np.errstate(invalid="ignore"):
            return 100 * np.diag(self.confusion) / self.confusion.sum(axis=1)

    @property
    def metrics(self) -> dict[str, float]:
        """As `evaluate` gives them."""
        return {"error": self.error, "error5": self.error5, "loss": self.loss, "count": self.count}


def score(members: Sequence[Member], split: Split, *, batch: int, policy: Policy = F32) -> Scores:
    """The scores of an ensemble (of one, as a rule) on a split, `batch` images at a time; see `predict`."""
    confusion, parts = None, []
    for examples in evaluation_batches(split, batch):
        log_p, mask = predict(members, jnp.asarray(examples["image"]), policy=policy), examples["mask"]
        labels, classes = examples["label"], log_p.shape[-1]
        if labels.max() >= classes:
            raise CnnjaxError(
                f"label {labels.max()} has no logit; the networks have {classes}: labels are 0 to {classes - 1}"
            )
        best, of_label = jax.device_get(_best(log_p, jnp.asarray(labels)))
        confusion = np.zeros((classes, classes), np.int64) if confusion is None else confusion
        np.add.at(confusion, (labels[mask], best[mask, 0]), 1)
        parts.append(((best == labels[:, None])[mask].sum(), -of_label[mask].sum(dtype=np.float64)))
    if confusion is None:
        raise CnnjaxError("there are no examples to score")
    correct5, loss = (sum(values) for values in zip(*parts, strict=True))
    return Scores(confusion, int(correct5), float(loss) / int(confusion.sum()))


@jax.jit
def _best(log_p: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    best = jax.lax.top_k(log_p, min(5, log_p.shape[-1]))[1].astype(labels.dtype)
    return best, jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]


def predict(members: Sequence[Member], images: jax.Array, *, policy: Policy = F32) -> jax.Array:
    """Log-probabilities [B, classes] of uint8 images [B, H, W, C], which are all of one size.

    The probabilities (softmax) are averaged over the views of a protocol, and then over the members, as Krizhevsky et
    al. 2012 (section 4.1), Simonyan & Zisserman 2014 (section 4.4) and Szegedy et al. 2014 (section 7) do. They are
    summed as logarithms, so that the order of unlikely classes is not lost.

    Raises `CnnjaxError` for views that a network cannot read, and members with different classes.
    """
    if not members:
        raise CnnjaxError("an ensemble needs at least one member")
    each = [_member(member, images, policy) for member in members]
    if len({log_p.shape for log_p in each}) > 1:
        raise CnnjaxError(f"the members have different numbers of classes: {[log_p.shape[-1] for log_p in each]}")
    return _mean(each)


def _member(member: Member, images: jax.Array, policy: Policy) -> jax.Array:
    net, variables, prepare, protocol = member
    each = []
    seen = views(protocol, (images.shape[1], images.shape[2]))
    for scaled, group in itertools.groupby(seen, key=lambda view: view.scaled):
        pixels = _scale(images, augment=prepare.augment, size=scaled)
        for view in group:
            part = _cut(pixels, view.top, view.left, view.mirror, box=view.box, seen=view.seen)
            each.append(_log_probabilities(net, variables, part, transform=prepare.transform, policy=policy, view=view))
    return _mean(each)


@jax.jit
def _mean(log_p: list[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.logaddexp, log_p) - np.log(len(log_p)).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("augment", "size"))
def _scale(images: jax.Array, *, augment: Augment | None, size: Size) -> jax.Array:
    return resized(images if augment is None else augment(None, {"image": images})["image"], size)


# Only sizes are compiled in, so that the four crops of a corner, and their mirror images, are one program.
@functools.partial(jax.jit, static_argnames=("box", "seen"))
def _cut(pixels: jax.Array, top: Any, left: Any, mirror: Any, *, box: Size, seen: Size) -> jax.Array:
    part = jax.lax.dynamic_slice(pixels, (0, top, left, 0), (pixels.shape[0], *box, pixels.shape[3]))
    part = resized(part, seen)
    return jnp.where(mirror, part[:, :, ::-1], part)


@functools.partial(jax.jit, static_argnames=("net", "transform", "policy"))
def _forward(net: Any, variables: Any, images: jax.Array, *, transform: Transform, policy: Policy) -> jax.Array:
    output, _ = forward(net, variables, normalise(transform, images), policy, train=False)
    return jax.nn.log_softmax(output.logits)


def _log_probabilities(net: Any, variables: Any, images: jax.Array, *, view: View, **how: Any) -> jax.Array:
    try:
        return _forward(net, variables, images, **how)
    except flax.errors.ScopeParamShapeError as error:
        raise CnnjaxError(
            f"the network cannot read images of {view.seen[0]}×{view.seen[1]}: its weights are made for another size\n"
            "give the crop that it was trained with, or make it fully convolutional for a dense protocol"
        ) from error
