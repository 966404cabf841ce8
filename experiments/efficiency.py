"""Accuracy against cost: every network's parameters, multiply-adds, memory, depth and reach beside its published error.

Claim: Accuracy is not bought by parameters: GoogLeNet and ResNet err less than VGG at a fraction of its weights and
    multiply-adds, and with every winner of ILSVRC came more layers.
Source: Canziani, Culurciello & Paszke 2016, "An analysis of deep neural network models for practical applications"
    (arXiv:1605.07678), Fig. 1 and 2; ILSVRC 2012-2015; Szegedy et al. 2014, Table 1. Costs are counted here, on the
    program.
Command: python -m experiments.efficiency
Cost: 5 minutes on 2 CPU cores; nothing is trained.
Expected: AlexNet 60,965,224 parameters and 0.72 billion multiply-adds; VGG-16 138,357,544 and 15.5; GoogLeNet 6,998,552
    and 1.58; ResNet-50 25,557,032 and 3.86.
Departures: The published errors come from several protocols (one crop, ten crops, whole images), which the table names;
    compare within one. Memory is what reverse mode keeps of one float32 image, not what a framework allocates.
"""

import dataclasses
from pathlib import Path
from typing import Any

from cnnjax import figures, page, runfolder
from cnnjax.analysis.accuracy import BY_DATA, GOOGLENET_TABLE, ILSVRC
from cnnjax.errors import exit_with_error

# One bubble a network; its siblings would only hide it.
DRAWN = {
    "alexnet_2012": "AlexNet", "zfnet": "ZFNet", "vgg_A": "VGG-A", "vgg_B": "VGG-B", "vgg_C": "VGG-C",
    "vgg_D": "VGG-D (16)", "vgg_E": "VGG-E (19)", "googlenet_torchvision": "GoogLeNet (BN)",
    "inception_v2_slim": "Inception-v2", "inception_v3": "Inception-v3", "inception_v4": "Inception-v4",
    "inception_resnet_v2": "Inception-ResNet-v2", "resnet18_optB_v1.5": "ResNet-18",
    "resnet34_optB_v1.5": "ResNet-34", "resnet50_optB_v1": "ResNet-50", "resnet101_optB_v1": "ResNet-101",
    "resnet152_optB_v1": "ResNet-152", "plain34": "plain-34", "densenet121": "DenseNet-121",
    "densenet169": "DenseNet-169", "densenet201": "DenseNet-201", "densenet161": "DenseNet-161",
}  # fmt: skip

NOTE = (
    "params: trainable scalars. MACs: multiply-adds of one image. activ.: what reverse mode keeps of one float32 "
    "image. "
    "depth: layers with weights on the longest path. field: what a unit of the last map sees, in pixels of the image. "
    "† quoted from memory; – not published."
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Accuracy against cost, for every network of the catalogue."""

    workdir: Path = Path("runs/efficiency")
    """Folder of the report."""
    only: tuple[str, ...] = ()
    """Networks to count, by catalogue name; all of them by default."""
    fresh: bool = False
    """Start over; the folder that is there is kept under another name."""


def costs(name: str) -> dict[str, Any]:
    """What one network costs for one image."""
    from cnnjax.analysis.summary import activation_bytes, summarise
    from cnnjax.models.catalog import entry

    made = entry(name)
    net = made.make()
    summary = summarise(net, made.input)
    field = [row.field for row in summary.rows if row.field is not None and len(row.output) == 3]
    return {
        "params": summary.params, "macs": summary.macs,
        "memory": activation_bytes(net, made.input), "depth": summary.depth, "field": field[-1][0] if field else None,
    }  # fmt: skip


def count_all(options: Options) -> dict[str, dict[str, Any]]:
    """`costs` of every network asked for, with a progress bar; those already counted in the folder are kept."""
    from rich.progress import track

    from cnnjax.models.catalog import CATALOG, entry

    names = [*(options.only or CATALOG)]
    for name in names:
        entry(name)  # a mistyped name stops here
    path = options.workdir / "costs.json"
    found = runfolder.read_json(path) if path.exists() else {}
    for name in track([name for name in names if name not in found], description="counting"):
        found[name] = costs(name)
        runfolder.write_json(path, found)
    return {name: found[name] for name in names}


def tables(found: dict[str, dict[str, Any]]) -> list[page.Section]:
    """One table for each data set, sorted by error, and one for networks without a published one."""
    headings = ["network", "year", "top-1, %", "top-5, %", "params, M", "MACs, M", "activ., MB", "depth", "field, px",
                "error published in"]  # fmt: skip

    def row(name: str, known) -> list[str]:
        cost = found[name]
        said = ["–", "–", "–"]
        if known is not None:
            mark = "†" if known.recalled else ""
            said = [str(known.year), *(f"{e:.2f}{mark}" if e else "–" for e in (known.top1, known.top5))]
        return [
            name, *said, f"{cost['params'] / 1e6:.2f}", f"{cost['macs'] / 1e6:,.1f}", f"{cost['memory'] / 1e6:.1f}",
            str(cost["depth"]), str(cost["field"] or "all"),
            "; ".join(filter(None, (known.source, known.protocol))) if known and known.source else "–",
        ]  # fmt: skip

    sections: list[page.Section] = []
    published = set()
    for data, accuracies in BY_DATA.items():
        here = {name: known for name, known in accuracies.items() if name in found}
        published |= set(here)
        best = sorted(here, key=lambda name: (here[name].top1 or 1e3, here[name].top5 or 1e3, name))
        if best:
            sections.append((data, [page.Table(headings, [row(name, here[name]) for name in best])]))
    rest = [row(name, None) for name in sorted(found, key=lambda name: found[name]["macs"]) if name not in published]
    if rest:
        sections.append(("No published error", [page.Table(headings, rest)]))
    return sections


def googlenet_table() -> page.Table:
    """The paper's own block sizes beside the counted ones; cells where the paper is more than 1 % off are marked ✗."""
    from cnnjax.analysis.summary import summarise
    from cnnjax.models.googlenet import googlenet

    summary = summarise(googlenet(aux=False), (224, 224, 3))
    blocks = {"conv1": ["conv1"], "conv2": ["conv2_reduce", "conv2"], "linear": ["fc"]}
    lines = []
    for block, (kilo, mega) in GOOGLENET_TABLE.items():
        rows = [summary[name] for name in blocks.get(block, [f"inception_{block}"])]
        weights, macs = sum(r.weights for r in rows), sum(r.macs for r in rows)
        off = [abs(kilo - weights / 1024) > 0.01 * weights / 1024, abs(mega - macs / 1e6) > max(1, 0.01 * macs / 1e6)]
        marks = ["✗" if wrong else "" for wrong in off]
        lines.append(
            [block, f"{kilo:g} {marks[0]}", f"{weights / 1024:,.1f}", f"{mega:g} {marks[1]}", f"{macs / 1e6:,.1f}"]
        )
    return page.Table(["block", "weights, K (paper)", "weights, K", "operations, M (paper)", "multiply-adds, M"], lines)


def main(options: Options) -> None:
    from rich.console import Console

    record = {"experiment": "efficiency", "only": list(options.only)}
    with runfolder.opened(options.workdir, record, fresh=options.fresh):
        runfolder.write_json(options.workdir / "config.json", record)
        found = count_all(options)
        about, pictures = page.about(__doc__ or ""), []
        bubbles = [
            (
                label,
                found[name]["macs"] / 1e9,
                known.top1,
                found[name]["params"] / 1e6,
                known.protocol.startswith("centre crop"),
            )
            for name, label in DRAWN.items()
            if name in found and (known := BY_DATA["ImageNet"][name]).top1
        ]
        if bubbles:
            caption = ("Top-1 error against multiply-adds of one image; a bubble's area is the number of parameters. "
                       "Grey: one centre crop. White: ten crops or whole images, which err less.")  # fmt: skip
            pictures = [page.Picture("bubbles", caption, figures.bubbles(bubbles))]
        challenge = page.Table(
            ["year", "network", "layers", "top-5 test error, %", "entry"],
            [[str(e.year), e.network, str(e.layers), f"{e.top5:g}", e.what] for e in ILSVRC],
        )
        sections: list[page.Section] = [
            ("Accuracy against cost", [*pictures, NOTE]),
            ("ILSVRC 2012-2015, classification", [challenge]),
            *tables(found),
            ("GoogLeNet's own table", [googlenet_table(), "✗ marks what the paper prints more than 1 % off."]),
            ("About", [page.pairs({name: text for name, text in about.items() if name != "title"})]),
        ]
        runfolder.write_json(options.workdir / "results.json", {"experiment": "efficiency", "networks": found})
        footer = "Costs were counted on the program; errors are as published. The costs are in results.json."
        page.write(options.workdir, page.Page(about["title"], sections, footer))
        console = Console(width=150)
        for heading, blocks in sections[1:-1]:
            for block in (b for b in blocks if isinstance(b, page.Table)):
                console.print(page.grid(block, heading))
    print(f"{len(found)} networks; report: {options.workdir / 'report.html'}")


if __name__ == "__main__":
    import tyro

    with exit_with_error():
        main(tyro.cli(Options, description=__doc__))
