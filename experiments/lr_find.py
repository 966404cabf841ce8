"""Finds a learning rate: it rises from step to step in one short run, and the loss says where it is too small or large.

Source: Smith 2017, "Cyclical learning rates for training neural networks" (arXiv:1506.01186), section 3.3, the
    "LR range test".
Command: python -m experiments.lr_find --model lenet5 --data mnist5k --recipe adam
Reading: The suggestion is the rate at which the smoothed loss falls most steeply; the loss is lowest at a higher one,
    and a training at that rate would be close to where it diverges. It diverges where the smoothed loss is more than 4
    times its lowest or is not finite, and there the run stops.
Departures: Smith's rate rises on a straight line, and he reads the accuracy; here it rises exponentially, which shows
    every order of magnitude, and the loss is read.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cnnjax import machine, page, runfolder
from cnnjax.errors import CnnjaxError
from cnnjax.experiment import command, kept
from cnnjax.options import parse
from cnnjax.variant import Variant
from experiments.train import Network, variant

TOO_MUCH = 4  # times the lowest loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Network):
    """The options of a range test."""

    lowest: float = 1e-6
    """The rate of the first step."""
    highest: float = 10.0
    """The rate of the last step."""
    steps: int = 200
    """From the lowest to the highest rate."""

    def __post_init__(self):
        super().__post_init__()
        self.positive("lowest", "highest")
        self.at_least(steps=10)
        if self.lowest >= self.highest:
            raise CnnjaxError(f"--lowest is {self.lowest:g} and --highest {self.highest:g}; it must be larger")


@dataclasses.dataclass(frozen=True)
class Rising:
    """From `lowest` to `highest`, multiplied by the same factor at every step."""

    lowest: float
    highest: float

    def __call__(self, steps: int):
        import jax.numpy as jnp

        rates = jnp.asarray(self.rates(steps), jnp.float32)
        return lambda count: rates[jnp.minimum(count, steps - 1)]

    def rates(self, steps: int) -> list[float]:
        """Of all steps."""
        return [self.lowest * (self.highest / self.lowest) ** (i / (steps - 1)) for i in range(steps)]


class Enough(Exception):
    """The loss is so high that there is nothing more to be seen."""


class Reading(NamedTuple):
    """What the losses say; each is a learning rate, or None where it is not to be seen."""

    suggestion: float | None
    lowest_loss: float
    diverged: float | None


def smooth(losses: Sequence[float], reach: int) -> list[float]:
    """Every loss as the mean of those up to `reach` steps before and after it."""
    windows = [losses[max(0, i - reach) : i + reach + 1] for i in range(len(losses))]
    return [math.fsum(window) / len(window) for window in windows]


def reach(steps: int) -> int:
    """How far `smooth` looks: 2 % of the steps to either side."""
    return max(1, round(0.02 * steps))


def read(rates: Sequence[float], losses: Sequence[float], *, reach: int, diverged: bool) -> Reading:
    """The steepest descent of the smoothed loss over the logarithm of the rate, before its lowest point.

    Rates are as far apart as each other, on that scale. `diverged`: the last loss is where the test was stopped.
    """
    smoothed = smooth(losses, reach)
    bottom = min(range(len(smoothed)), key=smoothed.__getitem__)
    falls = {i: smoothed[i - 1] - smoothed[i + 1] for i in range(1, min(bottom + 1, len(smoothed) - 1))}
    steepest = max(falls, key=falls.__getitem__, default=None)
    suggestion = None if steepest is None or falls[steepest] <= 0 else rates[steepest]
    return Reading(suggestion, rates[bottom], rates[len(losses) - 1] if diverged else None)


def range_test(row: Variant, data: Any, config: Settings) -> tuple[list[float], bool]:
    """The training loss of every step until it diverges, and whether it does."""
    import numpy as np

    from cnnjax.data.splits import select
    from cnnjax.train.journal import NonFinite
    from cnnjax.train.loop import fit
    from cnnjax.train.recipe import arguments

    assert row.recipe is not None
    losses: list[float] = []

    def hear(logged: dict[str, Any]) -> None:
        if "train" in logged:
            losses.append(logged["train"]["loss"])
            smoothed = smooth(losses, reach(config.steps))
            if smoothed[-1] > TOO_MUCH * min(smoothed):
                raise Enough

    data = data._replace(test=select(data.test, np.arange(1)))  # nothing is to be scored
    try:
        fit(row.net, data=data, seed=config.seed, log_every=1, on_log=hear, **arguments(row.recipe, data), **row.how)
    except (Enough, NonFinite):
        return losses, True
    return losses, False


def measure(config: Settings, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The contents of results.json."""
    data, rising = config.load(), Rising(config.lowest, config.highest)
    row = variant(config, data)
    assert row.recipe is not None
    recipe = dataclasses.replace(row.recipe, schedule=rising, iterations=config.steps, epochs=None)
    row = dataclasses.replace(row, recipe=recipe)
    row.check(data)
    runfolder.write_json(folder / "config.json", record)
    losses, diverged = range_test(row, data, config)
    if not losses:
        raise CnnjaxError(f"the loss is not finite at the lowest rate, {config.lowest:g}\ngive a smaller --lowest")
    rates = rising.rates(config.steps)[: len(losses)]
    found = read(rates, losses, reach=reach(config.steps), diverged=diverged)
    return {
        "experiment": "lr_find",
        "title": f"Learning rates for {config.model} on {config.data}, by the recipe {config.recipe}",
        "about": page.about(__doc__ or ""),
        **found._asdict(),
        "rates": rates,
        "losses": losses,
        "smoothed": smooth(losses, reach(config.steps)),
        "environment": machine.environment(),
        "config": record,
    }


MARKS = {"suggestion": "suggestion", "lowest_loss": "lowest loss", "diverged": "diverged"}


def table(results: dict[str, Any]) -> page.Table:
    """The three rates."""
    said = [[name, "–" if results[key] is None else f"{results[key]:.2g}"] for key, name in MARKS.items()]
    return page.Table(["", "learning rate"], said)


def write(folder: Path, results: dict[str, Any]) -> None:
    """The report."""
    from cnnjax import figures

    marks = {name: results[key] for key, name in MARKS.items() if results[key] is not None}
    drawn = figures.range_test(results["rates"], results["losses"], results["smoothed"], marks)
    about, picture = results["about"], page.Picture("loss", "Training loss over the learning rate.", drawn)
    sections: list[page.Section] = [
        ("Loss and learning rate", [table(results), picture]),
        *((name.capitalize(), [about[name]]) for name in ("reading", "departures", "source")),
        ("Configuration", [page.pairs(results["config"])]),
        ("Environment", [page.pairs(results["environment"])]),
    ]
    page.write(folder, page.Page(results["title"], sections, "The losses of all steps are in results.json."))


def show(results: dict[str, Any]) -> None:
    """The rates, on the terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(f"\n{results['title']}\n")
    console.print(page.grid(table(results)))


def find(config: Settings) -> dict[str, Any]:
    """Makes the test if it was not made, writes the report, prints the rates; the contents of `results.json`."""
    return kept("lr_find", config, lambda *where: measure(config, *where), write=write, show=show)


if __name__ == "__main__":
    with command():
        find(parse("lr_find", __doc__, {"": Settings()}, (), sys.argv[1:]))
