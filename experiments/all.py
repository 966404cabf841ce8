"""Runs every experiment that makes a claim, and writes one page over their reports, with the verdicts.

Command: python -m experiments.all --scale smoke
Order: Each experiment has a process and a folder of its own, so that one that fails does not end the rest. What is
    finished is not run again; what was interrupted goes on from there.
Results: With --publish docs the rows of every finished experiment are written to docs/results/NAME.json, and
    docs/results.md is made from all such files that are there.
"""

from __future__ import annotations

import collections
import dataclasses
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cnnjax import page, report, runfolder
from cnnjax.errors import CnnjaxError, unknown
from cnnjax.experiment import command
from cnnjax.options import Options, parse
from cnnjax.progress import progress
from cnnjax.verdict import FAILS, HOLDS, UNDECIDED
from experiments.__main__ import trainings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """The options of a run over all experiments."""

    scale: Literal["smoke", "lab", "paper"] = "lab"
    """How large: see an experiment's own --help."""
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME")] = ()
    """Run this experiment and no other; may be given several times."""
    data: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=SOURCE")] = ()
    """Give this experiment other images than its own, e.g. lenet_traffic_signs=npz:gtsrb.npz; may be given several
    times."""
    resume: bool = False
    """Do not run finished experiments again. It is so anyway, unless --fresh starts all of them over."""
    publish: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Write the results into DIR/results and DIR/results.md; not for the smoke scale."""

    def __post_init__(self):
        if self.publish is not None and self.scale == "smoke":
            raise CnnjaxError("--publish is for results, and the smoke scale has none\ngive --scale lab or paper")
        if self.resume and self.fresh:
            raise CnnjaxError("--resume goes on and --fresh starts over\nleave one of them out")
        for name in [*self.only, *self.sources]:
            if name not in (legal := claiming()):
                raise unknown("experiment", name, legal)

    @property
    def label(self) -> str:
        return self.scale

    @property
    def sources(self) -> dict[str, str]:
        """Where the images of an experiment come from, if not from where its scale says."""
        return {name: source for name, _, source in (given.partition("=") for given in self.data)}

    def record(self) -> dict[str, Any]:
        return {"scale": self.scale}


def claiming() -> list[str]:
    """The experiments that make a claim, by name; none is imported."""
    return trainings(claiming=True)


def run_all(config: Settings) -> list[str]:
    """Runs what is not finished, keeps the page up to date, and returns the names of what failed."""
    folder = config.folder("all")
    with runfolder.opened(folder, {"experiment": "all", **config.record()}, fresh=config.fresh):
        runfolder.write_json(folder / "config.json", {"experiment": "all", **config.record()})
        every = claiming()
        names = [name for name in every if not config.only or name in config.only]
        todo = [name for name in names if not (folder / name / "results.json").exists()]
        with progress(len(todo)) as tell:
            for name in names:
                code = 0
                if name in todo:
                    tell(name, 1, {"step": 0})
                    code = run_one(name, config, folder)
                found = results(folder / name)
                said = (
                    found["verdict"]["verdict"] if found else f"failed with exit code {code}, see {folder / name}.log"
                )
                if name in todo:
                    tell(f"{name}: {said}", 1, None)
                write_index(folder, every, config.scale)
                if found and config.publish is not None:
                    publish(found, config.publish)
        print(f"report: {folder / 'report.html'}")
        return [name for name in names if results(folder / name) is None]


def run_one(name: str, config: Settings, folder: Path) -> int:
    """Runs an experiment in a process of its own, that says what it says in a file; its exit code."""
    asked = [sys.executable, "-m", f"experiments.{name}", f"--scale={config.scale}", f"--workdir={folder / name}"]
    source = [f"--data={config.sources[name]}"] if name in config.sources else []
    with (
        open(folder / f"{name}.log", "w", encoding="utf-8") as log,
        # a group of its own: what the terminal sends must not come twice, for the second signal ends it at once
        subprocess.Popen([*asked, *source], stdout=log, stderr=subprocess.STDOUT, process_group=0) as child,
    ):
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.terminate()  # it finishes its step and saves
            child.wait()
            raise


def results(folder: Path) -> dict[str, Any] | None:
    """What an experiment came to, if it is finished."""
    return runfolder.read_json(folder / "results.json") if (folder / "results.json").exists() else None


def write_index(folder: Path, names: Sequence[str], scale: str) -> None:
    """The page over the reports."""
    rows = []
    for name in names:
        found = results(folder / name)
        if found:
            minutes = f"{found['cost']['seconds'] / 60:.1f}"
            link = page.Link(name, f"{name}/report.html")
            rows.append([link, found["verdict"]["verdict"], found["verdict"]["reason"], minutes, found["finished"]])
        elif (folder / f"{name}.log").exists():
            rows.append([page.Link(name, f"{name}.log"), "not finished", "see what it said last", "–", "–"])
        else:
            rows.append([name, "not run", "–", "–", "–"])
    table = page.Table(["experiment", "verdict", "why", "time, min", "finished"], rows)
    footer = "Every verdict is computed from the runs; an experiment's own page says how."
    page.write(folder, page.Page(f"All experiments, {scale} scale", [("Verdicts", [table])], footer))


def publish(found: Mapping[str, Any], where: Path) -> None:
    """Keeps what an experiment came to in `where`/results, without paths, and makes `where`/results.md anew."""
    (where / "results").mkdir(parents=True, exist_ok=True)
    runfolder.write_json(where / "results" / f"{found['experiment']}.json", kept(found))
    every = [runfolder.read_json(path) for path in sorted((where / "results").glob("*.json"))]
    (where / "results.md").write_text(page.markdown(summary(every)), encoding="utf-8")


def kept(found: Mapping[str, Any]) -> dict[str, Any]:
    """What is published of `results.json`: numbers of single seeds, but no paths."""
    kind, _, place = found["data"]["name"].partition(":")
    name = f"{kind}:{Path(place).name}" if kind in ("npz", "folder") else kind if "/" in place else f"{kind}:{place}"
    metrics = [found["metric"], *found["measured"]]

    def seeds(row: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        return {seed: {key: run[key] for key in metrics if key in run} for seed, run in row["seeds"].items()}

    return {
        **{key: found[key] for key in ("experiment", "metric", "measured", "published_as", "verdict", "finished")},
        "about": {key: found["about"][key] for key in ("title", "claim", "source", "departures")},
        "scale": found["config"]["scale"],
        "data": {**found["data"], "name": name.rstrip(":")},
        "rows": [{**row, "seeds": seeds(row)} for row in found["rows"]],
        **{key: found["cost"][key] for key in ("seconds", "run_seconds")},
        "machine": {key: found["environment"][key] for key in ("processor", "cores", "devices", "jax")},
    }


def summary(every: Sequence[Mapping[str, Any]]) -> page.Page:
    """The page over all that is published."""
    rows, failing, sections = [], [], []
    for one in every:
        name, machine, judged = one["experiment"], one["machine"], one["verdict"]
        link, minutes, of_claims = page.Link(name, f"#{name}"), f"{one['seconds'] / 60:.1f}", report.claims(one)
        came = collections.Counter(claim["verdict"] for claim in judged["claims"])
        counts = [str(came[verdict]) for verdict in (HOLDS, FAILS, UNDECIDED)]
        n = str(one["rows"][0]["n"])
        rows.append([link, judged["verdict"], *counts, one["scale"], one["data"]["name"], n, minutes])
        failing += [
            [link, *cells[:-1]]
            for claim, cells in zip(judged["claims"], of_claims.rows, strict=True)
            if claim["verdict"] == FAILS
        ]
        on = f"{machine['devices']}, {machine['processor']}, {machine['cores']} cores, jax {machine['jax']}"
        side_by_side = one["run_seconds"] > 1.05 * one["seconds"]
        runs = f" (its runs took {one['run_seconds'] / 60:.1f}, side by side)" if side_by_side else ""
        took = f"{minutes} minutes{runs} on {on}; finished {one['finished']}."
        cost = f"{one['scale']} scale, {one['data']['name']}, {took}"
        paper, verdict = f"Paper: {one['published_as']}.", f"Verdict: {judged['verdict']}; {judged['reason']}."
        said = [f"{one['about']['title']} Claim: {one['about']['claim']}", verdict]
        sections.append((name, [*said, report.comparison(one), of_claims, paper, cost]))
    counted = ["claims that hold", "that do not", "undecided"]
    first = page.Table(["experiment", "verdict", *counted, "scale", "data", "n", "time, min"], rows)
    wrong = page.Table(["experiment", "claim", "as a formula", "measured [95 %]", "n", "paper"], failing)
    parts = [("Verdicts", [first]), ("Claims that did not hold", [wrong] if failing else ["None."]), *sections]
    footer = "Written by `python -m experiments.all --publish docs` from the files in results/. n: seeds."
    return page.Page("What the experiments came to", parts, footer)


if __name__ == "__main__":
    with command():
        if failed := run_all(parse("all", __doc__, {"": Settings()}, (), sys.argv[1:])):
            sys.exit(f"{len(failed)} experiments failed: {', '.join(failed)}")
