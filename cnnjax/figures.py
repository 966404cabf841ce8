"""The figures that every report has, as SVG text: self-contained, in colours that the colour-blind tell apart."""

import io
import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnjax.train import metrics

# Okabe & Ito's palette without its yellow, which is too light for a line on white; dashes tell colours apart in print.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9")
DASHES = ("-", "--", "-.", ":")
METRICS = {"error": "test error, %", "error5": "top-5 test error, %"}
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "font.size": 10,
    "svg.hashsalt": "cnnjax",  # the same figure is the same file
}


def comparison(results: Mapping[str, Any]) -> str:
    """One line a variant: each seed's error and mean ± sd on the left, the published number on the right.

    "" where there is nothing to compare.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows = results["rows"]
    published = any(row["published"] is not None for row in rows)
    if len(rows) == 1 and not published:
        return ""
    with matplotlib.rc_context(STYLE):
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
                    str(row["published"]),
                    (row["published"], y),
                    (7, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=9,
                )
        panels[0].set_yticks(range(len(rows)), [row["variant"] for row in rows])
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
        panels[0].set_xlim(left=0)
        axis = f"this run, {results['data']['name']}: {METRICS[results['metric']]}"
        panels[0].set_xlabel(_wrapped(axis))
        handles, labels = panels[0].get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        figure.legend(once.values(), once.keys(), loc="outside upper left", ncols=2, frameon=False, fontsize=9)
        if published:
            panels[1].set_xlabel(_wrapped(results["published_as"]))
            panels[1].set_xlim(0, 1.12 * max(row["published"] or 0 for row in rows))  # a number follows
        return svg(figure)


def _wrapped(text: str, width: int = 48) -> str:
    """In as few lines as the width allows, and these about equally long."""
    lines = len(textwrap.wrap(text, width))
    return next("\n".join(found) for n in range(1, width + 1) if len(found := textwrap.wrap(text, n)) == lines)


def curves(results: Mapping[str, Any], histories: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> str:
    """Test error over the epochs, a line a variant, a band over its seeds; "" where nothing was trained.

    histories: variant -> for each seed the rows of its `metrics.jsonl`.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 3.8), layout="constrained")
        axes, highest = figure.subplots(), 0.0
        for i, (variant, seeds) in enumerate(histories.items()):
            points: dict[float, list[float]] = {}
            for row in (row for rows in seeds for row in rows if "test" in row):
                points.setdefault(row["epoch"], []).append(row["test"][results["metric"]])
            if points:
                epochs = sorted(points)
                colour, dash = COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]
                means = [math.fsum(points[e]) / len(points[e]) for e in epochs]
                highest = max(highest, *means)
                marker = "o" if len(epochs) == 1 else None
                axes.plot(epochs, means, color=colour, linestyle=dash, marker=marker, label=variant)
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
        if highest > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.yaxis.set_minor_formatter(NullFormatter())
        if max(axes.get_xlim()) > 4:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel=METRICS[results["metric"]])
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        return svg(figure)


def learning(panels: Mapping[str, Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]], *, key: str = "error") -> str:
    """Training (dashed) and test (solid) curves over the epochs, means over the seeds; "" where nothing was trained.

    panels: title -> name of a line -> for each seed the rows of its `metrics.jsonl`. key: what of the rows is drawn.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(len(panels), 2 if len(panels) < 5 else 3 if len(panels) < 7 else 4)
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    height = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 0.7 + 2.3 * height), layout="constrained")
        grid = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False)
        middles = []
        for axes, (title, panel) in zip(grid.flat, panels.items(), strict=False):
            for name, seeds in panel.items():
                for kind, dash in {"train": "--", "test": "-"}.items():
                    epochs, values = means(seeds, kind, key)
                    middles += values[len(values) // 4 :]
                    style = dash if len(epochs) > 1 else "o"
                    axes.plot(epochs, values, style, color=COLOURS[names.index(name) % len(COLOURS)], lw=1.3)
            axes.set_title(title, fontsize=10)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=axes.get_xlim()[1] > 4))
        if not middles:
            return ""
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        grid[0, 0].set_ylim(0, 1.1 * max(middles) or None)
        figure.supxlabel("epoch", fontsize=10)
        figure.supylabel(f"{key}, %" if key == "error" else key, fontsize=10)
        for i, name in enumerate(names if len(names) > len(panels) else ()):  # else the titles say it
            grid[0, 0].plot([], [], color=COLOURS[i % len(COLOURS)], label=name)
        for kind, dash in {"training": "--", "test": "-"}.items():
            grid[0, 0].plot([], [], dash, color="#777777", label=kind)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(handles), frameon=False, fontsize=9)
        return svg(figure)


def means(seeds: Sequence[Sequence[Mapping[str, Any]]], kind: str, key: str) -> tuple[list[float], list[float]]:
    """Epochs, and the mean over the seeds there of one number of the rows of their `metrics.jsonl`."""
    points: dict[float, list[float]] = {}
    for row in (row for rows in seeds for row in rows if kind in row and key in row[kind]):
        points.setdefault(row["epoch"], []).append(row[kind][key])
    return sorted(points), [math.fsum(points[epoch]) / len(points[epoch]) for epoch in sorted(points)]


def histories(folder: Path, results: Mapping[str, Any]) -> dict[str, list[list[dict[str, Any]]]]:
    """variant -> for each seed the rows of its `metrics.jsonl`, of the run in `folder`."""
    return {
        row["variant"]: [metrics.read(folder / row["variant"] / f"seed-{k}" / "metrics.jsonl") for k in row["seeds"]]
        for row in results["rows"]
    }


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """A square for each pair of classes (row: what it is, column: what it is taken for): darker for more of the row.

    The numbers and the names are in it where there is room for them.
    """
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    matrix = np.asarray(counts)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    height, roomy = min(8.0, 2.2 + 0.3 * len(classes)), len(classes) <= 20
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(8.5, height), layout="constrained")
        axes = figure.subplots()
        axes.imshow(shares, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
        axes.set(xlabel="taken for", ylabel="is")
        if roomy:
            names = [textwrap.shorten(name, 18, placeholder="…") for name in classes]
            axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 3 else 0)
            axes.set_yticks(range(len(names)), names)
            for (i, j), count in np.ndenumerate(matrix):
                if count:
                    colour = "white" if shares[i, j] > 0.5 else "black"
                    axes.text(j, i, str(count), ha="center", va="center", fontsize=8, color=colour)
        return svg(figure)


Points = Sequence[tuple[float, float, float | None]]  # x, mean, standard deviation


def point(x: float, values: Sequence[float]) -> tuple[float, float, float | None]:
    """A point of `lines`: mean and standard deviation of some values, the latter of two or more."""
    return x, statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def points(results: Mapping[str, Any], names: Mapping[Any, str], metric: str | None = None) -> Points:
    """What `lines` draws of the variants that were run, each at the place that `names` gives it.

    metric: which of the runs' numbers; None: the error that the table compares.
    """
    found = {row["variant"]: row["seeds"].values() for row in results["rows"]}
    return [
        point(place, [run[metric or results["metric"]] for run in found[name]])
        for place, name in names.items()
        if name in found
    ]


def lines(
    series: Mapping[str, Points], *, x: str, y: str, ticks: Sequence[float] = (), log: str = "", title: str = ""
) -> str:
    """A line with error bars for each series, e.g. error over depth; a series without points is left out.

    x, y: labels of the axes. ticks: places on the x axis; none: chosen. log: "x", "y" or "xy": axes with a logarithm.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 3.8), layout="constrained")
        axes = figure.subplots()
        for i, (label, points) in enumerate((label, points) for label, points in series.items() if points):
            places, means, spreads = zip(*points, strict=True)
            axes.errorbar(
                places,
                means,
                [spread or 0 for spread in spreads],
                color=COLOURS[i % len(COLOURS)],
                linestyle=DASHES[i % len(DASHES)] if len(points) > 1 else "none",
                marker="osD^vP*X"[i % 8],
                capsize=3,
                label=label,
            )
        for name in log:
            axes.set(**{f"{name}scale": "log"})
            axis = getattr(axes, f"{name}axis")
            low, high = axis.get_view_interval()
            if high < 1e4 * low:  # over more decades Matplotlib's own, at powers of ten
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter("{x:,g}")
                axis.set_minor_formatter(NullFormatter())
        if ticks:
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.set_xticks([], minor=True)
        axes.set(xlabel=x, ylabel=y, title=title)
        if len(axes.containers) > 1:
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        return svg(figure)


def heat(
    panels: Mapping[str, Sequence[Sequence[float]]],
    *,
    x: str,
    y: str,
    value: str,
    limits: tuple[float, float],
    rows: Sequence[str] = (),
    extent: tuple[float, float] | None = None,
) -> str:
    """Matrices side by side, a grey for each number: lighter for less.

    x, y, value: labels of the columns, the rows and the greys. rows: names of the rows. extent: what the first and the
    last column stand for; None: their numbers.
    """
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        height = 3.8 if not rows else 1.6 + 0.24 * len(rows)
        figure = Figure(figsize=(8.5, height), layout="constrained")
        every = figure.subplots(1, len(panels), sharey=bool(rows), squeeze=False)[0]
        for axes, (title, matrix) in zip(every, panels.items(), strict=True):
            values = np.asarray(matrix, float)
            left, right = extent or (0.5, values.shape[1] + 0.5)
            image = axes.imshow(
                values,
                cmap="Greys",
                vmin=limits[0],
                vmax=limits[1],
                aspect="auto",
                interpolation="nearest",
                extent=(left, right, len(values) + 0.5, 0.5),
            )
            axes.set(title=title, xlabel=x)
            if extent:
                middle = (left + right) / 2
                axes.set_xticks([left, middle, right], [f"{place:g}" for place in (left, middle, right)])
            if rows:
                axes.set_yticks(range(1, 1 + len(rows)), rows)
            else:
                axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        every[0].set_ylabel(y)
        figure.colorbar(image, ax=every, label=value, extend="both")
        return svg(figure)


def range_test(
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    marks: Mapping[str, float],
) -> str:
    """Loss over the learning rate: every step's, the smoothed ones, and rates with a name."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(rates, losses, color="#aaaaaa", lw=0.8, label="each step")
        axes.plot(rates, smoothed, color=COLOURS[0], lw=2, label="smoothed")
        for (name, rate), colour, dash in zip(marks.items(), COLOURS[1:], DASHES[1:], strict=False):
            axes.axvline(rate, color=colour, linestyle=dash, label=f"{name}: {rate:.2g}")
        low, high = min(smoothed), max(smoothed[: max(1, len(smoothed) // 2)])
        axes.set_ylim(max(0.0, low - 0.1 * (high - low)), high + 0.2 * (high - low) or None)
        axes.set_xscale("log")
        axes.set(xlabel="learning rate", ylabel="training loss")
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        return svg(figure)


def bubbles(points: Sequence[tuple[str, float, float, float, bool]]) -> str:
    """Error over cost, a bubble a network: (label, billion multiply-adds, top-1 error %, million parameters, filled).

    Readable in black and white: every bubble has its name, beside it where no other name or bubble is.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 7), layout="constrained")
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"], minor=False)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="multiply-adds for one image, billions", ylabel="top-1 error, %")
        for _, macs, error, params, filled in sorted(points, key=lambda point: -point[3]):
            face = "#bbbbbb" if filled else "white"
            axes.scatter(macs, error, s=8 * params, facecolor=face, edgecolor="black", linewidth=1, alpha=0.85)
        for params in (5, 50, 150):
            axes.scatter([], [], s=8 * params, facecolor="white", edgecolor="black", label=f"{params} M parameters")
        axes.legend(loc="upper right", frameon=False, labelspacing=2.2, borderpad=1.5, handletextpad=1.5)
        costs = [point[1] for point in points]
        axes.set_xlim(min(costs) / 1.6, max(costs) * 2.2)
        low, high = min(p[2] for p in points) - 1.5, max(p[2] for p in points) + 2
        axes.set_ylim(low, high)
        figure.draw_without_rendering()  # places the axes, so that names can be laid out in points on the page
        taken = []  # (left, bottom, right, top) of bubbles and names
        centres = {}
        for label, macs, error, params, _ in points:
            x, y = axes.transData.transform((macs, error)) * 72 / figure.dpi
            radius = math.sqrt(8 * params) / 2
            centres[label] = x, y, radius
            taken.append((x - radius, y - radius, x + radius, y + radius))
        for label, (x, y, radius) in centres.items():
            left, bottom = _free_place(x, y, radius, 4.9 * len(label), taken)
            taken.append((left, bottom, left + 4.9 * len(label), bottom + 9))
            far = math.hypot(max(left - x, x - left - 4.9 * len(label), 0), bottom + 4 - y) > radius + 8
            line = {"arrowstyle": "-", "color": "#777777", "lw": 0.6, "shrinkB": radius} if far else None
            axes.annotate(
                label,
                (x, y),
                (left, bottom),
                xycoords="figure points",
                textcoords="figure points",
                fontsize=8.5,
                arrowprops=line,
            )
        return svg(figure)


def bars(rows: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """A group of bars a row: (label, name -> ratio), with a line at 1."""
    import matplotlib
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for _, ratios in rows for name in ratios))
    height = 0.8 / len(names)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 1 + 0.11 * len(rows) * (len(names) + 2)), layout="constrained")
        axes = figure.subplots()
        for i, name in enumerate(names):
            places = [
                (y + (i - len(names) / 2) * height, ratios[name])
                for y, (_, ratios) in enumerate(rows)
                if name in ratios
            ]
            hatch = ("", "//", "..")[i // len(COLOURS) % 3]
            axes.barh(*zip(*places, strict=True), height=height, align="edge", color=COLOURS[i % len(COLOURS)],
                      hatch=hatch, label=name)  # fmt: skip
        axes.axvline(1, color="black", lw=0.8)
        axes.set_yticks(range(len(rows)), [label for label, _ in rows])
        axes.invert_yaxis()
        axes.set_xlabel("speed, the fastest peer = 1")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        return svg(figure)


def _free_place(
    x: float, y: float, radius: float, width: float, taken: Sequence[Sequence[float]]
) -> tuple[float, float]:
    """Where a name of this width, in points, goes beside its bubble without touching another name or bubble."""
    for gap in range(3, 200, 4):
        for angle in (0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90):
            dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            left = x + (radius + gap) * dx - (0 if dx > 0.01 else width if dx < -0.01 else width / 2)
            bottom = y + (radius + gap) * dy - 4
            if all(left > x1 or left + width < x0 or bottom > y1 or bottom + 9 < y0 for x0, y0, x1, y1 in taken):
                return left, bottom
    return x + radius, y


def svg(figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()
