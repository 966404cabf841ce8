"""Variants × seeds -> runs, one after the other or side by side; what each came to is kept in its folder at once."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnjax import machine, runfolder, workers
from cnnjax.errors import CnnjaxError
from cnnjax.options import Config, Training
from cnnjax.progress import progress
from cnnjax.variant import OnLog, Variant, scores, train, trained

if TYPE_CHECKING:
    from cnnjax.data.splits import Dataset

Group = tuple[str, tuple[int, ...]]  # a variant, and the seeds with which it is measured together
Unit = tuple[Group, ...]  # groups that are measured one after the other by the same process
Say = Callable[[tuple[Group, Mapping[str, Any] | None]], None]
Work = Callable[[Unit, Say], None]
Results = dict[str, dict[int, dict[str, Any]]]  # of each variant with each seed


def measure_all(
    build: Callable[[Any, Dataset], Mapping[str, Variant]],
    config: Training,
    variants: Mapping[str, Variant],
    data: Dataset,
    folder: Path,
) -> Results:
    """What every variant comes to with every seed; what is in the folder already is not measured again.

    build: what makes the variants of the settings and the images, for processes of their own.
    """
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
            start = functools.partial(_start, build, config, folder)
            units.sort(key=lambda unit: -sum(map(steps, unit)))  # what takes long must not be left to one at the end
            workers.side_by_side(jobs, start, units, told, alike=_kind)
        else:
            work = _work(config, variants, data, folder)
            for unit in units:
                work(unit, functools.partial(told, unit))
    return {name: {seed: runfolder.read_json(places[name, seed]) for seed in seeds} for name in variants}


def _place(folder: Path, name: str, seed: int) -> Path:
    return folder / name / f"seed-{seed}"


MEMORY_MB = 4000  # of the largest process of the experiments at the lab scale


def _jobs(config: Training) -> int:
    """How many trainings may be under way at once."""
    import jax

    if not isinstance(config, Config):
        return 1
    backend, asked = jax.default_backend(), config.jobs
    if backend != "cpu" and asked not in (None, 1):
        raise CnnjaxError(f"--jobs is {asked}, and on a {backend} one process has the device\nleave it out there")
    room = min(4, machine.cores(), machine.free_memory_mb() / MEMORY_MB)
    return asked or (max(1, int(room)) if backend == "cpu" and config.scale == "lab" else 1)


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


def _start(build: Callable[[Any, Dataset], Mapping[str, Variant]], config: Training, folder: Path) -> Work:
    """What measures units, in a process of its own."""
    data = config.load()
    return _work(config, build(config, data), data, folder)


def _work(config: Training, variants: Mapping[str, Variant], data: Dataset, folder: Path) -> Work:
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


def clock_seconds(runs: Sequence[Mapping[str, Any]]) -> float:
    """How long at least one of the runs was under way."""
    total = end = 0.0
    for begun, ended in sorted((run["begun"], run["begun"] + run["seconds"]) for run in runs):
        total += max(0.0, ended - max(begun, end))
        end = max(end, ended)
    return total
