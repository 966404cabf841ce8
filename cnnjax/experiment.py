"""The one runner: typed options, variants × seeds -> runs -> a table, a verdict and a report.

An experiment is a file in `experiments/`: a docstring that opens with its title and goes on with sections such as
"Claim: …", "Source: …"; settings for each scale; the published numbers; a function from the settings to the variants.
It ends in `main(EXPERIMENT)`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnjax import machine, page, report, runfolder, runs, verdict
from cnnjax.errors import CnnjaxError, unknown
from cnnjax.options import Config, Options, Training, parse
from cnnjax.train import interrupt
from cnnjax.variant import Variant

if TYPE_CHECKING:  # jax and its company load when the training begins, so that --help answers at once
    from cnnjax.data.splits import Dataset
    from cnnjax.train.recipe import Recipe
    from cnnjax.train.step import Augment


def adam_recipe(config: Config, data: Dataset, augment: Augment | None = None) -> Recipe:
    """What trains small networks without ado: Adam, a learning rate that falls to 0 on half a cosine, cross-entropy,
    pixels of mean 0 and variance 1.
    """
    import optax

    from cnnjax.data.splits import standardise
    from cnnjax.train.feed import Prepare
    from cnnjax.train.recipe import Cosine, Recipe

    return Recipe(
        batch=config.batch,
        epochs=config.epochs,
        schedule=Cosine(config.learning_rate),
        optimiser=optax.adam,
        prepare=Prepare(standardise(data.train), augment),
    )


def printed_recipe(recipe: Recipe, config: Config, data: Dataset, **changed: Any) -> Recipe:
    """A paper's recipe with the batch, the epochs and the rate that are asked for, and with what else is `changed`."""
    from cnnjax.train.recipe import at_rate, bound

    schedule = at_rate(recipe.schedule, config.learning_rate)
    asked = {"batch": config.batch, "epochs": config.epochs, "iterations": None, "schedule": schedule}
    return bound(dataclasses.replace(recipe, **{**asked, **changed}), data)


Pictures = Callable[[Path, Mapping[str, Any]], Sequence[page.Picture]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """What a file in `experiments/` says.

    name: the file's. doc: its docstring. scales: scale -> settings. variants: (settings, images) -> rows.
    published: variant -> the paper's number, None where it has none, in the order of the table; published_as: what it
    is. smoke: the variants that show that all of it runs, where the others would only take time. claims: what the
    verdict judges. reference: the variant that has to reach `Config.bar`. measured: further
    metrics of the runs that the table shows as mean ± sd, metric -> heading. pictures: (folder of the run, contents of
    `results.json`) -> what the report shows besides the comparison and the curves.

    One that claims nothing has no more than its settings and variants, and there is no verdict. about: settings -> what
    the report says, "title" and other headings; by default what the docstring does.
    """

    name: str
    doc: str
    scales: Mapping[str, Training]
    variants: Callable[[Any, Dataset], Mapping[str, Variant]]
    published: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    published_as: str = ""
    smoke: Sequence[str] = ()
    reference: str | None = None
    claims: Sequence[verdict.Claim] = ()
    measured: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pictures: Pictures | None = None
    about: Callable[[Any], Mapping[str, str]] | None = None


def main(experiment: Experiment, argv: Sequence[str] | None = None) -> None:
    """Runs the experiment as the command line says."""
    with command():
        run(experiment, configuration(experiment, sys.argv[1:] if argv is None else argv))


def configuration(experiment: Experiment, argv: Sequence[str]) -> Training:
    """The settings that a command line asks for."""
    config = parse(experiment.name, experiment.doc, experiment.scales, experiment.published, argv)
    for variant in _only(experiment, config):
        if variant not in experiment.published:
            raise unknown("variant", variant, experiment.published)
    return config


def _only(experiment: Experiment, config: Training) -> Sequence[str]:
    """The variants that are asked for; none: all."""
    if not isinstance(config, Config):
        return ()
    return config.only or (experiment.smoke if config.scale == "smoke" else ())


@contextlib.contextmanager
def command() -> Iterator[None]:
    """Around a command line: what went wrong becomes a few lines on stderr and an exit code.

    2 where the user has to change something, 3 where the loss is no longer finite, 74 where the disk is full, 130 after
    SIGINT, and 143 after SIGTERM.
    """
    try:
        with interrupt.raised():
            yield
    except CnnjaxError as error:
        sys.exit(_complain(f"error: {error}", error.exit_code))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        what = f"error: cannot write {error.filename or 'the results'}: {error.strerror}"
        sys.exit(_complain(f"{what}\nwith more room the same command goes on from here", os.EX_IOERR))
    except KeyboardInterrupt as stop:
        what = f"{str(stop) or 'interrupted'}; the same command goes on from here"
        sys.exit(_complain(what, getattr(stop, "exit_code", 130)))


def _complain(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


def run(experiment: Experiment, config: Training) -> dict[str, Any]:
    """Trains what is not trained yet, writes the report, prints the table; the contents of `results.json`."""

    def measure(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
        return _measure_all(experiment, config, record, folder)

    def write(folder: Path, results: dict[str, Any]) -> None:
        report.write(folder, results, experiment.pictures(folder, results) if experiment.pictures else ())

    return kept(experiment.name, config, measure, write=write, show=report.show)


def kept(
    name: str,
    config: Options,
    measure: Callable[[Path, dict[str, Any]], dict[str, Any]],
    *,
    write: Callable[[Path, dict[str, Any]], None],
    show: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """What `measure` gives for (folder, record) is written as a report and shown, and kept as `results.json`.

    `record`: what `config.json` is to hold; `measure` writes it when it knows that what is asked for can be done. What
    is there already is only shown, unless it has fewer seeds than are asked for: then `measure` is called again.
    """
    folder, record = config.folder(name), {"experiment": name, **config.record()}
    finished = folder / "results.json"
    with runfolder.opened(folder, record, fresh=config.fresh, growing=("seeds",)):
        if finished.exists() and runfolder.read_json(folder / "config.json") != record:
            finished.unlink()
        if not finished.exists():
            results = measure(folder, record)
            write(folder, results)
            runfolder.write_json(finished, results)  # last: with it the run is finished
        results = runfolder.read_json(finished)
        show(results)
        print(f"report: {folder / 'report.html'}")
    return results


def _measure_all(experiment: Experiment, config: Training, record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Every variant with every seed, and what `results.json` says of it."""
    data = config.load()
    variants, only = experiment.variants(config, data), _only(experiment, config)
    variants = {name: variants[name] for name in experiment.published or variants if not only or name in only}
    for variant in variants.values():
        variant.check(data)
    runfolder.write_json(folder / "config.json", record)  # only now: what cannot be run leaves no run behind
    results = runs.measure_all(experiment.variants, config, variants, data, folder)
    return _summary(experiment, config, record, data, variants, results)


def _summary(experiment: Experiment, config: Training, record, data: Dataset, variants, results) -> dict[str, Any]:
    """What `results.json` holds, and the report shows."""

    def of(metric: str) -> dict[str, dict[int, float]]:
        every = {
            name: {seed: run[metric] for seed, run in runs.items() if metric in run} for name, runs in results.items()
        }
        return {name: runs for name, runs in every.items() if runs}

    errors, further = of(config.metric), sorted({claim.metric for claim in experiment.claims if claim.metric})
    every = [run for runs in results.values() for run in runs.values()]
    return {
        "experiment": experiment.name,
        "about": dict(experiment.about(config) if experiment.about else page.about(experiment.doc)),
        "metric": config.metric,
        "published_as": experiment.published_as,
        "measured": dict(experiment.measured),
        "rows": [
            {
                "variant": name,
                "columns": dict(variant.columns),
                "mean": statistics.fmean(errors[name].values()),
                "sd": statistics.stdev(errors[name].values()) if config.seeds > 1 else None,
                "n": config.seeds,
                "published": experiment.published.get(name),
                "seeds": {str(seed): run for seed, run in results[name].items()},
            }
            for name, variant in variants.items()
        ],
        "verdict": verdict.judge(
            experiment.claims,
            errors,
            reference=experiment.reference,
            bar=config.bar,
            tested=len(data.test.label),
            published=experiment.published,
            further={metric: of(metric) for metric in further},
        )
        if isinstance(config, Config) and experiment.reference
        else None,
        "data": {
            "name": data.name,
            "train": len(data.train.label),
            "test": len(data.test.label),
            "classes": len(data.classes),
        },
        "cost": {
            "seconds": round(runs.clock_seconds(every), 1),
            "run_seconds": round(sum(run["seconds"] for run in every), 1),
            "compile_seconds": round(sum(run["compile_seconds"] for run in every), 1),
            "peak_memory_mb": max(run["peak_memory_mb"] for run in every),
        },
        "environment": machine.environment(),
        "config": record,
        "finished": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
