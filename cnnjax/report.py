"""What a person reads of a run: a table in the terminal, `report.html` (one file, needs nothing else) and `report.md`.

All of it is made from `results.json` and the runs' `metrics.jsonl`; nothing here measures or judges.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnjax import figures, page
from cnnjax.page import Picture, Section, Table, pairs

Results = Mapping[str, Any]  # what `results.json` holds


def show(results: Results) -> None:
    """Prints the table and the verdict, if there is one."""
    from rich.console import Console

    judged, grid = results["verdict"], page.grid(comparison(results))
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"\n{results['about']['title']}\n")
    needed = sum((column.min_width or 0) + 2 for column in grid.columns)
    Console(highlight=False, width=max(needed, console.width)).print(grid)  # a long line is better than a cut number
    if judged is None:
        return
    console.print(f"paper: {results['published_as']}")
    console.print(f"\n[bold]{judged['verdict']}[/bold]: {judged['reason']}")
    for claim in judged["claims"]:
        line = f"  {claim['verdict']}: {claim['claim']} ({claim['formula']}; {_measured(claim)}"
        console.print(f"{line}; paper {_signed(claim['published'])})", markup=False)


def write(folder: Path, results: Results, further: Sequence[Picture] = ()) -> None:
    """Writes `report.html`, `report.md` and the figures, with those of the experiment itself, into the folder."""
    curves = figures.curves(results, figures.histories(folder, results))
    drawn = {"comparison": figures.comparison(results), "curves": curves}
    pictures = [Picture(name, _CAPTIONS[name], svg) for name, svg in drawn.items() if svg]
    pictures += [picture for picture in further if picture.svg]
    judged = results["verdict"]
    lead = judged and (f"Verdict: {judged['verdict']}.", judged["reason"])
    footer = f"Finished {results['finished']}. The same numbers are in results.json."
    page.write(folder, page.Page(results["about"]["title"], _sections(results, pictures), footer, lead))


_CAPTIONS = {
    "comparison": "Left: this run, every seed and their mean ± standard deviation. "
    "Right, where there is one: the published numbers, on the paper's own data.",
    "curves": "Test error during training. Line: mean over the seeds. Band: from the best to the worst of them.",
}


def _sections(results: Results, pictures: Sequence[Picture]) -> list[Section]:
    about, data, cost = results["about"], results["data"], results["cost"]
    costs = {
        "time, s": "seconds",
        "of all runs together, s": "run_seconds",
        "of which compiling, s": "compile_seconds",
        "most memory of a process, MB": "peak_memory_mb",
    }
    first: list[Section] = [("Results", [comparison(results), *pictures])]
    if results["verdict"]:
        first = [
            ("Claim", [about["claim"], f"Source: {about['source']}"]),
            ("Paper and this run", [comparison(results), f"paper: {results['published_as']}", *pictures]),
            ("Verdict", [claims(results), _HOW_JUDGED]),
        ]
    return [
        *first,
        *(
            (name.capitalize(), [text])
            for name, text in about.items()
            if name not in ("title", "claim", "source", "cost")
        ),
        ("Runs", [_runs(results), _HOW_TIMED]),
        ("Data", [Table(list(data), [[_number(value) for value in data.values()]])]),
        ("Cost", [Table(list(costs), [[_number(cost[key]) for key in costs.values()]])]),
        ("Configuration", [pairs(results["config"]), _HOW_AGAIN]),
        ("Environment", [pairs(results["environment"])]),
    ]


_HOW_JUDGED = (
    "Judged by a 95 % t-interval of the differences between runs of the same seed, in points of error: a claim holds "
    "if the interval lies within its bounds, does not hold if it lies outside, and is not decided if it crosses one."
)
_HOW_AGAIN = "With --config config.json the experiment runs again just so."
_HOW_TIMED = (
    "Time: of all seeds; of a run that was interrupted, what came after. Images per second: in training alone, without "
    "compiling and evaluation."
)


def _mean(values: Sequence[float]) -> str:
    """Mean ± standard deviation, of numbers of any size."""
    if not values:
        return "–"
    mean, sd = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
    return _digits(mean, 3) + ("" if sd is None else f" ± {_digits(sd, 1)}")


def _digits(value: float, n: int) -> str:
    """So many of them that count, and not 5e+01 for 50."""
    return f"{float(f'{value:.{n}g}'):g}"


def comparison(results: Results) -> Table:
    """A row a variant: its columns, mean ± sd of the error, the paper's, and of the further metrics."""
    rows, papers = results["rows"], ["paper, %"] if results["verdict"] else []
    measured = results.get("measured", {})
    further = list(dict.fromkeys(name for row in rows for name in row["columns"]))
    return Table(
        ["variant", *further, f"{figures.METRICS[results['metric']]} (n={rows[0]['n']})", *papers, *measured.values()],
        [
            [
                row["variant"],
                *(_number(row["columns"].get(name)) for name in further),
                f"{row['mean']:.2f}" + ("" if row["sd"] is None else f" ± {row['sd']:.2f}"),
                *(_number(row["published"]) for _ in papers),
                *(_mean([run[metric] for run in row["seeds"].values() if metric in run]) for metric in measured),
            ]
            for row in rows
        ],
    )


def claims(results: Results) -> Table:
    """A row a claim: what it is, what was measured, and whether it holds."""
    return Table(
        ["claim", "as a formula", "measured", "n", "paper", "verdict"],
        [
            [c["claim"], c["formula"], _whole(_measured(c)), str(c["n"]), _signed(c["published"]), _whole(c["verdict"])]
            for c in results["verdict"]["claims"]
        ],
    )


def _runs(results: Results) -> Table:
    """Each seed's error, and what a variant's training took."""
    seeds, rows = list(results["rows"][0]["seeds"]), []
    for row in results["rows"]:
        runs = row["seeds"].values()
        seconds, compiling = (f"{sum(run[k] for run in runs):.1f}" for k in ("seconds", "compile_seconds"))
        speeds = [run["images_per_second"] for run in runs if "images_per_second" in run]
        row = [row["variant"], *(f"{run[results['metric']]:.2f}" for run in runs)]
        rows.append([*row, seconds, compiling, f"{sum(speeds) / len(speeds):,.0f}" if speeds else "–"])
    errors = [f"seed {seed}, %" for seed in seeds]
    return Table(["variant", *errors, "time, s", "of which compiling, s", "images/s"], rows)


def _whole(text: str) -> str:
    """A text that is not broken into lines."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return str(round(value, 6) if isinstance(value, float) else value)


def _signed(value: float | None, digits: str = "g") -> str:
    return "–" if value is None else f"{value:+{digits}}".replace("-", "−")


def _measured(claim: Mapping[str, Any]) -> str:
    if claim["mean"] is None:
        return "not run"
    mean, low, high = (_signed(claim[key], ".2f") for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]" if claim["low"] is not None else f"{mean} (one seed)"
