"""Handwritten digits: the lectures' whole table, from a linear classifier to a committee of convolutional networks.

Claim: Errors fall down the table: a linear classifier, nearest neighbours, a perceptron, a Gaussian SVM, LeNet-5, an
    SVM that sees shifted digits, and with elastic distortions a convolutional network, a deep perceptron, a committee.
Source: The lecture's table of MNIST errors, after http://yann.lecun.com/exdb/mnist: LeCun et al. 1998; DeCoste &
    Schölkopf 2002; Simard et al. 2003; Cireşan et al. 2010 and 2012.
Command: python -m experiments.mnist_table
Cost: smoke: a third of a minute on 2 CPU cores. lab: 22 minutes there. paper: a day on a GPU.
Expected: lab: from 22 to 1.4 %; more than the published errors, for 4,000 digits stand for 60,000.
Departures: Networks are trained with Adam and a cosine schedule. The virtual SVM adds eight shifts of its support
    vectors, by 1 and 2 pixels along the axes, where DeCoste & Schölkopf add more. At the smoke and lab scales the deep
    perceptron has a fifth of its units and the committee 5 of 35 networks, which see the digits as they are and not at
    six further widths; a member is the network of the row above it but one. The classic methods have no seeds.
"""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

from cnnjax.analysis.classic import gaussian_svm, nearest_neighbours, virtual_svm
from cnnjax.data.augment import Compose
from cnnjax.data.splits import Dataset
from cnnjax.data.warps import Elastic, Rotate
from cnnjax.experiment import Experiment, adam_recipe, main
from cnnjax.models.chain import Chain, chain
from cnnjax.models.layers import Conv, Dense, MaxPool
from cnnjax.models.lectures import linear, mlp
from cnnjax.models.lenet import lenet5
from cnnjax.options import Config
from cnnjax.train.evaluate import score
from cnnjax.train.feed import Prepare
from cnnjax.train.losses import mean_squared_error
from cnnjax.train.recipe import Cosine
from cnnjax.variant import Variant
from cnnjax.verdict import Claim
from experiments.ensembles import members

PUBLISHED = {
    "linear": 12.0,
    "nearest-neighbours": 5.0,
    "perceptron-300": 4.7,
    "gaussian-svm": 1.4,
    "lenet5": 0.95,
    "virtual-svm": 0.56,
    "convolutional-elastic": 0.4,
    "perceptron-6-elastic": 0.35,
    "committee": 0.23,
}
CLASSIC = {"nearest-neighbours": nearest_neighbours, "gaussian-svm": gaussian_svm, "virtual-svm": virtual_svm}
CLAIMS = tuple(
    Claim(f"{worse} errs more than {better}", {worse: 1, better: -1}, above=0)
    for worse, better in itertools.pairwise(PUBLISHED)
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """The options of the whole table."""

    width: float = 0.2
    """Units of the deep perceptron, relative to the paper's."""
    networks: int = 5
    """Networks of the committee."""
    examples: int | None = None
    """The classic methods see about so many digits; None: all."""

    def __post_init__(self):
        super().__post_init__()
        self.positive("width")
        self.at_least(networks=1, examples=100)


LAB = Settings(scale="lab", seeds=5, epochs=40, batch=128, learning_rate=3e-3, bar=4)
SMOKE = dataclasses.replace(LAB, scale="smoke", seeds=2, epochs=0.3, width=0.02, networks=2, examples=500)
PAPER = dataclasses.replace(LAB, scale="paper", data="mnist", seeds=5, epochs=100, width=1, networks=35, bar=1.5)
SCALES = {"smoke": SMOKE, "lab": LAB, "paper": PAPER}


def simard(classes: int) -> Chain:
    """The convolutional network of Simard et al. 2003, images [28, 28, 1]: 5 and 50 maps of 5×5 with stride 2."""
    return chain(
        conv1=Conv(5, 5, stride=2, pad=((0, 1), (0, 1))),       # 13×13
        conv2=Conv(50, 5, stride=2),                            # 5×5
        fc1=Dense(100),
        output=Dense(classes, act=None),
    )  # fmt: skip


def ciresan(classes: int) -> Chain:
    """The network of Cireşan et al. 2012, images [28, 28, 1]: 20 maps, 40 maps, 150 units."""
    return chain(
        conv1=Conv(20, 4),                                      # 25×25
        pool1=MaxPool(2, stride=2, ceil=True),                  # 13×13
        conv2=Conv(40, 5),                                      # 9×9
        pool2=MaxPool(3, stride=3),                             # 3×3
        fc1=Dense(150),
        output=Dense(classes, act=None),
    )  # fmt: skip


def variants(config: Settings, data: Dataset) -> dict[str, Variant]:
    plain, classes = adam_recipe(config, data), len(data.classes)
    slow = dataclasses.replace(plain, schedule=Cosine(config.learning_rate / 3))
    distort = Prepare(plain.prepare.transform, Compose((Elastic(), Rotate(10.0))))
    elastic, slow_elastic = (dataclasses.replace(recipe, prepare=distort) for recipe in (plain, slow))
    deep = [max(4, round(config.width * units)) for units in (2500, 2000, 1500, 1000, 500)]
    squared = dataclasses.replace(slow, loss=mean_squared_error())
    known = {
        name: Variant(measure=functools.partial(classic, predict, config.examples)) for name, predict in CLASSIC.items()
    }
    nets = {
        "linear": (linear(classes), squared),
        "perceptron-300": (mlp(300, classes=classes, act="tanh"), squared),
        "lenet5": (lenet5(classes, pad=2, act="relu"), plain),
        "convolutional-elastic": (simard(classes), elastic),
        "perceptron-6-elastic": (mlp(*deep, classes=classes, act="tanh"), slow_elastic),
    }
    several = functools.partial(committee, config.networks)
    whole = Variant(net=ciresan(classes), recipe=elastic, measure=several, networks=config.networks)
    trained = {name: Variant(net=net, recipe=recipe) for name, (net, recipe) in nets.items()}
    return {**known, **trained, "committee": whole}


def committee(count: int, variant: Variant, data: Dataset, seed: int, folder: Path, on_log) -> dict[str, Any]:
    return score(members(count, variant, data, seed, folder, on_log), data.test, batch=250).metrics


def classic(predict, examples: int | None, variant: Variant, data: Dataset, seed: int, folder: Path, on_log):
    """The test error of a classifier that is the same for every seed."""
    some = slice(None, None, max(1, len(data.train.label) // (examples or len(data.train.label))))
    wrong = predict(data.train.image[some], data.train.label[some], data.test.image) != data.test.label
    return {"error": 100 * float(wrong.mean()), "count": len(wrong)}


EXPERIMENT = Experiment(
    name="mnist_table",
    doc=__doc__,
    scales=SCALES,
    variants=variants,
    published=PUBLISHED,
    published_as="test error on MNIST after 60,000 digits, as the lecture's table has it",
    reference="lenet5",
    claims=CLAIMS,
)

if __name__ == "__main__":
    main(EXPERIMENT)
