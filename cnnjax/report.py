"""What a person reads of a run: a table in the terminal, `report.html` (one file, needs nothing else) and `report.md`.

All of it is made from `results.json` and the runs' `metrics.jsonl`; nothing here measures or judges.
"""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cnnjax import figures
from cnnjax.train import metrics

Results = Mapping[str, Any]  # what `results.json` holds


class Table(NamedTuple):
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    name: str
    caption: str
    svg: str


Section = tuple[str, list[str | Table | Picture]]  # heading, blocks


def show(results: Results) -> None:
    """Prints the table and the verdict."""
    from rich.console import Console
    from rich.table import Table as Grid

    comparison = _comparison(results)
    grid = Grid(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading, *cells in zip(comparison.headings, *comparison.rows, strict=True):
        width = max(map(len, [*cells, *heading.split()]))  # headings wrap, numbers do not
        side = "right" if grid.columns else "left"
        grid.add_column(heading, justify=side, vertical="bottom", min_width=width, max_width=width)
    for cells in comparison.rows:
        grid.add_row(*cells)
    width = sum(column.min_width + 2 for column in grid.columns)
    judged = results["verdict"]
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"\n{results['about']['title']}\n")
    Console(highlight=False, width=max(width, console.width)).print(grid)
    console.print(f"paper: {results['published_as']}")
    console.print(f"\n[bold]{judged['verdict']}[/bold]: {judged['reason']}")
    for claim in judged["claims"]:
        line = f"  {claim['verdict']}: {claim['claim']} ({claim['formula']}; {_measured(claim)}"
        console.print(f"{line}; paper {_signed(claim['published'])})", markup=False)


def write(folder: Path, results: Results) -> None:
    """Writes `report.html`, `report.md` and the figures as SVG into the folder of the run."""
    histories = {
        row["variant"]: [metrics.read(folder / row["variant"] / f"seed-{k}" / "metrics.jsonl") for k in row["seeds"]]
        for row in results["rows"]
    }
    drawn = {"comparison": figures.comparison(results), "curves": figures.curves(results, histories)}
    pictures = [Picture(name, _CAPTIONS[name], svg) for name, svg in drawn.items() if svg]
    sections = _sections(results, pictures)
    for picture in pictures:
        (folder / f"{picture.name}.svg").write_text(picture.svg, encoding="utf-8")
    (folder / "report.md").write_text(_markdown(results, sections), encoding="utf-8")
    (folder / "report.html").write_text(_html(results, sections), encoding="utf-8")


_CAPTIONS = {
    "comparison": "Left: this run, every seed and their mean ± standard deviation. "
    "Right: the published numbers, on the paper's own data.",
    "curves": "Test error during training. Line: mean over the seeds. Band: from the best to the worst of them.",
}


def _sections(results: Results, pictures: Sequence[Picture]) -> list[Section]:
    about, data, cost = results["about"], results["data"], results["cost"]
    costs = {
        "time, s": "seconds",
        "of which compiling, s": "compile_seconds",
        "images/s": "images_per_second",
        "peak memory, MB": "peak_memory_mb",
    }
    return [
        ("Claim", [about["claim"], f"{about['source']} Printed here as the paper's: {results['published_as']}."]),
        ("Paper and this run", [_comparison(results), *pictures]),
        ("Verdict", [_claims(results), _HOW_JUDGED]),
        *(
            (name.capitalize(), [text])
            for name, text in about.items()
            if name not in ("title", "claim", "source", "cost")
        ),
        ("Runs", [_runs(results)]),
        ("Data", [Table(list(data), [[_number(value) for value in data.values()]])]),
        ("Cost", [Table(list(costs), [[_number(cost[key]) for key in costs.values()]]), _HOW_TIMED]),
        ("Configuration", [Table(["", ""], [[name, _option(value)] for name, value in results["config"].items()])]),
        ("Environment", [Table(["", ""], [[name, str(fact)] for name, fact in results["environment"].items()])]),
    ]


_HOW_JUDGED = (
    "Judged by a 95 % t-interval of the differences between runs of the same seed, in points of error: a claim holds "
    "if the interval lies within its bounds, does not hold if it lies outside, and is not decided if it crosses one."
)
_HOW_TIMED = "Images per second: training images over the time without compiling, evaluation included."


def _comparison(results: Results) -> Table:
    rows = results["rows"]
    further = list(dict.fromkeys(name for row in rows for name in row["columns"]))
    return Table(
        ["variant", *further, f"{figures.METRICS[results['metric']]} (n = {rows[0]['n']})", "paper, %"],
        [
            [
                row["variant"],
                *(_number(row["columns"].get(name)) for name in further),
                f"{row['mean']:.2f}" + ("" if row["sd"] is None else f" ± {row['sd']:.2f}"),
                _number(row["published"]),
            ]
            for row in rows
        ],
    )


def _claims(results: Results) -> Table:
    return Table(
        ["claim", "as a formula", "measured", "n", "paper", "verdict"],
        [
            [c["claim"], c["formula"], _measured(c), str(c["n"]), _signed(c["published"]), c["verdict"]]
            for c in results["verdict"]["claims"]
        ],
    )


def _runs(results: Results) -> Table:
    """Each seed's error, and what a variant's training took."""
    seeds, rows = list(results["rows"][0]["seeds"]), []
    for row in results["rows"]:
        runs = row["seeds"].values()
        seconds, compiling, images = (sum(run[k] for run in runs) for k in ("seconds", "compile_seconds", "images"))
        row = [row["variant"], *(f"{run[results['metric']]:.2f}" for run in runs)]
        rows.append([*row, f"{seconds:.1f}", f"{compiling:.1f}", f"{images / (seconds - compiling):,.0f}"])
    errors = [f"seed {seed}, %" for seed in seeds]
    return Table(["variant", *errors, "time, s", "of which compiling, s", "images/s"], rows)


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


def _option(value: Any) -> str:
    return ", ".join(value) or "–" if isinstance(value, list) else "–" if value is None else str(value)


def _footer(results: Results) -> str:
    return f"Scale {results['scale']}, finished {results['finished']}. The same numbers are in results.json."


def _markdown(results: Results, sections: Sequence[Section]) -> str:
    def block(content: str | Table | Picture) -> str:
        if isinstance(content, Picture):
            return f"![{content.caption}]({content.name}.svg)\n\n{content.caption}"
        if isinstance(content, str):
            return content
        lines = [content.headings, ["---"] * len(content.headings), *content.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    parts = [
        f"# {results['about']['title']}",
        f"**Verdict: {results['verdict']['verdict']}.** {results['verdict']['reason']}",
    ]
    for heading, blocks in sections:
        parts += [f"## {heading}", *map(block, blocks)]
    return "\n\n".join([*parts, _footer(results)]) + "\n"


def _html(results: Results, sections: Sequence[Section]) -> str:
    def table(content: Table) -> str:
        columns = list(zip(*content.rows, strict=True))
        numeric = [all(re.fullmatch(r"[−+]?[\d.,]+( ± [\d.]+)?|–", cell) for cell in column) for column in columns]
        kinds = [' class="number"' if number else "" for number in numeric]

        def row(cells: Sequence[str], tag: str) -> str:
            parts = [f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True)]
            return f"<tr>{''.join(parts)}</tr>\n"

        head = f"<thead>\n{row(content.headings, 'th')}</thead>\n" if any(content.headings) else ""
        body = "".join(row(cells, "td") for cells in content.rows)
        return f'<div class="wide"><table>\n{head}<tbody>\n{body}</tbody>\n</table></div>\n'

    def block(content: str | Table | Picture) -> str:
        if isinstance(content, Picture):
            caption, drawing = html.escape(content.caption), content.svg[content.svg.index("<svg") :]
            return f'<figure role="img" aria-label="{caption}">\n{drawing}<figcaption>{caption}</figcaption></figure>\n'
        if isinstance(content, str):
            return f"<p>{html.escape(content)}</p>\n"
        return table(content)

    title, verdict, reason = map(
        html.escape, (results["about"]["title"], results["verdict"]["verdict"], results["verdict"]["reason"])
    )
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    body = "".join(f"<h2>{heading}</h2>\n{''.join(map(block, blocks))}" for heading, blocks in sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<h1>{title}</h1>
<p class="verdict"><strong>Verdict: {verdict}</strong> {reason}</p>
{body}<footer>{_footer(results)}</footer>
</body>
</html>
"""
