"""Eight optimisers on one LeNet: gradient descent, momentum and the methods with a rate for each weight.

Claim: In the same number of epochs momentum and Adam err less than plain gradient descent, Adam suffers less from a
    badly chosen learning rate, and small batches err less than large ones.
Source: The lectures on optimisers, learning rate, batch size, under- and overfitting. They print no errors.
Command: python -m experiments.optimizers
Cost: smoke: a quarter of a minute on 2 CPU cores. lab: 10 minutes there. paper: 20 passes over MNIST a run.
Expected: lab: plain gradient descent at 7 % test error and still falling, Adagrad at 5, the others at 3 to 4 %.
Departures: Learning rates stay constant, so that under- and overfitting show. `--learning-rate` is Adam's, the others'
    are in proportion (the column "rate"). The sweep tries a tenth of it and ten times as much, and of the momentum
    method batches an eighth and eight times as large. A run that diverges counts as 100 % error. The network is dense
    LeNet-5 with ReLU on 28×28 pixels. The paper scale is ours: all of MNIST.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optax

from cnnjax import figures
from cnnjax.data.splits import Dataset
from cnnjax.experiment import Experiment, adam_recipe, main
from cnnjax.models.lenet import lenet5
from cnnjax.options import Config
from cnnjax.page import Picture
from cnnjax.train.journal import NonFinite
from cnnjax.train.loop import Run, fit_many
from cnnjax.train.recipe import SGD, Drops, Recipe, RMSProp, arguments, steps
from cnnjax.variant import Diverged, Variant, scores
from cnnjax.verdict import Claim

# The update rule, and its usual learning rate relative to Adam's.
METHODS: Mapping[str, tuple[Callable, float]] = {
    "sgd": (SGD(momentum=0.0), 10),
    "momentum": (SGD(), 10),
    "rmsprop": (RMSProp(), 1),
    "adagrad": (optax.adagrad, 10),
    "adadelta": (optax.adadelta, 1000),
    "adam": (optax.adam, 1),
    "adamax": (optax.adamax, 2),
    "nadam": (optax.nadam, 1),
}
FACTORS = (1.0, 0.1, 10.0)  # of the learning rate: as usual, too small, too large
SWEPT = "momentum"  # whose batch is varied

CLAIMS = (
    Claim("momentum errs less than plain gradient descent", {"sgd": 1, "momentum": -1}, above=0),
    Claim("Adam errs less than plain gradient descent", {"sgd": 1, "adam": -1}, above=0),
    Claim("Adam's worst rate is less bad", {"sgd": 1, "adam": -1}, above=0, metric="worst_rate"),
    Claim("the large batch errs more than the small one", {SWEPT: 1}, above=0, metric="large_batch"),
)

LAB = Config(scale="lab", seeds=3, epochs=16, batch=64, learning_rate=1e-3, bar=4)
SCALES = {
    "smoke": dataclasses.replace(LAB, scale="smoke", seeds=2, epochs=0.2),
    "lab": LAB,
    "paper": dataclasses.replace(LAB, scale="paper", data="mnist", seeds=5, epochs=20, bar=1.5),
}


def variants(config: Config, data: Dataset) -> dict[str, Variant]:
    def row(name: str) -> Variant:
        rule, rate = METHODS[name][0], METHODS[name][1] * config.learning_rate
        recipe = dataclasses.replace(adam_recipe(config, data), schedule=Drops((rate,)), optimiser=rule)
        net, measured = lenet5(len(data.classes), pad=2, act="relu"), functools.partial(measure, name == SWEPT)
        return Variant(net=net, recipe=recipe, columns={"rate": rate}, measure=measured)

    return {name: row(name) for name in METHODS}


def measure(batches: bool, variant: Variant, data: Dataset, seed: int, folder: Path, on_log) -> dict[str, Any]:
    """The scores at the usual rate, and the errors of the sweeps: [[rate, %]], [[images in a batch, %]]."""

    def runs(recipe: Recipe, factors: Sequence[float], folders: Sequence[Path | None]) -> list[Any]:
        epoch = len(data.train.label) // recipe.batch
        every = max(1, steps(recipe, len(data.train.label)) // 40)
        return fit_many(
            variant.net, data=data, seeds=[seed] * len(factors), factors=factors, folders=folders, log_every=every,
            eval_every=every * -(-epoch // every), on_log=lambda i, row: folders[i] and on_log(row),
            **arguments(recipe, data),
        )  # fmt: skip

    def error(run: Run | NonFinite) -> float:
        return 100.0 if isinstance(run, NonFinite) else run.metrics["error"]

    recipe: Recipe = variant.recipe  # pyright: ignore[reportAssignmentType]
    own, *others = runs(recipe, FACTORS, [folder] + [None] * (len(FACTORS) - 1))
    if isinstance(own, NonFinite):
        raise Diverged(f"{folder}: {own}")
    rates = sorted([variant.columns["rate"] * f, error(run)] for f, run in zip(FACTORS, (own, *others), strict=True))
    found = {**scores(own), "rates": rates, "worst_rate": max(error for _, error in rates)}
    if batches:
        sizes = (recipe.batch // 8 or 1, recipe.batch * 8)
        tried = {n: error(runs(dataclasses.replace(recipe, batch=n), (1.0,), [None])[0]) for n in sizes}
        batched = sorted({**tried, recipe.batch: error(own)}.items())
        found |= {"batches": batched, "large_batch": batched[-1][1] - batched[0][1]}
    return found


def pictures(folder: Path, results: Mapping[str, Any]) -> Sequence[Picture]:
    panels = {name: {name: seeds} for name, seeds in figures.histories(folder, results).items()}
    sweeps = "Test error at the end, means over the seeds. Left: learning rates. Right: batches of the momentum method."
    fits = "Training (dashed) and test loss: both high, the network underfits; the test loss rising, it overfits."
    return [Picture("sweeps", sweeps, sweep(results)), Picture("fits", fits, figures.learning(panels, key="loss"))]


def sweep(results: Mapping[str, Any]) -> str:
    """Error over the learning rate, a line a method, and over the size of the batch."""
    import matplotlib
    from matplotlib.figure import Figure

    def line(axes, name: str, key: str, i: int) -> None:
        runs = [run[key] for row in results["rows"] if row["variant"] == name for run in row["seeds"].values()]
        if runs:
            places, errors = np.mean(runs, axis=0).T
            colour, dash = figures.COLOURS[i % len(figures.COLOURS)], figures.DASHES[i % len(figures.DASHES)]
            axes.plot(places, errors, color=colour, linestyle=dash, marker="o", ms=4, label=name)

    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(8.5, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
        for i, name in enumerate(METHODS):
            line(left, name, "rates", i)
        line(right, SWEPT, "batches", list(METHODS).index(SWEPT))
        left.set(xscale="log", xlabel="learning rate", ylabel=figures.METRICS[results["metric"]], yscale="log")
        left.set_yticks(ticks := (1, 2, 5, 10, 20, 50, 100), map(str, ticks))
        right.set(xscale="log", xlabel=f"images in a batch ({SWEPT})")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(METHODS), frameon=False, fontsize=9)
        return figures.svg(figure)


EXPERIMENT = Experiment(
    name="optimizers",
    doc=__doc__,
    scales=SCALES,
    variants=variants,
    published=dict.fromkeys(METHODS),
    published_as="none; the lectures print no errors",
    smoke=("sgd", "adagrad", "adam"),
    reference="adam",
    claims=CLAIMS,
    measured={"worst_rate": "error at the worst rate, %"},
    pictures=pictures,
)

if __name__ == "__main__":
    main(EXPERIMENT)
