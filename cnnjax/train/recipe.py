"""What a recipe is: all that a training needs beside the network, the images and the seed, as data.

    recipe = RECIPES["resnet_cifar"]
    net = with_init(cifar_resnet(20), recipe.weight_init)
    run = fit(net, data=data, seed=0, **arguments(recipe, data))

Times of a schedule are shares of the whole, so that `dataclasses.replace(recipe, epochs=10, iterations=None)` is the
same recipe in less time. The papers' are in `cnnjax.train.recipes`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from cnnjax.data.augment import Compose, fixed
from cnnjax.data.splits import Dataset
from cnnjax.errors import CnnjaxError
from cnnjax.train import optim
from cnnjax.train.feed import CentreCrop, Prepare
from cnnjax.train.losses import Loss, cross_entropy
from cnnjax.train.protocols import AS_IT_IS, Protocol, Size

# --- learning rates: called with the number of steps


@dataclasses.dataclass(frozen=True)
class Drops:
    """`rates[i]` for the share `lengths[i]` of the steps; the last rate stays."""

    rates: tuple[float, ...]
    lengths: tuple[float, ...] = ()

    def __call__(self, steps: int) -> optim.Schedule:
        return optim.piecewise(self.rates, [steps * length for length in self.lengths])


@dataclasses.dataclass(frozen=True)
class Staircase:
    """`rate`, multiplied by `factor` after every share `every` of the steps."""

    rate: float
    every: float
    factor: float

    def __call__(self, steps: int) -> optim.Schedule:
        return optim.staircase(self.rate, max(1, round(steps * self.every)), factor=self.factor)


@dataclasses.dataclass(frozen=True)
class Plateau:
    """`rate`, divided by 10 whenever the test error has stopped falling, at most `times`."""

    rate: float
    times: int = 3

    def __call__(self, steps: int) -> optim.Schedule:
        return optim.piecewise((self.rate,), ())


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Up to `rate` on a straight line in the share `warmup` of the steps, then down to 0 on half a cosine."""

    rate: float
    warmup: float = 0.0

    def __call__(self, steps: int) -> optim.Schedule:
        return optim.cosine(self.rate, steps, warmup=round(steps * self.warmup))


def at_rate(schedule: Any, rate: float) -> Any:
    """The schedule with all its rates in proportion, so that the highest is `rate`."""
    if isinstance(schedule, Drops):
        factor = rate / max(schedule.rates)
        return dataclasses.replace(schedule, rates=tuple(factor * each for each in schedule.rates))
    return dataclasses.replace(schedule, rate=rate)


# --- update rules: called with the learning rate; any function of it that gives an optax transformation will do


@dataclasses.dataclass(frozen=True)
class SGD:
    """`optim.sgd`. `decay_vectors=False` leaves biases and normalisation out of the decay."""

    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False
    decay_vectors: bool = True

    def __call__(self, rate: float | optim.Schedule) -> optax.GradientTransformation:
        decayed = None if self.decay_vectors else optim.kernels
        options = {"momentum": self.momentum, "nesterov": self.nesterov, "weight_decay": self.weight_decay}
        return optim.sgd(rate, decayed=decayed, **options)


@dataclasses.dataclass(frozen=True)
class RMSProp:
    """Gradients of a norm of at most `clip`, divided by the root of (their mean square + `epsilon`).

    The mean square starts at 1, as TensorFlow's.
    """

    decay: float = 0.9
    epsilon: float = 1e-8
    clip: float = math.inf

    def __call__(self, rate: float | optim.Schedule) -> optax.GradientTransformation:
        rule = optax.rmsprop(rate, self.decay, self.epsilon, initial_scale=1.0)
        return optax.chain(optax.clip_by_global_norm(self.clip), rule)


# --- the record

CROSS_ENTROPY = cross_entropy()


class Start(NamedTuple):
    """Layers that start from those of a trained network, by its catalogue name: see `surgery.transplant`."""

    network: str
    layers: tuple[str, ...]


PrepareFor = Callable[[Dataset, Size], Prepare]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained, for so many `epochs` or so many `iterations`."""

    source: str = ""
    """Paper and section."""
    differs: str = ""
    """What is not as there."""
    batch: int
    epochs: float | None = None
    iterations: int | None = None
    schedule: Callable[[int], optim.Schedule]
    optimiser: Callable[[optim.Schedule], optax.GradientTransformation]
    filter_rms: float | None = None
    """Filters are scaled down to this root mean square after every update."""
    loss: Loss = CROSS_ENTROPY
    prepare: Prepare | PrepareFor
    """How images are augmented and normalised, or a function of the data and the crop that says so."""
    size: int | None = None
    """The shorter side at which images are stored; None: as they are."""
    crop: int | None = None
    """The side of what the network sees; None: the whole image."""
    weight_init: str | None = None
    """For `surgery.with_init`; None: as the network has it."""
    start: Start | None = None
    ema_decay: float | None = None
    """Of the running averages that are evaluated; None: there are none."""
    frozen: frozenset[str] = frozenset()
    evaluation: Protocol = AS_IT_IS
    """How the paper scores the trained network."""

    def __post_init__(self):
        if (self.epochs is None) == (self.iterations is None):
            raise CnnjaxError(f"a recipe lasts epochs or iterations, not {self.epochs} and {self.iterations}")
        for name, value in {"batch": self.batch, "epochs": self.epochs, "iterations": self.iterations}.items():
            if value is not None and not 0 < value < math.inf:
                raise CnnjaxError(f"{name} is {value!r}; it must be positive and finite")


def steps(recipe: Recipe, examples: int) -> int:
    """Updates that the recipe makes on so many examples: the epochs rounded to whole batches."""
    if recipe.iterations is not None:
        return recipe.iterations
    assert recipe.epochs is not None
    return max(1, round(recipe.epochs * examples / recipe.batch))


@functools.cache
def transformation(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    """The optax transformation of a recipe that lasts so many steps.

    One object for equal recipes: no two transformations are equal, and another would compile the step again.
    """
    parts = [recipe.optimiser(recipe.schedule(steps))]
    if isinstance(recipe.schedule, Plateau):
        parts.append(optim.plateau(smallest=0.1**recipe.schedule.times))
    if recipe.filter_rms is not None:
        parts.append(optim.renormalise_filters(recipe.filter_rms))
    return optax.chain(*parts)


def preparation(recipe: Recipe, data: Dataset) -> Prepare:
    """How images of a data set are augmented and normalised: what that needs (means, colours) is measured here."""
    if isinstance(recipe.prepare, Prepare):
        return recipe.prepare
    height, width = data.train.image.shape[1:3]
    return recipe.prepare(data, (height, width) if recipe.crop is None else (recipe.crop, recipe.crop))


def bound(recipe: Recipe, data: Dataset) -> Recipe:
    """The recipe for one data set, on which nothing is left to be measured."""
    return dataclasses.replace(recipe, prepare=preparation(recipe, data))


def arguments(recipe: Recipe, data: Dataset) -> dict[str, Any]:
    """What `fit` takes from a recipe: tx, loss, transform, augment, view, batch, steps, ema_decay, frozen.

    Where the recipe crops, evaluation sees the central crop at the first scale of its protocol.
    """
    prepare = preparation(recipe, data)
    view = None
    if recipe.crop is not None:
        scale = recipe.evaluation.for_crop(recipe.crop).scales[0]
        view = Compose((fixed(prepare.augment), CentreCrop((recipe.crop, recipe.crop), scale)))
    total = steps(recipe, len(data.train.label))
    return {
        "tx": transformation(recipe, total),
        "loss": recipe.loss,
        "transform": prepare.transform,
        "augment": prepare.augment,
        "view": view,
        "batch": recipe.batch,
        "steps": total,
        "ema_decay": recipe.ema_decay,
        "frozen": recipe.frozen,
    }


def for_crop(recipe: Recipe, side: int) -> Recipe:
    """The recipe for a network that sees images of another size, all sizes in the same proportion.

    A recipe that sees whole images takes any.
    """
    if recipe.crop is None:
        return recipe
    size = None if recipe.size is None else round(recipe.size * side / recipe.crop)
    seen = round(recipe.evaluation.crop * side / recipe.crop)
    return dataclasses.replace(recipe, crop=side, size=size, evaluation=recipe.evaluation.for_crop(seen))
