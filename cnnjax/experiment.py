"""The one runner: typed options, variants × seeds -> runs -> a table, a verdict and a report.

An experiment is a file in `experiments/`: a docstring that opens with its title and goes on with sections such as
"Claim: …", "Source: …"; settings for each scale; the published numbers; a function from the settings to the variants.
It ends in `main(EXPERIMENT)`.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnjax import machine, page, report, runfolder, verdict
from cnnjax.errors import CnnjaxError
from cnnjax.options import Config, parse
from cnnjax.progress import progress
from cnnjax.train import interrupt

if TYPE_CHECKING:  # jax and its company load when the training begins, so that --help answers at once
    from cnnjax.data.splits import Dataset
    from cnnjax.models.chain import Chain
    from cnnjax.train.recipe import Recipe


def adam_recipe(config: Config, data: Dataset) -> Recipe:
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
        prepare=Prepare(standardise(data.train)),
    )


OnLog = Callable[[Mapping[str, Any]], None]
Measure = Callable[["Variant", "Dataset", int, Path, OnLog], dict[str, float]]


def train(variant: Variant, data: Dataset, seed: int, folder: Path, on_log: OnLog) -> dict[str, float]:
    """Trains the variant's network from `seed`, going on from what `folder` holds: last evaluation and speed."""
    from cnnjax.train.loop import NonFinite, fit
    from cnnjax.train.recipe import arguments

    recipe, steps = variant.recipe, variant.steps(data)
    assert recipe is not None
    epoch = math.ceil(len(data.train.label) / recipe.batch)
    try:
        run = fit(
            variant.net,
            data=data,
            seed=seed,
            folder=folder,
            **arguments(recipe, data),
            log_every=max(1, steps // 100),
            eval_every=max(epoch, math.ceil(steps / 20)),
            save_every=1000,
            on_log=on_log,
        )
    except NonFinite as error:
        raise Diverged(f"{folder}: {error}") from error
    speeds = [row["time"]["images_per_second"] for row in run.history if "train" in row]
    measured = [speed for speed in speeds if speed is not None]
    return {**run.metrics, **({"images_per_second": statistics.median(measured)} if measured else {})}


class Diverged(CnnjaxError):
    """A training whose loss is no longer finite."""

    exit_code = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table: a network, how it is trained, and what else the table says of it.

    columns: further columns, heading -> number or text. measure: what gives the metrics; a row that is measured in
    another way than by a training needs neither network nor recipe.
    """

    net: Chain | None = None
    recipe: Recipe | None = None
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    measure: Measure = train

    def steps(self, data: Dataset) -> int:
        """Training steps; one for what is not trained in steps."""
        from cnnjax.train import recipe

        return recipe.steps(self.recipe, len(data.train.label)) if self.recipe else 1

    def check(self, data: Dataset) -> None:
        """Raises `CnnjaxError` where the images do not fit the augmentation or the network; computes nothing."""
        import jax

        from cnnjax.train.recipe import preparation

        prepare = preparation(self.recipe, data) if self.recipe else None

        def initialise(key, batch):
            batch = prepare(key, batch) if prepare else batch
            return self.net and self.net.init({"params": key, "dropout": key}, batch["image"].astype("float32"))

        image = jax.ShapeDtypeStruct((1, *data.train.image.shape[1:]), "uint8")
        jax.eval_shape(initialise, jax.random.key(0), {"image": image, "label": jax.ShapeDtypeStruct((1,), "int32")})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """What a file in `experiments/` says.

    name: the file's. doc: its docstring. scales: scale -> settings. variants: (settings, images) -> rows.
    published: variant -> the paper's number, None where it has none, in the order of the table; published_as: what it
    is. claims: what the verdict judges. reference: the variant that has to reach `Config.bar`.
    """

    name: str
    doc: str
    scales: Mapping[str, Config]
    variants: Callable[[Any, Dataset], Mapping[str, Variant]]
    published: Mapping[str, float | None]
    published_as: str
    reference: str
    claims: Sequence[verdict.Claim]


def main(experiment: Experiment, argv: Sequence[str] | None = None) -> None:
    """Runs the experiment as the command line says.

    Exits with a few lines on stderr, and with 2 where the user has to change something, 3 where the loss is no longer
    finite, 74 where the disk is full, 130 after SIGINT, and 143 after SIGTERM.
    """
    try:
        argv = sys.argv[1:] if argv is None else argv
        with interrupt.raised():
            run(experiment, parse(experiment.name, experiment.doc, experiment.scales, experiment.published, argv))
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


def run(experiment: Experiment, config: Config) -> dict[str, Any]:
    """Trains what is not trained yet, writes the report, prints the table; the contents of `results.json`."""
    folder = config.workdir or Path("runs") / f"{experiment.name}-{config.scale}"
    record = {"experiment": experiment.name, **config.record()}
    finished = folder / "results.json"
    with runfolder.opened(folder, record, fresh=config.fresh):
        if not finished.exists():
            results = _measure_all(experiment, config, record, folder)
            report.write(folder, results)
            runfolder.write_json(finished, results)  # last: with it the run is finished
        results = runfolder.read_json(finished)
        report.show(results)
        print(f"report: {folder / 'report.html'}")
    return results


def _measure_all(experiment: Experiment, config: Config, record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Every variant with every seed, one after the other: on a CPU that is faster than all seeds in one program."""
    from cnnjax.data.sources import load

    size = None if config.size is None else (config.size, config.size)
    data = load(config.data, size=size, channels=config.channels, test=config.test_data)
    variants = experiment.variants(config, data)
    variants = {name: variants[name] for name in experiment.published if not config.only or name in config.only}
    for variant in variants.values():
        variant.check(data)
    runfolder.write_json(folder / "config.json", record)  # only now: what cannot be run leaves no run behind
    seeds = range(config.seed, config.seed + config.seeds)
    places = {(name, seed): folder / name / f"seed-{seed}" for name in variants for seed in seeds}
    todo = {run: place for run, place in places.items() if not (place / "result.json").exists()}
    if len(todo) < len(places):
        print(f"{folder}: {len(places) - len(todo)} of {len(places)} runs are done, going on")
    with progress(sum(variants[name].steps(data) for name, _ in todo)) as tell:
        for (name, seed), place in todo.items():
            place.mkdir(parents=True, exist_ok=True)
            on_log = functools.partial(tell, f"{name}, seed {seed}", variants[name].steps(data))
            result = _measure(variants[name], data, seed, place, on_log)
            if config.metric not in result:
                raise CnnjaxError(f"{name} has no {config.metric!r}\ngive another --metric, or name others with --only")
            runfolder.write_json(place / "result.json", result)
            on_log({"step": variants[name].steps(data), "test": result})
            on_log(None)
    results = {
        name: {seed: runfolder.read_json(places[name, seed] / "result.json") for seed in seeds} for name in variants
    }
    return _summary(experiment, config, record, data, variants, results)


def _measure(variant: Variant, data: Dataset, seed: int, place: Path, on_log: OnLog) -> dict[str, float]:
    """The metrics of one run, and its cost."""
    compiled, begun = machine.compile_seconds(), time.perf_counter()
    metrics = variant.measure(variant, data, seed, place, on_log)
    seconds, compiling = time.perf_counter() - begun, machine.compile_seconds() - compiled
    return {**metrics, "seconds": seconds, "compile_seconds": compiling}


def _summary(experiment: Experiment, config: Config, record, data: Dataset, variants, results) -> dict[str, Any]:
    """What `results.json` holds, and the report shows."""
    errors = {name: {seed: run[config.metric] for seed, run in runs.items()} for name, runs in results.items()}
    every = [run for runs in results.values() for run in runs.values()]
    return {
        "experiment": experiment.name,
        "about": page.about(experiment.doc),
        "scale": config.scale,
        "metric": config.metric,
        "published_as": experiment.published_as,
        "rows": [
            {
                "variant": name,
                "columns": dict(variant.columns),
                "mean": statistics.fmean(errors[name].values()),
                "sd": statistics.stdev(errors[name].values()) if config.seeds > 1 else None,
                "n": config.seeds,
                "published": experiment.published[name],
                "seeds": {str(seed): run for seed, run in results[name].items()},
            }
            for name, variant in variants.items()
        ],
        "verdict": verdict.judge(
            experiment.claims,
            errors,
            reference=experiment.reference,
            bar=config.bar,
            resolution=100 / len(data.test.label),
            published=experiment.published,
        ),
        "data": {
            "name": data.name,
            "train": len(data.train.label),
            "test": len(data.test.label),
            "classes": len(data.classes),
        },
        "cost": {
            "seconds": round(sum(run["seconds"] for run in every), 1),
            "compile_seconds": round(sum(run["compile_seconds"] for run in every), 1),
            "peak_memory_mb": machine.peak_memory_mb(),
        },
        "environment": machine.environment(),
        "config": record,
        "finished": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
