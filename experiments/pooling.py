"""Pooling: the maximum, the mean, overlapping or not, a strided convolution instead, or nothing; and shifted images.

Claim: A network that halves its maps by convolutions alone is as good as one with max-pooling; only to stride in its
    place is worse; overlapping windows are better than those side by side; pooling makes predictions shift less.
Source: Springenberg et al. 2015, "Striving for simplicity: the all convolutional net" (arXiv:1412.6806), Table 3, base
    model C; overlapping windows from Krizhevsky et al. 2012, section 3.4. Shifts: the lectures on pooling.
Command: python -m experiments.pooling
Cost: smoke: a minute on 2 CPU cores. lab: 11 minutes there. paper: 350 epochs of CIFAR-10 a run, hours on
    a GPU.
Expected: lab: 3 to 4.3 %; convolution and pooling together are best.
Departures: The paper's learning rates were searched and its schedule is recalled; here all scales have Adam and a
    cosine schedule. The smoke and lab scales train networks of a sixth of the width and without dropout on digits of
    16×16 pixels, and without the ReLU on the maps of the classes, of which few steps leave some dead. All networks
    average their last maps, "none" as well. At a rate of 0.003 one of ten networks with max-pooling did not get started
    at all, hence 0.002. What comes in where an image is shifted is 0.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from cnnjax import figures
from cnnjax.analysis.summary import summarise
from cnnjax.data.splits import Dataset
from cnnjax.experiment import Experiment, adam_recipe, main
from cnnjax.models.all_cnn import all_cnn
from cnnjax.models.chain import Chain
from cnnjax.models.layers import AvgPool, MaxPool
from cnnjax.models.surgery import replace, with_head, with_width, without
from cnnjax.options import Narrow
from cnnjax.page import Picture
from cnnjax.train.evaluate import Member, predict
from cnnjax.train.state import variables
from cnnjax.variant import Variant, scores, trained
from cnnjax.verdict import Claim

# Springenberg et al. 2015, Table 3, base model C: test error on CIFAR-10 without augmentation, %; recalled
PUBLISHED = {
    "max": 9.74,
    "max-side-by-side": None,
    "mean": None,
    "strided": 10.19,
    "convolution-and-max": 9.31,
    "all-convolutional": 9.08,
    "none": None,
}
SHIFTS = (1, 2, 3)
CLAIMS = (
    Claim("convolutions alone are as good", {"all-convolutional": 1, "max": -1}, below=0.5),
    Claim("to stride in place of pooling is worse", {"strided": 1, "max": -1}, above=0),
    Claim("windows side by side are worse than overlapping ones", {"max-side-by-side": 1, "max": -1}, above=0),
    Claim("without pooling more predictions change with a shift", {"none": 1, "max": -1}, above=0, metric="changed"),
)


LAB = Narrow(scale="lab", width=0.167, seeds=10, size=16, epochs=12, batch=64, learning_rate=2e-3, bar=4)
SMOKE = dataclasses.replace(LAB, scale="smoke", seeds=2, width=0.03, epochs=0.1)
PAPER = dataclasses.replace(
    LAB, scale="paper", data="cifar10", size=None, width=1, epochs=350, batch=128, learning_rate=1e-3, bar=12
)
SCALES = {"smoke": SMOKE, "lab": LAB, "paper": PAPER}


def networks() -> dict[str, Chain]:
    base = all_cnn("C", "Base-CNN")

    def pooled(pool) -> Chain:
        return replace(base, pool1=pool, pool2=pool)

    return {
        "max": base,
        "max-side-by-side": pooled(MaxPool(2, stride=2)),
        "mean": pooled(AvgPool(3, stride=2, ceil=True)),
        "strided": all_cnn("C", "Strided-CNN"),
        "convolution-and-max": all_cnn("C", "ConvPool-CNN"),
        "all-convolutional": all_cnn("C", "All-CNN"),
        "none": without(base, "pool1", "pool2"),
    }


def variants(config: Narrow, data: Dataset) -> dict[str, Variant]:
    recipe, found = adam_recipe(config, data), {}
    for name, net in networks().items():
        net = with_head(with_width(net, config.width), len(data.classes))
        if config.scale != "paper":
            net = without(net, "drop0", "drop1", "drop2")
            net = replace(net, conv3_3=net["conv3_3"].clone(act=None))
        cost = summarise(net, data.train.image.shape[1:])
        columns = {"parameters": cost.params, "MACs": cost.macs}
        found[name] = Variant(net=net, recipe=recipe, columns=columns, measure=shifted)
    return found


def shifts(images: np.ndarray, far: int) -> list[np.ndarray]:
    """The images, shifted by so many pixels down, up, right and left: [B, H, W, C] each."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (far, far), (far, far), (0, 0)))
    corners = [(0, far), (2 * far, far), (far, 0), (far, 2 * far)]
    return [padded[:, top : top + height, left : left + width] for top, left in corners]


def shifted(variant: Variant, data: Dataset, seed: int, folder: Path, on_log) -> dict[str, Any]:
    """The scores, and how many predictions, in %, change with a shift by 1, 2 and 3 pixels, mean over four sides."""
    run, images = trained(variant, data, {seed: folder}, on_log)[seed], np.asarray(data.test.image[:1000])
    network = Member(variant.net, variables(run.state), variant.recipe.prepare)

    def best(images: np.ndarray) -> np.ndarray:
        return np.asarray(predict([network], jnp.asarray(images))).argmax(-1)

    still = best(images)
    changed = [100 * float(np.mean([best(moved) != still for moved in shifts(images, far)])) for far in SHIFTS]
    return {**scores(run), "changed": changed[0], "changes": changed}


def pictures(folder: Path, results: Mapping[str, Any]) -> Sequence[Picture]:
    series = {}
    for row in results["rows"]:
        changes = zip(SHIFTS, *(run["changes"] for run in row["seeds"].values()), strict=True)
        series[row["variant"]] = [figures.point(far, values) for far, *values in changes]
    drawn = figures.lines(series, x="shift, pixels", y="predictions that change, %", ticks=SHIFTS)
    return [Picture("shifts", "How many predictions change when the image is shifted.", drawn)]


EXPERIMENT = Experiment(
    name="pooling",
    doc=__doc__,
    scales=SCALES,
    variants=variants,
    published=PUBLISHED,
    published_as="test error on CIFAR-10 without augmentation, recalled (Springenberg et al. 2015, Table 3)",
    smoke=("max", "strided", "none"),
    reference="max",
    claims=CLAIMS,
    measured={"changed": "changed by a shift of 1 pixel, %"},
    pictures=pictures,
)

if __name__ == "__main__":
    main(EXPERIMENT)
