"""The one runner: typed options, variants × seeds -> runs -> a table, a verdict and a report.

An experiment is a file in `experiments/`: a docstring that opens with its title and goes on with sections such as
"Claim: …", "Source: …"; settings for each scale; the published numbers; a function from the settings to the variants.
It ends in `main(EXPERIMENT)`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnjax import __version__, report, runfolder, verdict
from cnnjax.errors import CnnjaxError
from cnnjax.options import Config, parse

if TYPE_CHECKING:  # jax and its company load when the training begins, so that --help answers at once
    import optax

    from cnnjax.data.images import Transform
    from cnnjax.data.splits import Dataset
    from cnnjax.models.chain import Chain
    from cnnjax.train.losses import Loss
    from cnnjax.train.step import Augment


_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in which the system counts memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The "details of learning" of a paper: all that a training needs beside the network, the images and the seed.

    optimizer: from the number of steps to the optax transformation.
    transform: how uint8 images become what the network reads. augment: `(key, batch) -> batch`, in training only.
    """

    optimizer: Callable[[int], optax.GradientTransformation]
    transform: Transform
    loss: Loss
    epochs: float
    batch: int
    augment: Augment | None = None
    frozen: frozenset[str] = frozenset()


OnLog = Callable[[Mapping[str, Any]], None]
Measure = Callable[["Variant", "Dataset", int, Path, OnLog], dict[str, float]]


def train(variant: Variant, data: Dataset, seed: int, folder: Path, on_log: OnLog) -> dict[str, float]:
    """Trains the variant's network from `seed`, going on from what `folder` holds; the last evaluation's metrics."""
    from cnnjax.train.loop import NonFinite, fit

    recipe, steps = variant.recipe, variant.steps(data)
    assert recipe is not None
    epoch = math.ceil(len(data.train.label) / recipe.batch)
    try:
        run = fit(
            variant.net,
            _transformation(recipe.optimizer, steps),
            recipe.loss,
            data,
            transform=recipe.transform,
            batch=recipe.batch,
            steps=steps,
            seed=seed,
            folder=folder,
            frozen=recipe.frozen,
            augment=recipe.augment,
            log_every=max(1, steps // 100),
            eval_every=max(epoch, math.ceil(steps / 20)),
            save_every=1000,
            on_log=on_log,
        )
    except NonFinite as error:
        raise Diverged(f"{folder}: {error}") from error
    return run.metrics


class Diverged(CnnjaxError):
    """A training whose loss is no longer finite; exit code 3."""


@functools.cache
def _transformation(optimizer, steps: int):
    """One object for all seeds: no two optax transformations are equal, and another would compile the step again."""
    return optimizer(steps)


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
        """Training steps: the epochs, rounded to whole batches; one for what is not trained in steps."""
        return max(1, round(self.recipe.epochs * len(data.train.label) / self.recipe.batch)) if self.recipe else 1

    def images(self, data: Dataset) -> int:
        """How many images the training sees."""
        return self.steps(data) * self.recipe.batch if self.recipe else len(data.train.label)


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

    Exits with 2 and a few lines on stderr where the user has to change something, with 3 where the loss is no longer
    finite, with 130 when interrupted.
    """
    try:
        argv = sys.argv[1:] if argv is None else argv
        run(experiment, parse(experiment.name, experiment.doc, experiment.scales, experiment.published, argv))
    except CnnjaxError as error:
        sys.exit(_complain(f"error: {error}", 3 if isinstance(error, Diverged) else 2))
    except KeyboardInterrupt:
        sys.exit(_complain("interrupted; the same command goes on from here", 130))


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
    runfolder.write_json(folder / "config.json", record)  # only now: a mistyped source leaves no run behind
    seeds = range(config.seed, config.seed + config.seeds)
    places = {(name, seed): folder / name / f"seed-{seed}" for name in variants for seed in seeds}
    todo = {run: place for run, place in places.items() if not (place / "result.json").exists()}
    if len(todo) < len(places):
        print(f"{folder}: {len(places) - len(todo)} of {len(places)} runs are done, going on")
    with _progress(sum(variants[name].steps(data) for name, _ in todo)) as progress:
        for (name, seed), place in todo.items():
            place.mkdir(parents=True, exist_ok=True)
            show = functools.partial(progress, f"{name}, seed {seed}", variants[name].steps(data))
            result = _measure(variants[name], data, seed, place, show)
            if config.metric not in result:
                raise CnnjaxError(
                    f"{name} has no {config.metric!r}\nleave it out with --only, or give another --metric"
                )
            runfolder.write_json(place / "result.json", result)
            show({"step": variants[name].steps(data), "test": result})
            show(None)
    results = {
        name: {seed: runfolder.read_json(places[name, seed] / "result.json") for seed in seeds} for name in variants
    }
    return _summary(experiment, config, record, data, variants, results)


def _measure(variant: Variant, data: Dataset, seed: int, place: Path, on_log: OnLog) -> dict[str, float]:
    """The metrics of one run, and its cost."""
    compiled, start = _compile_seconds()[0], time.perf_counter()
    metrics = variant.measure(variant, data, seed, place, on_log)
    seconds, compiling = time.perf_counter() - start, _compile_seconds()[0] - compiled
    return {
        **metrics,
        "images": variant.images(data),
        "seconds": seconds,
        "compile_seconds": compiling,
    }


@functools.cache
def _compile_seconds() -> list[float]:
    """A clock: what this process has spent in XLA's compiler since the first call."""
    import jax

    total = [0.0]

    def add(event: str, duration_secs: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            total[0] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(add)
    return total


@contextlib.contextmanager
def _progress(steps: int) -> Iterator[Callable[[str, int, Mapping[str, Any] | None], None]]:
    """A bar over all `steps` with the time left, and a line after each run; without a terminal, the lines alone.

    Yields a function to tell of each row that a run logs, as (label, steps of the run, row), and of its end, with None.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(highlight=False)
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    begun, before, now = time.perf_counter(), 0, {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=steps)

        def show(label: str, steps_of_run: int, row: Mapping[str, Any] | None) -> None:
            nonlocal before
            now.update(row or {})
            shown = [f"loss {now['train']['loss']:.3f}"] if "train" in now else []
            shown += [f"test error {now['test']['error']:.2f} %"] if "test" in now else []
            line = ", ".join([label, *shown])
            if row is not None:
                bar.update(task, completed=before + row["step"], description=line)
                return
            before += steps_of_run
            left = (time.perf_counter() - begun) / before * (steps - before) / 60
            console.print(line + (f"; about {left:.1f} min left" if before < steps else ""))
            now.clear()

        yield show


def _summary(experiment: Experiment, config: Config, record, data: Dataset, variants, results) -> dict[str, Any]:
    """What `results.json` holds, and the report shows."""
    errors = {name: {seed: run[config.metric] for seed, run in runs.items()} for name, runs in results.items()}
    every = [run for runs in results.values() for run in runs.values()]
    training = sum(run["seconds"] - run["compile_seconds"] for run in every)
    return {
        "experiment": experiment.name,
        "about": _sections(experiment.doc),
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
            "images_per_second": round(sum(run["images"] for run in every) / training, 1),
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT / 1e6),
        },
        "environment": _environment(),
        "config": record,
        "finished": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _sections(doc: str) -> dict[str, str]:
    """The docstring as fields: its first line is the title; "Claim: …" and the like open the others."""
    title, *rest = re.split(r"^([A-Z][a-z]+): ", doc.strip(), flags=re.MULTILINE)
    return {
        "title": " ".join(title.split()),
        **{k.lower(): " ".join(v.split()) for k, v in zip(rest[::2], rest[1::2], strict=True)},
    }


def _environment() -> dict[str, Any]:
    """Where it ran: versions, machine, devices."""
    from importlib.metadata import version

    import jax

    devices = jax.devices()
    return {
        "cnnjax": __version__,
        **{name: version(name) for name in ("jax", "flax", "optax", "numpy")},
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "devices": f"{len(devices)} × {devices[0].device_kind}",
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):  # Linux only
        if model := re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return model[1]
    return platform.processor() or platform.machine()
