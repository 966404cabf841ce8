"""Traffic signs: what dropout, distorted pictures and equalised histograms are worth to LeNet.

Claim: A LeNet that is trained with dropout, on pictures that are turned and blurred at random and whose histograms are
    equalised, recognises at least 94 of 100 German traffic signs that it has not seen; the lecture's recognised 96.8.
Source: The lecture on LeNet, traffic signs: 20 epochs, batches of 128, Adam with 0.001, keep-prob 0.7; accuracy 0.968
    in validation, whose error is in the table at the row with all three, and 0.955 on the test set.
Command: python -m experiments.lenet_traffic_signs --data npz:gtsrb.npz
Cost: smoke: a minute on 2 CPU cores. lab: 30 minutes on one of them. paper: the same.
Expected: lab: 8 % validation error with neither device, 5 % with both (accuracy 0.949); equalising costs 4 points.
Departures: The lecture does not say how its validation signs were chosen. The pictures of one sign, a "track", are
    nearly alike, so whole tracks are set aside, a fifth of every class. Pictures are brought to mean 0 and variance 1,
    which does most of equalising's work: "lenet" is without it, "equalised" has all three devices. Distortion takes a
    large part of a picture too, pools take the maximum, the rate falls on half a cosine; the lab scale has 60 epochs at
    0.003 and a decoupled decay of 0.1. The smoke scale sees digits. The archive holds image uint8 [N, 32, 32, 3],
    label [N] in the benchmark's order, and track [N], equal for one sign.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import optax
import tyro

from cnnjax import figures
from cnnjax.data.augment import Compose, RandomResizedCrop, fixed
from cnnjax.data.colour import Equalise, StandardiseEach
from cnnjax.data.images import Transform, conform, decode
from cnnjax.data.splits import Dataset
from cnnjax.data.warps import Blur, Rotate
from cnnjax.experiment import Experiment, adam_recipe, command, configuration, run
from cnnjax.models.layers import MaxPool
from cnnjax.models.lenet import lenet5
from cnnjax.models.surgery import replace
from cnnjax.options import Config
from cnnjax.page import Picture
from cnnjax.train.evaluate import Member, predict, score
from cnnjax.train.feed import Prepare
from cnnjax.train.recipe import preparation
from cnnjax.train.state import variables
from cnnjax.variant import Variant, scores, trained
from cnnjax.verdict import Claim

BOTH = ("distortion", "dropout")
ROWS = {"lenet": BOTH, "equalised": (*BOTH, "levels"), "no-distortion": BOTH[1:], "no-dropout": BOTH[:1], "neither": ()}
CLAIMS = (
    Claim("at least 94 of 100 signs are recognised", {"lenet": 1}, below=6),
    Claim("without dropout and distortion it is worse", {"neither": 1, "lenet": -1}, above=0),
    Claim("equalised histograms help", {"lenet": 1, "equalised": -1}, above=0),
)
SIGNS = """20 km/h, 30 km/h, 50 km/h, 60 km/h, 70 km/h, 80 km/h, end of 80 km/h, 100 km/h, 120 km/h, no overtaking,
no overtaking by lorries, right of way at the crossing, priority road, give way, stop, no vehicles, no lorries,
no entry, danger, bend to the left, bend to the right, double bend, uneven road, slippery road, road narrows,
road works, traffic lights, pedestrians, children, bicycles, snow, wild animals, end of restrictions, turn right,
turn left, straight on, straight on or right, straight on or left, keep right, keep left, roundabout,
end of no overtaking, end of no overtaking by lorries""".replace("\n", " ").split(", ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """The options of the traffic signs."""

    image: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE")] = ()
    """Say which five signs the trained network most likely sees in this picture; may be given several times."""

    def record(self) -> dict[str, Any]:
        return {name: value for name, value in super().record().items() if name != "image"}


LAB = Settings(
    scale="lab", data="npz:gtsrb.npz", seeds=3, size=32, channels=1, epochs=60, batch=128, learning_rate=3e-3, bar=8
)
SMOKE = dataclasses.replace(LAB, scale="smoke", data="mnist5k", seeds=2, epochs=0.5)
PAPER = dataclasses.replace(LAB, scale="paper", seeds=5, epochs=20, learning_rate=1e-3)
SCALES = {"smoke": SMOKE, "lab": LAB, "paper": PAPER}


def variants(config: Settings, data: Dataset) -> dict[str, Variant]:
    parts = RandomResizedCrop(data.train.image.shape[1:3], area=(0.8, 1.0), aspect=(0.95, 1.05))
    rule = optax.adam if config.scale == "paper" else partial(optax.adamw, weight_decay=0.1)

    def variant(*devices: str) -> Variant:
        net = replace(lenet5(len(data.classes), act="relu"), S2=MaxPool(2, stride=2), S4=MaxPool(2, stride=2))
        if "dropout" in devices:
            net = replace(net, C5=net["C5"].clone(dropout=0.3), F6=net["F6"].clone(dropout=0.3))
        steps = [parts, Rotate(5.0), Blur((0.1, 0.6))] * ("distortion" in devices)
        steps += [Equalise()] * ("levels" in devices)
        prepare = Prepare(Transform(scale=255), Compose((*steps, StandardiseEach())))
        recipe = dataclasses.replace(adam_recipe(config, data), prepare=prepare, optimiser=rule)
        return Variant(net=net, recipe=recipe, measure=measure)

    return {name: variant(*devices) for name, devices in ROWS.items()}


def member(variant: Variant, data: Dataset, seed: int, folder: Path, on_log) -> tuple[dict[str, Any], Member]:
    """The scores of the network that is trained in `folder`, and the network as it looks at pictures."""
    done, prepare = trained(variant, data, {seed: folder}, on_log)[seed], preparation(variant.recipe, data)
    looks = Prepare(prepare.transform, fixed(prepare.augment))
    return scores(done), Member(variant.net, variables(done.state), looks)


def measure(variant: Variant, data: Dataset, seed: int, folder: Path, on_log) -> dict[str, Any]:
    found, network = member(variant, data, seed, folder, on_log)
    return {**found, "confusion": score([network], data.test, batch=256).confusion.tolist()}


def pictures(folder: Path, results: Mapping[str, Any]) -> Sequence[Picture]:
    row = results["rows"][0]
    counts = np.sum([one["confusion"] for one in row["seeds"].values()], axis=0)
    caption = (
        f"{row['variant']}, all seeds together. Row: what it is. Column: what it is taken for. Darker: more of the row."
    )
    return [Picture("confusion", caption, figures.confusion(counts, [str(i) for i in range(len(counts))]))]


def recognise(config: Settings) -> None:
    """Prints what the first seed's network, trained before, takes the pictures for."""
    size = (config.size or 32, config.size or 32)
    given = [conform(Transform(size), decode(path, channels=config.channels or 1)) for path in config.image]
    data, folder = config.load(), config.folder("lenet_traffic_signs")
    names = SIGNS if len(data.classes) == len(SIGNS) else data.classes
    variant, place = variants(config, data)["lenet"], folder / "lenet" / f"seed-{config.seed}"
    _, network = member(variant, data, config.seed, place, lambda row: None)
    for path, log_p in zip(config.image, np.asarray(predict([network], jnp.asarray(given))), strict=True):
        best = np.argsort(-log_p)[:5]
        print(f"{path}: " + ", ".join(f"{names[i]} ({100 * np.exp(log_p[i]):.1f} %)" for i in best))


EXPERIMENT = Experiment(
    name="lenet_traffic_signs",
    doc=__doc__,
    scales=SCALES,
    variants=variants,
    published={**dict.fromkeys(ROWS), "equalised": 3.2},  # 1 - 0.968
    published_as="validation error of the lecture's network on the German Traffic Sign Recognition Benchmark",
    reference="lenet",
    claims=CLAIMS,
    pictures=pictures,
)

if __name__ == "__main__":
    with command():
        asked = configuration(EXPERIMENT, sys.argv[1:])
        run(EXPERIMENT, asked)
        if asked.image:
            recognise(asked)
