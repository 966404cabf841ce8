"""Lesions: what it costs to drop a single block of a trained network.

Claim: A trained ResNet hardly notices that a block is missing, for its other paths go on through the shortcuts, and so
    does a highway network; a VGG without one of its convolutions guesses.
Source: Veit, Wilber & Belongie 2016, "Residual networks behave like ensembles of relatively shallow networks"
    (arXiv:1605.06431), on CIFAR-10, and Srivastava, Greff & Schmidhuber 2015, "Training very deep networks"
    (arXiv:1507.06228), on its highway networks: both in figures, without numbers.
Command: python -m experiments.residual_lesions
Cost: smoke: half a minute on 2 CPU cores. lab: 7 minutes there. paper: 64,000 steps of CIFAR-10 a run, on a GPU.
Expected: lab: without one block the ResNet and the highway network err 20 points more, for of their few blocks the
    first are needed; the plain network and VGG err 80 more.
Departures: Only blocks that keep the shape of what they read can be dropped, which leaves out those that halve the
    maps. A layer of a DenseNet has nothing else to be read in its place: its maps become 0. The plain network is the
    ResNet without its shortcuts. VGG is D with batch normalisation. The smoke and lab scales train narrow networks on
    digits of 16×16 pixels, with Adam and a cosine schedule, VGG without its last two poolings and without dropout.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from cnnjax import figures
from cnnjax.data.augment import fixed
from cnnjax.data.splits import Dataset
from cnnjax.errors import CnnjaxError
from cnnjax.experiment import Experiment, adam_recipe, main, printed_recipe
from cnnjax.models.chain import Chain
from cnnjax.models.densenet import densenet_cifar
from cnnjax.models.highway import highway_conv
from cnnjax.models.layers import Dense, Norm
from cnnjax.models.resnet import cifar_plain, cifar_resnet
from cnnjax.models.surgery import replace, with_init, with_width, without
from cnnjax.models.vgg import vgg
from cnnjax.options import Narrow
from cnnjax.page import Picture
from cnnjax.train.evaluate import evaluate
from cnnjax.train.feed import Prepare
from cnnjax.train.recipes import RECIPES
from cnnjax.train.state import variables
from cnnjax.variant import Variant, scores, trained
from cnnjax.verdict import Claim

NETS = ("resnet", "plain", "vgg", "highway", "densenet")
CLAIMS = (
    Claim("a ResNet loses less than 10 points with a block", {"resnet": 1}, below=10, metric="loss_of_one"),
    Claim("a highway network does so too", {"highway": 1}, below=10, metric="loss_of_one"),
    Claim("without shortcuts a block is worth more", {"plain": 1, "resnet": -1}, above=0, metric="loss_of_one"),
    Claim("VGG loses more than 30 points with a convolution", {"vgg": 1}, above=30, metric="loss_of_one"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Narrow):
    """The options of networks that lose a block. VGG has a quarter of the width."""

    depth: int = 20
    """Layers of the ResNet and of the plain network, 6n + 2."""


LAB = Settings(scale="lab", width=0.5, seeds=5, size=16, epochs=8, batch=64, learning_rate=3e-3, bar=4)
SMOKE = dataclasses.replace(LAB, scale="smoke", seeds=2, size=8, depth=14, width=0.125, epochs=0.1)
PAPER = dataclasses.replace(
    LAB, scale="paper", data="cifar10", size=None, depth=110, width=1, epochs=163.84, batch=128, learning_rate=0.1,
    bar=8,
)  # fmt: skip
SCALES = {"smoke": SMOKE, "lab": LAB, "paper": PAPER}


def networks(config: Settings, classes: int) -> dict[str, Chain]:
    small = config.scale != "paper"
    deep = with_width(with_init(vgg("D", classes=classes, norm=Norm()), "he"), config.width / 4 if small else 1)
    if small:
        deep = replace(without(deep, "pool4", "pool5"), fc6=Dense(64), fc7=Dense(64))
    return {
        "resnet": with_width(cifar_resnet(config.depth, classes), config.width),
        "plain": with_width(cifar_plain(config.depth, classes), config.width),
        "vgg": deep,
        "highway": highway_conv(max(4, round(32 * config.width)), classes),
        "densenet": densenet_cifar(16 if small else 40, max(2, round(12 * config.width)), classes),
    }


def variants(config: Settings, data: Dataset) -> dict[str, Variant]:
    def row(name: str, net: Chain) -> Variant:
        recipe = adam_recipe(config, data)
        if config.scale == "paper":
            deep = name in ("resnet", "plain") and config.depth >= 110
            recipe = printed_recipe(RECIPES["resnet110_cifar" if deep else "resnet_cifar"], config, data)
        return Variant(net=net, recipe=recipe, measure=lesions)

    return {name: row(name, net) for name, net in networks(config, len(data.classes)).items()}


def droppable(net: Chain, values: Mapping[str, Any], shape: tuple[int, ...]) -> list[str]:
    """The convolutions and blocks, one of which can be missing."""
    found, image = [], jax.ShapeDtypeStruct((1, *shape), "float32")
    for name in (name for name in net.names if name.startswith(("conv", "highway"))):
        try:
            jax.eval_shape(partial(net.apply, skip=frozenset({name})), values, image)
        except CnnjaxError:
            continue
        found.append(name)
    return found


def lesions(variant: Variant, data: Dataset, seed: int, folder: Path, on_log) -> dict[str, Any]:
    """The scores, the error without each block, and what one costs on average."""
    run, net, prepare = trained(variant, data, {seed: folder}, on_log)[seed], variant.net, variant.recipe.prepare
    values, how = variables(run.state), {"prepare": Prepare(prepare.transform, fixed(prepare.augment)), "batch": 250}

    def error(values: Mapping[str, Any], *skip: str) -> float:
        return evaluate(net, variant.recipe.loss, values, data.test, skip=frozenset(skip), **how)["error"]

    found, params = {}, values["params"]
    for name in (name for name in net.names if name.startswith("dense")):
        found[name] = error({**values, "params": {**params, name: jax.tree.map(jnp.zeros_like, params[name])}})
    found = found or {name: error(values, name) for name in droppable(net, values, variant.sees(data))}
    return {**scores(run), "lesions": found, "loss_of_one": sum(found.values()) / len(found) - run.metrics["error"]}


def pictures(folder: Path, results: Mapping[str, Any]) -> Sequence[Picture]:
    series = {}
    for row in results["rows"]:
        runs = list(row["seeds"].values())
        without = [[run["lesions"][block] for run in runs] for block in runs[0]["lesions"]]
        every = [[run[results["metric"]] for run in runs], *without]
        series[row["variant"]] = [figures.point(i, errors) for i, errors in enumerate(every)]
    drawn = figures.lines(series, x="the block that is missing, from the first; 0: none", y="test error, %")
    return [Picture("lesions", "Error of the trained networks without one of their blocks.", drawn)]


EXPERIMENT = Experiment(
    name="residual_lesions",
    doc=__doc__,
    scales=SCALES,
    variants=variants,
    published=dict.fromkeys(NETS),
    published_as="the papers show figures without numbers",
    smoke=("resnet", "vgg", "highway"),
    reference="resnet",
    claims=CLAIMS,
    measured={"loss_of_one": "points lost with one block"},
    pictures=pictures,
)

if __name__ == "__main__":
    main(EXPERIMENT)
