"""Looking twice: one network or seven, one crop of an image or many, one scale or several.

Claim: Averaging over crops helps, averaging over networks helps as much, and both add up.
Source: Szegedy et al. 2014, "Going deeper with convolutions" (arXiv:1409.4842), Table 3: GoogLeNet. Dense evaluation at
    one and at several scales: Simonyan & Zisserman 2014 (arXiv:1409.1556), section 4.
Command: python -m experiments.ensembles
Cost: smoke: half a minute on 2 CPU cores. lab: 7 minutes there. paper: 7 · 250 epochs of ImageNet, weeks on a GPU.
Expected: lab: 2.7 % test error; ten crops bring 0.4, seven networks 0.6; scales not seen in training do harm.
Departures: The smoke and lab scales train LeNet-5 with Adam on crops of 24×24 pixels of digits, and do not mirror them,
    which halves the numbers of crops; the squares of an image that is not square are all the same here. An error of
    "1 network" is the mean of the seven's own errors. All seven start from other weights and see other batches.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnnjax import figures
from cnnjax.data.augment import RandomCrop, fixed
from cnnjax.data.splits import Dataset
from cnnjax.experiment import Experiment, adam_recipe, main, printed_recipe
from cnnjax.models.googlenet import googlenet
from cnnjax.models.lenet import lenet5
from cnnjax.models.surgery import fully_convolutional
from cnnjax.options import Config
from cnnjax.page import Picture
from cnnjax.train.evaluate import Member, score
from cnnjax.train.feed import Prepare
from cnnjax.train.protocols import PROTOCOLS, Protocol
from cnnjax.train.recipe import preparation
from cnnjax.train.recipes import GOOGLENET
from cnnjax.train.state import variables
from cnnjax.variant import Variant, trained
from cnnjax.verdict import Claim

# All networks or one, the protocol, and the top-5 validation error of Szegedy et al. 2014, Table 3, %; some recalled
# fmt: off
TABLE = {
    "1-network-1-crop":       (False, "centre",     10.07),
    "1-network-10-crops":     (False, "10crop",     9.15),
    "1-network-144-crops":    (False, "144",        7.89),
    "7-networks-1-crop":      (True,  "centre",     8.09),
    "7-networks-10-crops":    (True,  "10crop",     7.62),
    "7-networks-144-crops":   (True,  "144",        6.67),
    "1-network-dense":        (False, "dense",      None),
    "1-network-multi-scale":  (False, "multiscale", None),
}
# fmt: on
CLAIMS = (
    Claim("ten crops are better than one", {"1-network-1-crop": 1, "1-network-10-crops": -1}, above=0),
    Claim("144 crops are better than ten", {"1-network-10-crops": 1, "1-network-144-crops": -1}, above=0),
    Claim("seven networks are better than one", {"1-network-1-crop": 1, "7-networks-1-crop": -1}, above=0),
    Claim("crops help seven networks too", {"7-networks-1-crop": 1, "7-networks-144-crops": -1}, above=0),
    Claim("several scales are better than one", {"1-network-dense": 1, "1-network-multi-scale": -1}, above=0),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """The options of ensembles."""

    networks: int = 7
    """How many networks an ensemble has."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least(networks=1)


LAB = Settings(scale="lab", seeds=5, epochs=15, batch=64, learning_rate=4e-3, bar=4)
SMOKE = dataclasses.replace(LAB, scale="smoke", seeds=2, epochs=0.2, networks=2)
PAPER = dataclasses.replace(
    LAB, scale="paper", data="tfds:imagenet2012", seeds=1, size=256, epochs=250, batch=32, learning_rate=0.01,
    metric="error5", bar=12,
)  # fmt: skip
SCALES = {"smoke": SMOKE, "lab": LAB, "paper": PAPER}


def variants(config: Settings, data: Dataset) -> dict[str, Variant]:
    classes = len(data.classes)
    if config.scale == "paper":
        recipe = printed_recipe(GOOGLENET, config, data)
        net = googlenet(classes=classes)
    else:
        recipe, net, crop = adam_recipe(config, data), lenet5(classes, pad=2, act="relu"), RandomCrop((24, 24))
        recipe = dataclasses.replace(recipe, crop=24, prepare=Prepare(recipe.prepare.transform, crop))

    def variant(several: bool, name: str) -> Variant:
        protocol = PROTOCOLS[name].for_crop(recipe.crop)
        protocol = dataclasses.replace(protocol, mirror=protocol.mirror and config.scale == "paper")
        measure = functools.partial(measured, config.networks, several, protocol)
        return Variant(net=net, recipe=recipe, measure=measure, shares=True)

    return {name: variant(several, protocol) for name, (several, protocol, _) in TABLE.items()}


def members(count: int, variant: Variant, data: Dataset, seed: int, folder: Path, on_log) -> list[Member]:
    """So many networks, trained from seeds of their own in `folder`, or taken from there."""
    prepare, steps, found = preparation(variant.recipe, data), variant.steps(data), []
    looks = Prepare(prepare.transform, fixed(prepare.augment))
    for i in range(count):

        def tell(row, i=i):
            on_log({**row, "step": (i * steps + row["step"]) // count})

        place, own = folder / f"network-{i}", count * seed + i
        place.mkdir(parents=True, exist_ok=True)
        found.append(Member(variant.net, variables(trained(variant, data, {own: place}, tell)[own].state), looks))
    return found


def measured(
    count: int, several: bool, protocol: Protocol, variant: Variant, data: Dataset, seed: int, folder: Path, on_log
) -> dict[str, Any]:
    """The errors of all networks together, or the mean of their own; all rows take the same networks."""
    networks = members(count, variant, data, seed, folder.parent.parent / f"networks-{seed}", on_log)
    networks = [one._replace(protocol=protocol) for one in networks]
    if protocol.crops is None:
        whole = [fully_convolutional(one.net, one.variables, variant.sees(data)) for one in networks]
        networks = [one._replace(net=net, variables=values) for one, (net, values) in zip(networks, whole, strict=True)]
    groups = [networks] if several else [[one] for one in networks]
    found = [score(group, data.test, batch=100).metrics for group in groups]
    return {**{name: float(np.mean([one[name] for one in found])) for name in found[0]}, "count": found[0]["count"]}


def pictures(folder: Path, results: Mapping[str, Any]) -> Sequence[Picture]:
    crops = (1, 10, 144)
    names = {count: {n: f"{count}-{n}-crop{'s' * (n > 1)}" for n in crops} for count in ("1-network", "7-networks")}
    series = {count: figures.points(results, places) for count, places in names.items()}
    what = {"x": "crops, as the paper counts them", "y": figures.METRICS[results["metric"]]}
    drawn = figures.lines(series, **what, ticks=crops, log="x")
    return [Picture("crops", "Error by the number of crops and of networks.", drawn)]


EXPERIMENT = Experiment(
    name="ensembles",
    doc=__doc__,
    scales=SCALES,
    variants=variants,
    published={name: error for name, (_, _, error) in TABLE.items()},
    published_as="top-5 validation error of GoogLeNet on ImageNet 2012 (Szegedy et al. 2014, Table 3; some recalled)",
    reference="1-network-1-crop",
    claims=CLAIMS,
    pictures=pictures,
)

if __name__ == "__main__":
    main(EXPERIMENT)
