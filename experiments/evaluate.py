"""Scores what was trained: top-1 and top-5 errors by any published protocol, per class, of one network or an ensemble.

Command: python -m experiments.evaluate --run runs/train-lenet5-adam-mnist5k --protocol 10crop
Runs: The folder of one training (runs/NAME-SCALE/VARIANT/seed-K), or of a run that has only one. Several --run make an
    ensemble, whose probabilities are averaged.
Data: Those of the run by default, and never an image that it was trained on. Every image is counted once.
Protocols: whole images as the network saw them, or centre, 10crop, 144 (GoogLeNet's crops), dense (VGG's fully
    connected layers as convolutions), multiscale, multiscale_resnet, in proportion to the network's crop.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro

from cnnjax import machine, page, runfolder
from cnnjax.errors import CnnjaxError, unknown
from cnnjax.experiment import command, configuration, kept
from cnnjax.options import Options, Training, arguments, parse
from cnnjax.variant import Variant
from experiments.__main__ import trainings

if TYPE_CHECKING:  # so that --help answers at once
    from cnnjax.data.splits import Dataset, Split
    from cnnjax.train.evaluate import Member, Scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """The options of an evaluation."""

    run: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="DIR")] = ()
    """The folder of a training; may be given several times."""
    data: str | None = None
    """Where the images come from, as for a training; None: what the run scored itself by."""
    protocol: Literal["whole", "centre", "10crop", "144", "dense", "multiscale", "multiscale_resnet"] | None = None
    """What the networks see of an image; None: what the recipe says."""
    checkpoint: Literal["last", "best"] = "last"
    """The last state of the training, or the one with the lowest test error, which flatters."""
    size: int | None = None
    """Height and width at which images are kept before they are scaled and cropped; None: as in the training."""
    batch: int = 100
    """Images at a time."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the networks; probabilities are float32."""

    def __post_init__(self):
        self.at_least(batch=1, size=1)

    @property
    def label(self) -> str:
        runs = [run.resolve().parts[-3 if run.name.startswith("seed-") else -1 :] for run in self.run]
        data = self.data and self.data.rpartition("/")[2]
        return "-".join(filter(None, [*itertools.chain(*runs), self.protocol, data]))


class Trained(NamedTuple):
    """A training that was found in its folder, as it was asked for and as it ended."""

    folder: Path
    config: Training
    variant: Variant
    data: Dataset
    variables: dict[str, Any]


def trained(folder: Path, which: str) -> Trained:
    """The "last" or the "best" state of the training in `folder`, and all that the training was.

    Its network and its preparation of images are made again from config.json, which takes the images that it was
    trained on. Raises `CnnjaxError` where there is no such training.
    """
    folder = the_training(folder)
    run = folder.parent.parent
    record = runfolder.read_json(run / "config.json")
    name, known = record.pop("experiment", None), trainings()
    if name not in known:
        raise unknown(f"experiment in {run / 'config.json'}:", name, known)
    experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
    config = configuration(experiment, arguments(record))
    data = config.load()
    variants = experiment.variants(config, data)
    if folder.parent.name not in variants:
        raise unknown("variant", folder.parent.name, variants)
    variant = variants[folder.parent.name]
    return Trained(folder, config, variant, data, state(folder, variant, data, which))


def the_training(folder: Path) -> Path:
    """The folder itself where it is that of a training, else the only such one in it."""
    if (folder / "checkpoints").is_dir():
        return folder
    found = sorted(path.parent for path in folder.glob("*/seed-*/checkpoints"))
    if not found:
        raise CnnjaxError(f"{folder} holds no training\ngive a folder that a training has written, such as "
                          "runs/NAME-SCALE/VARIANT/seed-0")  # fmt: skip
    if len(found) > 1:
        raise CnnjaxError(f"{folder} holds {len(found)} trainings\ngive one, such as {found[0]}; several --run make an "
                          "ensemble")  # fmt: skip
    return found[0]


def state(folder: Path, variant: Variant, data: Dataset, which: str) -> dict[str, Any]:
    """The variables that a training ended with, or its best ones: as they are evaluated."""
    import jax

    from cnnjax.train import checkpoint
    from cnnjax.train.state import variables

    if variant.net is None:
        raise CnnjaxError(f"{folder} holds no network")
    saved = checkpoint.Checkpoints(folder / "checkpoints")
    step = checkpoint.latest(saved)
    if which == "best" and (best := checkpoint.best(saved)) is not None:
        step = best
    if step is None:
        raise CnnjaxError(f"{folder} holds no whole checkpoint")
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), variant.state(data))
    return variables(checkpoint.restore(saved, step, shapes))


def member(run: Trained, protocol: str | None) -> Member:
    """The network as one of an ensemble, that sees images as the protocol says."""
    from cnnjax.data.augment import fixed
    from cnnjax.models.surgery import fully_convolutional
    from cnnjax.train.evaluate import Member
    from cnnjax.train.feed import Prepare
    from cnnjax.train.protocols import PROTOCOLS
    from cnnjax.train.recipe import preparation

    recipe, shape = run.variant.recipe, run.variant.sees(run.data)
    assert recipe is not None and run.variant.net is not None
    seen = recipe.evaluation if protocol is None else PROTOCOLS[protocol].for_crop(min(shape[:2]))
    net, variables = run.variant.net, run.variables
    if seen.crops is None and seen.scales != (None,):
        net, variables = fully_convolutional(net, variables, (shape[0], shape[1], shape[2]))
    prepare = preparation(recipe, run.data)
    return Member(net, variables, Prepare(prepare.transform, fixed(prepare.augment)), seen)


def images(config: Settings, run: Trained) -> tuple[str, Split]:
    """What is scored: the name of the source, and its images, of the classes that the network was trained on."""
    source = config.data if config.data is not None else run.config.test_data or run.config.data
    if config.data is None and config.size is None:
        return source, run.data.test
    # Named as the test set of another one, a set without splits is scored whole; but not the one it was trained on.
    other = None if _same(source, run.config.data) else source
    changed: dict[str, Any] = {"test_data": other}
    if config.size is not None:
        changed["size"] = config.size
    return source, dataclasses.replace(run.config, **changed).load().test


def _same(one: str, other: str) -> bool:
    def plain(source: str) -> tuple[str, Path]:
        kind, _, where = source.partition(":")
        return kind, Path(where).expanduser().resolve()

    return plain(one) == plain(other)


def measure(config: Settings, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The contents of results.json."""
    import numpy as np

    from cnnjax.train.evaluate import score
    from cnnjax.train.step import Policy

    runs = [trained(run, config.checkpoint) for run in config.run]
    found = [images(config, run) for run in runs]
    source, split = found[0]
    for run, (_, other) in zip(runs, found, strict=True):
        if run.data.classes != runs[0].data.classes:
            raise CnnjaxError(f"{run.folder} and {runs[0].folder} were trained on different classes")
        if other.image.shape != split.image.shape or not np.array_equal(other.label, split.label):
            raise CnnjaxError(f"{run.folder} sees images of {list(other.image.shape)}, {runs[0].folder} of "
                              f"{list(split.image.shape)}\nthe networks of an ensemble must see the same: give them "
                              "the same --data and --size")  # fmt: skip
    members = [member(run, config.protocol) for run in runs]
    runfolder.write_json(folder / "config.json", record)
    policy = Policy(config.precision)
    scores = score(members, split, batch=config.batch, policy=policy)
    alone = [score([one], split, batch=config.batch, policy=policy) for one in members] if len(members) > 1 else []
    return {
        "experiment": "evaluate",
        "title": f"{source}, by {', '.join(str(run.folder) for run in runs)}",
        "data": {"name": source, "count": scores.count, "classes": list(runs[0].data.classes)},
        "protocol": config.protocol or "the recipe's",
        "source": "; ".join(dict.fromkeys(one.protocol.source for one in members)),
        "members": [{"run": str(run.folder), **metrics(one)} for run, one in zip(runs, alone or [scores], strict=True)],
        "all": metrics(scores),
        "class_accuracy": [None if math.isnan(value) else float(value) for value in scores.class_accuracy],
        "confusion": scores.confusion.tolist(),
        "environment": machine.environment(),
        "config": record,
    }


def metrics(scores: Scores) -> dict[str, float]:
    """Accuracies and errors in %, and how many images they are of."""
    found = scores.metrics
    return {"top1": 100 - found["error"], "top5": 100 - found["error5"], **found}


def tables(results: dict[str, Any]) -> tuple[page.Table, page.Table]:
    """The scores of every network and of all together; those of every class."""

    def row(name: str, scores: dict[str, float]) -> list[str]:
        return [name, *(f"{scores[key]:.2f}" for key in ("top1", "top5", "error", "error5")), f"{scores['count']:,}"]

    rows = [row(one["run"], one) for one in results["members"]]
    if len(rows) > 1:
        rows.append(row("all together", results["all"]))
    headings = ["network", "top-1, %", "top-5, %", "top-1 error, %", "top-5 error, %", "images"]
    return page.Table(headings, rows), page.Table(
        ["class", "recognised, %", "images", "most often taken for"],
        [_class(i, results) for i in range(len(results["data"]["classes"]))],
    )


def _class(i: int, results: dict[str, Any]) -> list[str]:
    names, counts, accuracy = results["data"]["classes"], results["confusion"][i], results["class_accuracy"][i]
    wrong, most = max(((count, j) for j, count in enumerate(counts) if j != i), default=(0, i))
    right = "–" if accuracy is None else f"{accuracy:.2f}"
    return [names[i], right, f"{sum(counts):,}", f"{names[most]} ({wrong})" if wrong else "–"]


def write(folder: Path, results: dict[str, Any]) -> None:
    """The report."""
    from cnnjax import figures

    scores, classes = tables(results)
    drawn = figures.confusion(results["confusion"], results["data"]["classes"])
    caption = "Rows: what the images are. Columns: what they are taken for. Darker: the larger part of the row."
    sections: list[page.Section] = [
        ("Scores", [scores, f"Protocol: {results['protocol']} ({results['source']}). Every image counts once."]),
        ("Confusions", [page.Picture("confusion", caption, drawn)]),
        ("Classes", [classes]),
        ("Configuration", [page.pairs(results["config"])]),
        ("Environment", [page.pairs(results["environment"])]),
    ]
    footer = "The same numbers and the confusion matrix are in results.json."
    page.write(folder, page.Page(results["title"], sections, footer))


def show(results: dict[str, Any]) -> None:
    """The tables, on the terminal."""
    from rich.console import Console

    console = Console(highlight=False, width=150)
    console.print(f"\n{results['title']}\n")
    for table in tables(results):
        console.print(page.grid(table))
        console.print()


def evaluate(config: Settings) -> dict[str, Any]:
    """Scores what is not scored yet, writes the report, prints the tables; the contents of `results.json`."""
    if not config.run:
        raise CnnjaxError("there is nothing to evaluate\ngive the folder of a training with --run DIR")
    return kept("evaluate", config, lambda *where: measure(config, *where), write=write, show=show)


if __name__ == "__main__":
    import sys

    with command():
        evaluate(parse("evaluate", __doc__, {"": Settings()}, (), sys.argv[1:]))
