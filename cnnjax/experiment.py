"""The one runner: typed options, variants × seeds -> runs -> a table, a verdict and a report.

An experiment is a file in `experiments/`: a docstring that opens with its title and goes on with sections such as
"Claim: …", "Source: …"; settings for each scale; the published numbers; a function from the settings to the variants.
It ends in `main(EXPERIMENT)`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnjax import machine, page, report, runfolder, verdict, workers
from cnnjax.errors import CnnjaxError, unknown
from cnnjax.options import Config, Options, Training, parse
from cnnjax.progress import progress
from cnnjax.train import interrupt

if TYPE_CHECKING:  # jax and its company load when the training begins, so that --help answers at once
    from cnnjax.data.splits import Dataset
    from cnnjax.models.chain import Chain
    from cnnjax.train.loop import Run
    from cnnjax.train.recipe import Recipe
    from cnnjax.train.state import State
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


OnLog = Callable[[Mapping[str, Any] | None], None]
Measure = Callable[["Variant", "Dataset", int, Path, OnLog], dict[str, Any]]
Pictures = Callable[[Path, Mapping[str, Any]], Sequence[page.Picture]]


def train(variant: Variant, data: Dataset, seed: int, folder: Path, on_log: OnLog) -> dict[str, Any]:
    """Trains the variant's network from `seed`, going on from what `folder` holds: last evaluation and speed."""
    return scores(trained(variant, data, {seed: folder}, on_log)[seed])


def scores(run: Run) -> dict[str, Any]:
    """What the table says of a training: the last evaluation, and images per second, where they were measured."""
    speeds = [row["time"]["images_per_second"] for row in run.history if "train" in row]
    measured = [speed for speed in speeds if speed is not None]
    return {**run.metrics, **({"images_per_second": statistics.median(measured)} if measured else {})}


def trained(variant: Variant, data: Dataset, folders: Mapping[int, Path], on_log: OnLog) -> dict[int, Run]:
    """The variant's network, trained from the seeds of `folders` and going on from what they hold.

    Seeds are trained together where that is faster; `on_log` is given the rows of the first.
    """
    from cnnjax.train.journal import NonFinite
    from cnnjax.train.loop import fit_many
    from cnnjax.train.recipe import arguments

    recipe, steps = variant.recipe, variant.steps(data)
    assert recipe is not None
    log_every = max(1, steps // 100)
    between = max(math.ceil(len(data.train.label) / recipe.batch), math.ceil(steps / 20))
    runs = fit_many(
        variant.net,
        data=data,
        seeds=tuple(folders),
        folders=tuple(folders.values()),
        **arguments(recipe, data),
        **variant.how,
        log_every=log_every,
        eval_every=log_every * math.ceil(between / log_every),  # so that steps can be put together, see `fit_many`
        save_every=log_every * math.ceil(1000 / log_every),
        on_log=lambda i, row: on_log(row) if i == 0 else None,
    )
    found = {}
    for (seed, folder), run in zip(folders.items(), runs, strict=True):
        if isinstance(run, NonFinite):
            raise Diverged(f"{folder}: {run}") from run
        found[seed] = run
    return found


class Diverged(CnnjaxError):
    """A training whose loss is no longer finite."""

    exit_code = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table: a network, how it is trained, and what else the table says of it.

    how: what `fit` is told besides. columns: further columns, heading -> number or text. measure: what gives the
    metrics, any plain data; a row that is measured in another way than by a training needs neither network nor recipe.
    networks: how many it trains, by which the time left is reckoned. shares: whether it takes, seed by seed, what
    another row that shares has trained; such rows are measured one after the other.
    """

    net: Chain | None = None
    recipe: Recipe | None = None
    how: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    measure: Measure = train
    networks: int = 1
    shares: bool = False

    def steps(self, data: Dataset) -> int:
        """Training steps; one for what is not trained in steps."""
        from cnnjax.train import recipe

        return recipe.steps(self.recipe, len(data.train.label)) if self.recipe else 1

    def check(self, data: Dataset) -> None:
        """Raises `CnnjaxError` where images, augmentation, network, loss and optimiser do not fit; computes nothing."""
        import jax

        from cnnjax.train.state import variables

        if self.net is not None and self.recipe is not None:
            images = jax.ShapeDtypeStruct((1, *self.sees(data)), "float32")
            state = self.state(data)
            if "start" in self.how:
                jax.eval_shape(self.how["start"], state.params)
            output = jax.eval_shape(self.net.apply, variables(state), images)
            jax.eval_shape(self.recipe.loss, output, jax.ShapeDtypeStruct((1,), "int32"))

    def sees(self, data: Dataset) -> tuple[int, ...]:
        """(height, width, channels) of what the network sees of these images in training."""
        from cnnjax.train.feed import image_shape
        from cnnjax.train.recipe import preparation

        assert self.recipe is not None
        return image_shape(preparation(self.recipe, data), data.train)

    def state(self, data: Dataset) -> State:
        """Of what shapes the state of the training is."""
        import jax

        from cnnjax.train.recipe import transformation
        from cnnjax.train.state import create

        assert self.recipe is not None
        tx, average = transformation(self.recipe, self.steps(data)), self.recipe.ema_decay is not None
        given = self.net, tx, jax.random.key(0), self.sees(data)
        return create.eval_shape(*given, frozen=self.recipe.frozen, average=average)


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
    """Every variant with every seed."""
    data = config.load()
    variants, only = experiment.variants(config, data), _only(experiment, config)
    variants = {name: variants[name] for name in experiment.published or variants if not only or name in only}
    for variant in variants.values():
        variant.check(data)
    runfolder.write_json(folder / "config.json", record)  # only now: what cannot be run leaves no run behind
    seeds = range(config.seed, config.seed + config.seeds)
    places = {(name, seed): _place(folder, name, seed) / "result.json" for name in variants for seed in seeds}
    todo = [run for run, place in places.items() if not place.exists()]
    if len(todo) < len(places):
        print(f"{folder}: {len(places) - len(todo)} of {len(places)} runs are done, going on")
    units = _units(variants, todo)
    jobs = min(_jobs(config), len(units))

    def steps(group: Group) -> int:
        name, seeds = group
        return variants[name].steps(data) * variants[name].networks * len(seeds)

    with progress(sum(steps(group) for unit in units for group in unit)) as tell:

        def told(_: Unit, what: tuple[Group, Mapping[str, Any] | None]) -> None:
            group, row = what
            name, seeds = group
            label = f"{name}, seed {seeds[0]}" + (f"–{seeds[-1]}" if len(seeds) > 1 else "")
            row = row and {**row, "step": row["step"] * steps(group) // variants[name].steps(data)}
            tell(label, steps(group), row)

        if jobs > 1:
            start = functools.partial(_start, experiment.variants, config, folder)
            units.sort(key=lambda unit: -sum(map(steps, unit)))  # what takes long must not be left to one at the end
            workers.side_by_side(jobs, start, units, told, alike=_kind)
        else:
            work = _work(config, variants, data, folder)
            for unit in units:
                work(unit, functools.partial(told, unit))
    results = {name: {seed: runfolder.read_json(places[name, seed]) for seed in seeds} for name in variants}
    return _summary(experiment, config, record, data, variants, results)


def _place(folder: Path, name: str, seed: int) -> Path:
    return folder / name / f"seed-{seed}"


def _jobs(config: Training) -> int:
    """How many trainings may be under way at once."""
    import jax

    if not isinstance(config, Config):
        return 1
    alone = config.scale == "smoke" or jax.default_backend() != "cpu"
    return config.jobs or (1 if alone else min(4, machine.cores()))


Group = tuple[str, tuple[int, ...]]  # a variant, and the seeds with which it is measured together
Unit = tuple[Group, ...]  # groups that are measured one after the other by the same process


def _units(variants: Mapping[str, Variant], todo: Sequence[tuple[str, int]]) -> list[Unit]:
    """What is to be done: on an accelerator the seeds of a training together, elsewhere each by itself, to be kept."""
    import jax

    units: dict[Any, dict[str, tuple[int, ...]]] = {}
    for name, seed in todo:
        together = variants[name].measure is train and jax.default_backend() != "cpu"
        groups = units.setdefault(("", seed) if variants[name].shares else (name, None if together else seed), {})
        groups[name] = (*groups.get(name, ()), seed)
    return [tuple(groups.items()) for groups in units.values()]


def _kind(unit: Unit) -> str:
    """What units have in common that need the same compiled programs."""
    return unit[0][0]


Say = Callable[[tuple[Group, Mapping[str, Any] | None]], None]
Work = Callable[[Unit, Say], None]


def _start(variants: Callable, config: Training, folder: Path) -> Work:
    """What measures units, in a process of its own."""
    data = config.load()
    return _work(config, variants(config, data), data, folder)


def _work(
    config: Training, variants: Mapping[str, Variant], data: Dataset, folder: Path
) -> Callable[[Unit, Say], None]:
    """What measures units, and writes their `result.json`."""

    def work(unit: Unit, say: Say) -> None:
        for group in unit:
            name, seeds = group
            places = {seed: _place(folder, name, seed) for seed in seeds}
            for place in places.values():
                place.mkdir(parents=True, exist_ok=True)
            found = _measure(variants[name], data, places, lambda row, group=group: say((group, row)))
            for seed, result in found.items():
                if config.metric not in result:
                    raise CnnjaxError(
                        f"{name} has no {config.metric!r}\ngive another --metric, or name others with --only"
                    )
                runfolder.write_json(places[seed] / "result.json", result)
            say((group, {"step": variants[name].steps(data), "test": found[seeds[0]]}))
            say((group, None))

    return work


def _measure(variant: Variant, data: Dataset, folders: Mapping[int, Path], on_log: OnLog) -> dict[int, dict[str, Any]]:
    """The metrics of each run, and its cost; an equal share of it, of runs that are trained together."""
    compiled, begun, clock = machine.compile_seconds(), time.time(), time.perf_counter()
    if len(folders) == 1:
        [(seed, folder)] = folders.items()
        found = {seed: variant.measure(variant, data, seed, folder, on_log)}
    else:
        found = {seed: scores(run) for seed, run in trained(variant, data, folders, on_log).items()}
    seconds = (time.perf_counter() - clock) / len(folders)
    cost = {
        "seconds": seconds,
        "compile_seconds": (machine.compile_seconds() - compiled) / len(folders),
        "peak_memory_mb": machine.peak_memory_mb(),
    }
    return {seed: {**run, **cost, "begun": begun + i * seconds} for i, (seed, run) in enumerate(found.items())}


def _clock_seconds(runs: Sequence[Mapping[str, Any]]) -> float:
    """How long at least one of the runs was under way."""
    total = end = 0.0
    for begun, ended in sorted((run["begun"], run["begun"] + run["seconds"]) for run in runs):
        total += max(0.0, ended - max(begun, end))
        end = max(end, ended)
    return total


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
            "seconds": round(_clock_seconds(every), 1),
            "run_seconds": round(sum(run["seconds"] for run in every), 1),
            "compile_seconds": round(sum(run["compile_seconds"] for run in every), 1),
            "peak_memory_mb": max(run["peak_memory_mb"] for run in every),
        },
        "environment": machine.environment(),
        "config": record,
        "finished": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
