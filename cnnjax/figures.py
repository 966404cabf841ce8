"""The figures that every report has, as SVG text: self-contained, in colours that the colour-blind tell apart."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

# Okabe & Ito's palette without its yellow, which is too light for a line on white; dashes tell colours apart in print.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9")
DASHES = ("-", "--", "-.", ":")
METRICS = {"error": "test error, %", "error5": "top-5 test error, %"}
_STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "font.size": 10,
    "svg.hashsalt": "cnnjax",  # the same figure is the same file
}


def comparison(results: Mapping[str, Any]) -> str:
    """One line a variant: each seed's error and mean ± sd on the left, the published number on the right."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = results["rows"]
    published = any(row["published"] is not None for row in rows)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.5, 1.3 + 0.36 * len(rows)), layout="constrained")
        panels = figure.subplots(1, 1 + published, sharey=True, squeeze=False)[0]
        for y, row in enumerate(rows):
            errors = [run[results["metric"]] for run in row["seeds"].values()]
            panels[0].plot(errors, [y] * len(errors), "o", mfc="none", mec="#777777", ms=5, label="one seed")
            panels[0].errorbar(
                row["mean"], y, xerr=row["sd"] or None, fmt="D", color=COLOURS[0], ms=5.5, capsize=3, label="mean ± sd"
            )
            if row["published"] is not None:
                panels[1].plot(row["published"], y, "s", color=COLOURS[1], ms=6.5)
                panels[1].annotate(
                    f"{row['published']:g}",
                    (row["published"], y),
                    (7, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=9,
                )
        panels[0].set_yticks(range(len(rows)), [row["variant"] for row in rows])
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
        panels[0].set_xlabel(f"this run, {results['data']['name']}: {METRICS[results['metric']]}")
        handles, labels = panels[0].get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        figure.legend(once.values(), once.keys(), loc="outside upper left", ncols=2, frameon=False, fontsize=9)
        if published:
            panels[1].set_xlabel("\n".join(textwrap.wrap(results["published_as"], 48)))
            panels[1].set_xlim(left=0)
            panels[1].margins(x=0.12)
        return _svg(figure)


def curves(results: Mapping[str, Any], histories: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> str:
    """Test error over the epochs, a line a variant, a band over its seeds; "" where nothing was trained.

    histories: variant -> for each seed the rows of its `metrics.jsonl`.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.5, 3.8), layout="constrained")
        axes = figure.subplots()
        for i, (variant, seeds) in enumerate(histories.items()):
            points: dict[float, list[float]] = {}
            for row in (row for rows in seeds for row in rows if "test" in row):
                points.setdefault(row["epoch"], []).append(row["test"][results["metric"]])
            if points:
                epochs = sorted(points)
                colour, dash = COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]
                means = [math.fsum(points[e]) / len(points[e]) for e in epochs]
                axes.plot(epochs, means, color=colour, linestyle=dash, label=variant)
                axes.fill_between(
                    epochs,
                    [min(points[e]) for e in epochs],
                    [max(points[e]) for e in epochs],
                    color=colour,
                    alpha=0.15,
                    lw=0,
                )
        if not axes.lines:
            return ""
        axes.set_yscale("log")
        for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            formatter(ScalarFormatter())
        axes.set(xlabel="epoch", ylabel=METRICS[results["metric"]])
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        return _svg(figure)


def _svg(figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()
