"""DenseNet: what depth L, growth rate k, bottlenecks and compression bring, against their parameters.

Claim: More layers and more maps a layer help; bottlenecks and compression (BC) save eight ninths of the parameters and
    cost hardly anything; a ResNet of as many parameters errs more.
Source: Huang et al. 2017, "Densely connected convolutional networks" (arXiv:1608.06993), Table 2 and Fig. 4; ResNet-56
    from He et al. 2015, "Deep residual learning for image recognition" (arXiv:1512.03385), Table 6.
Command: python -m experiments.densenet_growth
Cost: smoke: a third of a minute on 2 CPU cores. lab: 8 minutes there. paper: 300 epochs of CIFAR-10 a run, a day on a
    GPU for the largest.
Expected: lab: 1.5 to 3.5 % test error, but with bottlenecks and compression at once, which leave 5,000 parameters, 5 %,
    and 8 % in a ResNet of as many.
Departures: At the smoke and lab scales L and k are a part of the names', as the columns say, on digits of 16×16 pixels,
    with Adam and a cosine schedule; the ResNet is as deep as L of the BC, and as wide as gives it as many parameters.
    The rows with B or C alone are in Fig. 4 only, without numbers.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnjax import figures
from cnnjax.analysis.summary import summarise
from cnnjax.data.splits import Dataset
from cnnjax.experiment import Experiment, adam_recipe, main, printed_recipe
from cnnjax.models.chain import Chain
from cnnjax.models.densenet import TABLE_2, densenet_cifar
from cnnjax.models.resnet import cifar_resnet
from cnnjax.models.surgery import with_width
from cnnjax.options import Config
from cnnjax.page import Picture
from cnnjax.train.recipes import DENSENET_CIFAR
from cnnjax.variant import Variant
from cnnjax.verdict import Claim

# Huang et al. 2017, Table 2, and He et al. 2015, Table 6: test error on CIFAR-10 with augmentation, %
PUBLISHED = {
    "L40_k12": 5.24,
    "L100_k12": 4.10,
    "L100_k24": 3.74,
    "b_L100_k12": None,
    "c_L100_k12": None,
    "bc_L100_k12": 4.51,
    "resnet56": 6.97,
}
CLAIMS = (
    Claim("more layers help", {"L40_k12": 1, "L100_k12": -1}, above=0),
    Claim("more maps a layer help", {"L100_k12": 1, "L100_k24": -1}, above=0),
    Claim("bottlenecks and compression cost less than a point", {"bc_L100_k12": 1, "L100_k12": -1}, below=1),
    Claim("a ResNet of as many parameters is worse", {"resnet56": 1, "bc_L100_k12": -1}, above=0),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """The options of networks that grow."""

    layers: float = 0.125
    """Layers within the blocks, relative to the name's, rounded to what the blocks allow."""
    growth: float = 0.334
    """The growth rate k, relative to the name's."""

    def __post_init__(self):
        super().__post_init__()
        self.positive("layers", "growth")


LAB = Settings(
    scale="lab", seeds=5, size=16, layers=0.125, growth=0.334, epochs=10, batch=64, learning_rate=3e-3, bar=4
)
SCALES = {
    "smoke": dataclasses.replace(LAB, scale="smoke", seeds=2, size=8, layers=0.06, growth=0.167, epochs=0.2),
    "lab": LAB,
    "paper": dataclasses.replace(
        LAB, scale="paper", data="cifar10", seeds=1, size=None, layers=1, growth=1, epochs=300, learning_rate=0.1, bar=7
    ),
}


def dense(name: str, config: Settings, classes: int) -> tuple[Chain, int, int]:
    """A row of Table 2 as large as the settings say: the network, its L and its k."""
    depth, growth, bottleneck, compression = TABLE_2[name]
    of_three = 6 if bottleneck else 3  # L counts so many convolutions for one more layer in each block
    depth = 4 + of_three * max(1, round(config.layers * (depth - 4) / of_three))
    growth = max(1, round(config.growth * growth))
    return densenet_cifar(depth, growth, classes, bottleneck=bottleneck, compression=compression), depth, growth


def variants(config: Settings, data: Dataset) -> dict[str, Variant]:
    classes, image = len(data.classes), data.train.image.shape[1:]
    recipe = adam_recipe(config, data)
    if config.scale == "paper":
        recipe = printed_recipe(DENSENET_CIFAR, config, data)

    def variant(net: Chain, **columns: int) -> Variant:
        cost = summarise(net, image)
        return Variant(net=net, recipe=recipe, columns={**columns, "parameters": cost.params, "MACs": cost.macs})

    found = {}
    for name in (name for name in PUBLISHED if name in TABLE_2):
        net, depth, growth = dense(name, config, classes)
        found[name] = variant(net, layers=depth, k=growth)
    if config.scale == "paper":
        return {**found, "resnet56": variant(cifar_resnet(56, classes), layers=56)}
    rival = found["bc_L100_k12"].columns
    net = cifar_resnet(rival["layers"] - 2, classes)
    net = with_width(net, math.sqrt(rival["parameters"] / summarise(net, image).params))
    return {**found, "resnet56": variant(net, layers=rival["layers"] - 2)}


def pictures(folder: Path, results: Mapping[str, Any]) -> Sequence[Picture]:
    places = {row["variant"]: row["columns"]["parameters"] for row in results["rows"]}
    kinds = {"DenseNet": ("L40_k12", "L100_k12", "L100_k24"), "DenseNet-B": ("b_L100_k12",),
             "DenseNet-C": ("c_L100_k12",), "DenseNet-BC": ("bc_L100_k12",), "ResNet": ("resnet56",)}  # fmt: skip
    series = {
        kind: figures.points(results, {places[name]: name for name in names if name in places})
        for kind, names in kinds.items()
    }
    drawn = figures.lines(series, x="parameters", y=figures.METRICS[results["metric"]], log="x")
    return [Picture("parameters", "Error against parameters. Line: plain DenseNets, ever larger.", drawn)]


EXPERIMENT = Experiment(
    name="densenet_growth",
    doc=__doc__,
    scales=SCALES,
    variants=variants,
    published=PUBLISHED,
    published_as="test error on CIFAR-10 with augmentation (Huang et al. 2017, Table 2; He et al. 2015, Table 6)",
    smoke=("L100_k12", "bc_L100_k12", "resnet56"),
    reference="L100_k12",
    claims=CLAIMS,
    pictures=pictures,
)

if __name__ == "__main__":
    main(EXPERIMENT)
