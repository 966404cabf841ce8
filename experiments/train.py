"""Trains any network of the catalogue on anybody's images, by the recipe of any paper.

Command: python -m experiments.train --model lenet5 --data mnist5k --recipe adam
Networks: python -m cnnjax.analysis.summary NAME describes one; an unknown name lists all. The last layer gets as many
    units as the data have classes, and images are brought to the size and the channels that the network was made for.
Recipes: adam, which is no paper's (Adam, half a cosine, 10 epochs of batches of 64), and the rows of
    cnnjax/train/recipes.py. Crops and sizes keep their proportion to what the network sees.
Data: One folder for each class is enough: --data folder:PATH.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from cnnjax.errors import CnnjaxError, unknown
from cnnjax.experiment import Experiment, main
from cnnjax.options import Source, Training
from cnnjax.variant import Variant

if TYPE_CHECKING:  # so that --help answers at once
    from collections.abc import Callable

    from cnnjax.data.splits import Dataset
    from cnnjax.models.chain import Chain
    from cnnjax.train.recipe import Recipe
    from cnnjax.train.state import Layers, State


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network(Source):
    """A network, its images and how it learns."""

    model: str = "lenet5"
    """A network of the catalogue; "alexnet", "vgg16", "googlenet", "resnet50" and the like are the papers'."""
    recipe: str = "adam"
    """How it is trained: adam, or a paper's recipe."""
    size: int | None = None
    """Height and width, in pixels, of what the network sees; None: what it was made for."""
    channels: Literal[1, 3] | None = None
    """1 turns the images grey, 3 makes them RGB; None: what the network was made for."""
    batch: int | None = None
    """Images per step; None: the recipe's."""
    accumulate: int = 1
    """Into how many parts a batch is divided that does not fit the memory at once; their gradients are averaged."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the forward and backward pass; parameters, statistics, loss and updates stay float32."""
    parallel: Literal["jit", "pmap"] = "jit"
    """How a batch is divided among devices."""
    devices: int | None = None
    """Among how many devices; None: all that there are, and on a CPU one."""
    remat: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="LAYER")] = ()
    """Compute this layer again on the way back instead of keeping what it computed; may be given several times, "all"
    is every layer."""
    frozen: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="LAYER")] = ()
    """Leave this layer as it is; may be given several times."""
    start: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Start from the best checkpoint of this earlier run: from the layers that the recipe names (VGG's), else from all
    that fit."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least(batch=1, accumulate=1, devices=1)

    @property
    def label(self) -> str:
        return f"{self.model}-{self.recipe}-{self.data.rpartition('/')[2]}"

    def load(self) -> Dataset:
        from cnnjax.data.sources import load
        from cnnjax.models.catalog import entry

        row = row_of(self)
        side = entry(self.model).input[0] if self.size is None else self.size
        stored = side if row.crop is None else row.size
        size, channels = None if stored is None else (stored, stored), self.channels or entry(self.model).input[2]
        return load(self.data, size=size, channels=channels, test=self.test_data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Network, Training):
    """The options of a training."""

    seeds: int = 1
    """How many times the network is trained, each time from another seed."""
    epochs: float | None = None
    """How many times each training image is seen; None: as the recipe says."""
    steps: int | None = None
    """How many updates are made; None: as the recipe says."""
    learning_rate: float | None = None
    """The highest learning rate; the recipe's schedule keeps its shape. None: the recipe's."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least(steps=1)
        self.positive("epochs", "learning_rate")
        if self.epochs is not None and self.steps is not None:
            raise CnnjaxError(f"--epochs {self.epochs:g} and --steps {self.steps}: give one of them")


def row_of(config: Network) -> Recipe:
    """The recipe of that name, for images of the network's size."""
    import optax

    from cnnjax.models.catalog import entry
    from cnnjax.train.recipe import Cosine, Recipe, for_crop
    from cnnjax.train.recipes import RECIPES, pixels

    adam = Recipe(batch=64, epochs=10, schedule=Cosine(1e-3), optimiser=optax.adam, prepare=pixels)
    rows = {"adam": adam, **RECIPES}
    if config.recipe not in rows:
        raise unknown("recipe", config.recipe, rows)
    return for_crop(rows[config.recipe], config.size or entry(config.model).input[0])


def recipe_of(config: Network, data: Dataset) -> Recipe:
    """The recipe with what the options change, for these images."""
    from cnnjax.train.recipe import bound

    row = row_of(config)
    changed: dict[str, Any] = {"batch": config.batch or row.batch, "frozen": row.frozen | frozenset(config.frozen)}
    if isinstance(config, Settings):
        if config.epochs is not None or config.steps is not None:
            changed |= {"epochs": config.epochs, "iterations": config.steps}
        if config.learning_rate is not None:
            changed["schedule"] = at_rate(row.schedule, config.learning_rate)
    return bound(dataclasses.replace(row, **changed), data)


def at_rate(schedule: Any, rate: float) -> Any:
    """The schedule with another highest rate."""
    from cnnjax.train.recipe import Drops

    if isinstance(schedule, Drops):
        return dataclasses.replace(schedule, rates=tuple(r / max(schedule.rates) * rate for r in schedule.rates))
    return dataclasses.replace(schedule, rate=rate)


def network(config: Network, classes: int) -> Chain:
    """The network of that name for so many classes, initialised as the recipe says."""
    from cnnjax.models.catalog import entry
    from cnnjax.models.lenet import RBF
    from cnnjax.models.surgery import with_head, with_init

    net, init = entry(config.model).make(), row_of(config).weight_init
    last = net.layers[-1].module
    if not isinstance(last, RBF):
        net = with_head(net, classes)
    elif len(last.centres) != classes:
        raise CnnjaxError(
            f"{config.model} knows {len(last.centres)} classes by their pictures; {classes} are too many"
            if classes > len(last.centres)
            else f"{config.model} knows {len(last.centres)} classes by their pictures, and not {classes}"
        )
    return net if init is None else with_init(net, init)


def variant(config: Network, data: Dataset) -> Variant:
    """The network and its training."""
    import jax

    from cnnjax.train.parallel import Launch
    from cnnjax.train.step import Policy

    recipe, net = recipe_of(config, data), network(config, len(data.classes))
    names = (*net.names, *(head.name for head in net.aux))
    remat = frozenset(names if "all" in config.remat else config.remat)
    for name in (*recipe.frozen, *remat):
        if name not in names:
            raise unknown("layer", name, names)
    if recipe.batch > (images := len(data.train.label)):
        raise CnnjaxError(f"a batch of {recipe.batch} is more than the {images} training images\ngive another --batch")
    launch = Launch(config.parallel, config.devices)
    launch.check(recipe.batch, config.accumulate)
    how: dict[str, Any] = {"policy": Policy(config.precision), "launch": launch, "accumulate": config.accumulate}
    how["remat"] = remat
    row = Variant(net=net, recipe=recipe, how=how)
    state = row.state(data)
    columns = {
        "recipe": config.recipe,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "steps": row.steps(data),
    }
    if config.start is not None:
        columns["starts from"] = str(config.start)
        how["start"] = transplanting(config, config.start, recipe, state)
    elif recipe.start is not None:
        raise CnnjaxError(
            f"the recipe {config.recipe} starts from a trained {recipe.start.network}\n"
            "give the folder of its run with --start, or take another recipe"
        )
    return dataclasses.replace(row, columns=columns)


def transplanting(config: Network, donor: Path, recipe: Recipe, state: State) -> Callable[[Layers], Layers]:
    """What takes layers from the training in `donor`: parameters -> parameters. It is read when it is first needed."""
    import jax

    from cnnjax.models.surgery import transplant
    from experiments.evaluate import trained

    def shapes(params: Layers, name: str) -> Any:
        return jax.tree.map(lambda leaf: leaf.shape, params.get(name))

    @functools.cache
    def found() -> tuple[Layers, tuple[str, ...]]:
        params = trained(donor, "best").variables["params"]
        fitting = [name for name in state.params if shapes(params, name) == shapes(state.params, name)]
        layers = tuple(fitting) if recipe.start is None else recipe.start.layers
        if not layers:
            raise CnnjaxError(f"no layer of the network in {donor} fits {config.model}")
        if held := sorted(recipe.frozen & set(layers) & set(state.stats)):
            raise CnnjaxError(
                f"--frozen {held[0]}: its batch statistics do not come with --start, it has to learn them"
            )
        others = [name for name in state.params if name not in layers]
        anew = f"; from initial weights: {', '.join(others)}" if others else ""
        print(f"{len(layers)} layers start from {donor}{anew}")
        return params, layers

    def start(params: Layers) -> Layers:
        theirs, layers = found()
        return transplant(theirs, params, layers)

    return start


def variants(config: Settings, data: Dataset) -> dict[str, Variant]:
    made = variant(config, data)
    how = {**made.how, "keep_best": True, "tensorboard": config.tensorboard}
    return {config.model: dataclasses.replace(made, how=how)}


def about(config: Settings) -> dict[str, str]:
    row = row_of(config)
    said = " ".join(filter(None, [row.source, row.differs and f"Not as there: {row.differs}"]))
    return {
        "title": f"{config.model} on {config.data}, by the recipe {config.recipe}",
        "recipe": said or "No paper's: what trains small networks without ado.",
    }


EXPERIMENT = Experiment(name="train", doc=__doc__, scales={"": Settings()}, variants=variants, about=about)

if __name__ == "__main__":
    main(EXPERIMENT)
