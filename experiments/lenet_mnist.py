"""Handwritten digits from a linear classifier to LeNet-5: what convolution, subsampling and depth bring.

Claim: Errors fall in this order: a linear classifier, nearest neighbours, one hidden layer, a Gaussian SVM, LeNet-5.
Source: LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to document recognition", Fig. 9 and
    section III: after 60,000 digits, without deskewing and distortions.
Command: python -m experiments.lenet_mnist
Cost: smoke: half a minute on 2 CPU cores. lab: 14 minutes there. paper: 20 passes over MNIST, an hour on a CPU.
Expected: lab: dense LeNet-5 at 2.8 % test error, that of 1998 at 3.3; all above their published errors, for they see
    4,000 digits.
Departures: Adam and a cosine schedule (for the perceptrons at a third of the learning rate) stand for the paper's
    diagonal Levenberg-Marquardt method, and LeNet-5 sees pixels of mean 0 and variance 1. Digits are 28×28, which the
    first convolution pads to 32×32. "lenet5-dense" is today's LeNet-5, with ReLU and cross-entropy; the paper has no
    such row. The smoke and lab scales train on 4,000 digits.
"""

import dataclasses
import functools

from cnnjax.analysis.classic import gaussian_svm, nearest_neighbours
from cnnjax.data.splits import Dataset
from cnnjax.experiment import Experiment, adam_recipe, main
from cnnjax.models.lectures import linear, mlp
from cnnjax.models.lenet import lenet5, lenet5_1998
from cnnjax.options import Config
from cnnjax.train.losses import mean_squared_error, rbf_discriminative
from cnnjax.train.recipe import Cosine
from cnnjax.train.recipes import lecun
from cnnjax.variant import Variant
from cnnjax.verdict import Claim
from experiments.mnist_table import classic

# LeCun et al. 1998, Fig. 9: test error on MNIST, %
PUBLISHED = {
    "linear": 12.0,
    "nearest-neighbours": 5.0,
    "mlp-300": 4.7,
    "gaussian-svm": 1.4,
    "lenet5-1998": 0.95,
    "lenet5-dense": None,
}

CLAIMS = tuple(
    Claim(f"{worse} errs more than {better}", {worse: 1, better: -1}, above=0)
    for worse, better in [
        ("linear", "nearest-neighbours"),
        ("nearest-neighbours", "mlp-300"),
        ("mlp-300", "gaussian-svm"),
        ("gaussian-svm", "lenet5-1998"),
    ]
)

LAB = Config(scale="lab", data="mnist5k", seeds=10, epochs=20, batch=128, learning_rate=8e-3, bar=4)
SCALES = {
    "smoke": dataclasses.replace(LAB, scale="smoke", seeds=2, epochs=1),
    "lab": LAB,
    "paper": dataclasses.replace(LAB, scale="paper", data="mnist", seeds=5, bar=1.5),
}


def variants(config: Config, data: Dataset) -> dict[str, Variant]:
    lenet, classes = adam_recipe(config, data), len(data.classes)
    rbf = dataclasses.replace(lenet, loss=rbf_discriminative(j=0.1))
    perceptron = dataclasses.replace(
        lenet,
        schedule=Cosine(config.learning_rate / 3),
        prepare=lecun,
        loss=mean_squared_error(),
    )
    return {
        "linear": Variant(net=linear(classes), recipe=perceptron),
        "nearest-neighbours": Variant(measure=functools.partial(classic, nearest_neighbours, None)),
        "mlp-300": Variant(net=mlp(300, classes=classes, act="tanh"), recipe=perceptron),
        "gaussian-svm": Variant(measure=functools.partial(classic, gaussian_svm, None)),
        "lenet5-1998": Variant(net=lenet5_1998(pad=2), recipe=rbf),
        "lenet5-dense": Variant(net=lenet5(classes, pad=2, act="relu"), recipe=lenet),
    }


EXPERIMENT = Experiment(
    name="lenet_mnist",
    doc=__doc__,
    scales=SCALES,
    variants=variants,
    published=PUBLISHED,
    published_as="test error on MNIST after 60,000 digits (LeCun et al. 1998, Fig. 9)",
    reference="lenet5-dense",
    claims=CLAIMS,
)

if __name__ == "__main__":
    main(EXPERIMENT)
