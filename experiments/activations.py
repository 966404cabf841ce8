"""Six activations in one network: sigmoid, tanh, scaled tanh, ReLU, softplus and ELU.

Claim: A network with ReLU learns in fewer epochs than one whose units saturate, and errs less after the same number.
Source: The lectures on activation functions, and Krizhevsky, Sutskever & Hinton 2012, "ImageNet classification with
    deep convolutional neural networks", section 3.1 and Fig. 1. The scaled tanh is LeCun et al. 1998, appendix A. They
    print no errors for each function.
Command: python -m experiments.activations
Cost: smoke: a quarter of a minute on 2 CPU cores. lab: 9 minutes there. paper: 90 epochs of ImageNet a run.
Expected: lab: all at 3 to 3.5 % test error but the sigmoid, at 6 %; tanh and ReLU are alike, the sigmoid is later by
    more than an epoch.
Departures: The smoke and lab scales train LeNet-5 (dense, on 28×28 pixels) on digits with Adam and a cosine schedule,
    the paper scale AlexNet, at one learning rate for all functions. Weights start as He's at the former, as printed at
    the latter. "Epochs to 25 %" is read off the training error, as in Krizhevsky's figure, a mean over a hundredth of
    the training; a run that does not get there counts as all its epochs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnjax import figures
from cnnjax.data.splits import Dataset
from cnnjax.experiment import Experiment, adam_recipe, main, printed_recipe
from cnnjax.models.alexnet import alexnet
from cnnjax.models.layers import ACTIVATIONS
from cnnjax.models.lenet import lenet5
from cnnjax.models.surgery import with_activation
from cnnjax.options import Config
from cnnjax.page import Picture
from cnnjax.train.recipes import ALEXNET
from cnnjax.variant import Variant, scores, trained
from cnnjax.verdict import Claim

FUNCTIONS = ("sigmoid", "tanh", "scaled_tanh", "relu", "softplus", "elu")
CLAIMS = (
    Claim(
        "tanh takes more epochs to 25 % than ReLU", {"tanh": 1, "relu": -1}, above=0, metric="epochs_to_25", least=0.1
    ),
    Claim("the sigmoid takes more than tanh", {"sigmoid": 1, "tanh": -1}, above=0, metric="epochs_to_25"),
    Claim("the sigmoid errs more than ReLU", {"sigmoid": 1, "relu": -1}, above=0),
    Claim("tanh errs more than ReLU", {"tanh": 1, "relu": -1}, above=0),
)

LAB = Config(scale="lab", seeds=10, epochs=20, batch=64, learning_rate=2e-3, bar=4)
SCALES = {
    "smoke": dataclasses.replace(LAB, scale="smoke", seeds=2, epochs=0.5),
    "lab": LAB,
    "paper": Config(
        scale="paper", data="tfds:imagenet2012", seeds=1, size=256, channels=3, epochs=90, batch=128,
        learning_rate=0.01, bar=45,
    ),
}  # fmt: skip


def variants(config: Config, data: Dataset) -> dict[str, Variant]:
    recipe, net = adam_recipe(config, data), lenet5(len(data.classes), pad=2)
    if config.scale == "paper":
        recipe = printed_recipe(ALEXNET, config, data)
        net = alexnet(len(data.classes))
    return {name: Variant(net=with_activation(net, name), recipe=recipe, measure=measure) for name in FUNCTIONS}


def measure(variant: Variant, data: Dataset, seed: int, folder: Path, on_log) -> dict[str, Any]:
    """As `train`, and the epochs until the training error is below 25 %."""
    run = trained(variant, data, {seed: folder}, on_log)[seed]
    train = [(row["epoch"], row["train"]["error"]) for row in run.history if "train" in row]
    return {**scores(run), "epochs_to_25": next((epoch for epoch, error in train if error < 25), train[-1][0])}


def pictures(folder: Path, results: Mapping[str, Any]) -> Sequence[Picture]:
    panels = {name: {name: seeds} for name, seeds in figures.histories(folder, results).items()}
    return [
        Picture("functions", "The functions, and their derivatives.", functions()),
        Picture("learning", "Training error (dashed) and test error, means over the seeds.", figures.learning(panels)),
    ]


def functions() -> str:
    """The functions on the left and their derivatives on the right, as SVG."""
    import jax
    import jax.numpy as jnp
    import matplotlib
    from matplotlib.figure import Figure

    x = jnp.linspace(-4, 4, 401)
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(8.5, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharex=True)
        for i, name in enumerate(FUNCTIONS):
            function, style = ACTIVATIONS[name], {"color": figures.COLOURS[i], "linestyle": figures.DASHES[i % 4]}
            left.plot(x, function(x), label=name, **style)
            right.plot(x, jax.vmap(jax.grad(function))(x), **style)
        left.set(ylim=(-2, 3), xlabel="x", ylabel="f(x)")
        right.set(ylim=(-0.1, 1.3), xlabel="x", ylabel="f'(x)")
        figure.legend(loc="outside upper left", ncols=len(FUNCTIONS), frameon=False, fontsize=9)
        return figures.svg(figure)


EXPERIMENT = Experiment(
    name="activations",
    doc=__doc__,
    scales=SCALES,
    variants=variants,
    published=dict.fromkeys(FUNCTIONS),
    published_as="none; Krizhevsky et al. 2012 show curves of ReLU and tanh",
    smoke=("sigmoid", "relu", "elu"),
    reference="relu",
    claims=CLAIMS,
    measured={"epochs_to_25": "epochs to 25 % training error"},
    pictures=pictures,
)

if __name__ == "__main__":
    main(EXPERIMENT)
