"""Depth with and without gates: plain, highway and residual networks of 10 to 100 fully connected layers.

Claim: Plain networks get worse with depth, those of 50 and 100 layers hardly train at all; highway networks train as
    well with 100 layers as with 10.
Source: Srivastava, Greff & Schmidhuber 2015, "Training very deep networks" (arXiv:1507.06228), section 3.1 and Fig. 1,
    which prints no numbers. Gates: section 4 and Fig. 2.
Command: python -m experiments.highway_depth
Cost: smoke: a quarter of a minute on 2 CPU cores. lab: 22 minutes there. paper: 400 epochs of MNIST a run.
Expected: lab: plain networks of 10 to 100 layers err 3, 4, 17 and 37 %, highway and residual ones 3 to 7 %.
Departures: The paper draws rate, momentum, activation and gate bias in a random search of 100 runs for each network and
    shows the best of them; here all have ReLU, and a gate bias from its range that falls with the depth, for about as
    many open gates on any way through; it is varied for one depth. The residual networks are not the paper's: each
    layer adds relu(W x + b) / depth. The smoke and lab scales have twice the width and distorted digits, for 4,000 of
    them, with Adam, a cosine schedule and a rate inverse to the depth; the smoke scale has a tenth of the layers.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cnnjax import figures
from cnnjax.analysis.summary import summarise
from cnnjax.data.augment import Compose, RandomCrop
from cnnjax.data.splits import Dataset
from cnnjax.data.warps import Elastic
from cnnjax.experiment import Experiment, adam_recipe, main, printed_recipe
from cnnjax.models.chain import Chain, Residual, chain, features, rows
from cnnjax.models.highway import DEPTHS, highway_fc, plain_fc
from cnnjax.models.layers import Dense
from cnnjax.options import Config
from cnnjax.page import Picture
from cnnjax.train.feed import Prepare
from cnnjax.train.recipe import at_rate
from cnnjax.train.recipes import HIGHWAY
from cnnjax.train.state import variables
from cnnjax.variant import Variant, scores, trained
from cnnjax.verdict import Claim

BIASES = {10: -1, 20: -2, 50: -3, 100: -4}  # of the gates by depth; the paper's search draws from -1 to -10
SWEPT = {f"highway-50-bias{bias}": bias for bias in (-1, -6, -10)}
CLAIMS = (
    Claim("a plain network of 50 layers is worse than one of 10", {"plain-50": 1, "plain-10": -1}, above=0),
    Claim("and one of 100 layers as well", {"plain-100": 1, "plain-10": -1}, above=0),
    Claim("a highway network of 50 layers is better", {"plain-50": 1, "highway-50": -1}, above=0),
    Claim("100 highway layers are hardly worse than 10", {"highway-100": 1, "highway-10": -1}, below=1),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """The options of networks that get deeper."""

    layers: float = 1.0
    """Layers of every network, relative to its name."""
    width: float = 2.0
    """Units of every layer, relative to the paper's 50, and 71 of networks without gates."""

    def __post_init__(self):
        super().__post_init__()
        self.positive("layers", "width")


LAB = Settings(scale="lab", seeds=5, epochs=40, batch=128, learning_rate=2e-3, bar=4)
SMOKE = dataclasses.replace(LAB, scale="smoke", seeds=2, layers=0.1, epochs=0.2)
PAPER = dataclasses.replace(LAB, scale="paper", data="mnist", seeds=5, width=1, epochs=400, learning_rate=0.01, bar=2.5)
SCALES = {"smoke": SMOKE, "lab": LAB, "paper": PAPER}


def residual_fc(depth: int, classes: int, *, width: int = 71) -> Chain:
    """fc1, then layers x + relu(W x + b) / depth, then the output."""
    block = Residual(rows(transform=Dense(width)), act=None, scale=1 / depth)
    return chain(
        {"fc1": Dense(width), **{f"residual_{i}": block for i in range(2, depth + 1)}}, output=Dense(classes, act=None)
    )


KINDS = {"plain": plain_fc, "highway": highway_fc, "residual": residual_fc}
SHOWN = ("highway-10", "highway-50", "highway-100")


def variants(config: Settings, data: Dataset) -> dict[str, Variant]:
    distort = Compose((Elastic(), RandomCrop(data.train.image.shape[1:3], pad=1)))
    small, classes = adam_recipe(config, data, distort), len(data.classes)

    def variant(make, depth: int, **options) -> Variant:
        if config.scale == "paper":
            recipe = printed_recipe(HIGHWAY, config, data)
        else:
            rate = config.learning_rate * DEPTHS[0] / depth
            recipe = dataclasses.replace(small, schedule=at_rate(small.schedule, rate))
        width = round(config.width * (50 if make is highway_fc else 71))
        options = {"gate_bias": float(BIASES[depth]), **options} if make is highway_fc else options
        net = make(max(2, round(depth * config.layers)), classes, width=width, **options)
        params = summarise(net, data.train.image.shape[1:]).params
        return Variant(net=net, recipe=recipe, columns={"parameters": params}, measure=measure)

    found = {f"{kind}-{depth}": variant(make, depth) for kind, make in KINDS.items() for depth in DEPTHS}
    return found | {name: variant(highway_fc, 50, gate_bias=float(bias)) for name, bias in SWEPT.items()}


def measure(variant: Variant, data: Dataset, seed: int, folder: Path, on_log) -> dict[str, Any]:
    """The scores, and of a highway network the mean of every transform gate over test digits: [layers][units]."""
    run, net = trained(variant, data, {seed: folder}, on_log)[seed], variant.net
    gated = tuple(f"{name}/gate" for name in net.names if name.startswith("highway"))
    if not gated:
        return scores(run)
    digits = {"image": data.test.image[:500], "label": data.test.label[:500]}
    images = Prepare(variant.recipe.prepare.transform)(None, digits)["image"]
    found = jax.jit(lambda values, images: features(net, values, images, gated))(variables(run.state), images)
    gates = [jax.nn.sigmoid(found[name]).mean(0) for name in gated]
    return {**scores(run), "gates": np.round(gates, 3).tolist(), "gate": float(np.mean(gates))}


def pictures(folder: Path, results: Mapping[str, Any]) -> Sequence[Picture]:
    error = figures.METRICS[results["metric"]]
    swept = dict(sorted([(BIASES[50], "highway-50"), *zip(SWEPT.values(), SWEPT, strict=True)]))
    depths = {kind: figures.points(results, {depth: f"{kind}-{depth}" for depth in DEPTHS}) for kind in KINDS}
    biases = {"": figures.points(results, swept)}
    first = {row["variant"]: next(iter(row["seeds"].values())) for row in results["rows"]}
    gates = {name: run["gates"] for name, run in first.items() if name in SHOWN}
    drawn = [
        Picture("depth", "Error by depth.", figures.lines(depths, x="layers", y=error, ticks=DEPTHS, log="xy")),
        Picture("bias", "Error by the bias that the gates start with, 50 highway layers.",
                figures.lines(biases, x="initial gate bias", y=error, ticks=tuple(swept))),
    ]  # fmt: skip
    if gates:
        greys = figures.heat(gates, x="unit", y="highway layer", value="mean transform gate", limits=(0, 1))
        drawn.append(Picture("gates", "The first seed's gates after training, mean over test images. Dark units "
                             "compute, light ones carry what they read.", greys))  # fmt: skip
    return drawn


EXPERIMENT = Experiment(
    name="highway_depth",
    doc=__doc__,
    scales=SCALES,
    variants=variants,
    published=dict.fromkeys([*(f"{kind}-{depth}" for kind in KINDS for depth in DEPTHS), *SWEPT]),
    published_as="the paper prints none",
    smoke=("plain-10", "highway-10", "highway-50", "residual-10", "highway-50-bias-1"),
    reference="highway-10",
    claims=CLAIMS,
    measured={"gate": "mean transform gate"},
    pictures=pictures,
)

if __name__ == "__main__":
    main(EXPERIMENT)
