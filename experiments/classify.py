"""Says what is on a picture: the likeliest classes, by published weights, saved ones or a training of your own.

Command: python -m experiments.classify --image dog.png --weights vgg16.timm --top 5
Pictures: Files, folders (every file below them that is not hidden) and patterns such as 'photos/*.jpg', one or several
    after --image. JPEG, PNG, GIF (first frame), BMP, WebP, TIFF and PPM; turned as EXIF says, CMYK converted to RGB, 16
    bits scaled to 8, what is transparent shown white. One that cannot be read is named on stderr, the others are done,
    and the exit code is 2.
Weights: A name as in cnnjax/weights/records.py, downloaded once, or read from --file; a folder that
    cnnjax.weights.save wrote; or the folder of a training.
Again: The same command looks again, as pictures and weights may have changed. The answers are in results.json, and
    the pictures with them underneath in pictures/.
"""

from __future__ import annotations

import dataclasses
import glob
import itertools
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from cnnjax import labelled, machine, page, runfolder
from cnnjax.errors import CnnjaxError
from cnnjax.experiment import command
from cnnjax.options import Options, parse

if TYPE_CHECKING:  # so that --help answers at once
    import numpy as np
    from PIL.Image import Image

    from cnnjax.data.images import Transform
    from cnnjax.train.evaluate import Member

MOST_ON_PAGE = 100  # pictures that the page shows; all are in pictures/
SHORT = 60  # letters of a file's name on the terminal and on the page


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """The options of a classification."""

    image: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH")] = ()
    """A picture, a folder of them or a pattern; several may follow each other."""
    weights: str = "vgg16.timm"
    """Whose answer: a record such as resnet50.timm or vgg19.timm, a folder of saved weights, or one of a training."""
    file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A copy of the record's file, for a machine without a network; nothing is downloaded."""
    hub: bool = False
    """Download by huggingface_hub, into its cache."""
    accept_noncommercial: bool = False
    """Use weights whose licence forbids commercial use."""
    top: int = 5
    """How many classes are told of each picture."""
    batch: int = 16
    """Pictures at a time, at most."""

    def __post_init__(self):
        self.at_least(top=1, batch=1)
        for one in self.image:
            if one.encode(errors="ignore").decode() != one:
                raise CnnjaxError(f"the name {labelled.printable(one)} is not UTF-8\ngive the folder that it is in")

    @property
    def label(self) -> str:
        said = [*Path(self.weights).parts[-3:], *(Path(one).name for one in self.image[:1])]
        said += [f"{len(self.image) - 1}-more"] * (len(self.image) > 1) + [f"top{self.top}"] * (self.top != 5)
        return "-".join(said)


class Judge(NamedTuple):
    """A network and all that a picture needs to be shown to it, and its answer to be read."""

    member: Member
    geometry: Transform
    channels: int
    classes: Sequence[str]
    about: list[str]


def spread(argv: Sequence[str]) -> list[str]:
    """The same command line with an --image before each of the pictures that follow one."""
    found, inside = [], False
    for word in argv:
        if word.startswith("-"):
            inside = word == "--image" or word.startswith("--image=")
            found += [] if word == "--image" else [word]
        else:
            found.append(f"--image={word}" if inside else word)
    return found


def pictures(asked: Sequence[str]) -> dict[str, str | None]:
    """Every file that is meant, once and in order -> what is wrong with it, as far as its name tells."""
    found: dict[str, str | None] = {}
    for one in asked:
        path, name = os.path.expanduser(one), labelled.printable(one)
        if os.path.isdir(path):
            below = sorted(_below(path))
            found |= dict.fromkeys(below) if below else {path: f"there is no picture in the folder {name}"}
        elif os.path.exists(path):
            found[path] = None if os.path.isfile(path) else f"{name} is neither a file nor a folder"
        elif glob.has_magic(path):
            matching = sorted(filter(os.path.isfile, glob.glob(path, recursive=True)))
            found |= dict.fromkeys(matching) if matching else {path: f"no file matches {name}"}
        else:
            found[path] = f"there is no picture {name}"
    return found


def _below(folder: str) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(place, name) for name in files if not name.startswith("."))


def judge(config: Settings) -> Judge:
    """The network that `config.weights` names."""
    from cnnjax.train.evaluate import Member
    from cnnjax.train.feed import Prepare
    from cnnjax.weights import classes, records

    folder = Path(config.weights).expanduser()
    if folder.is_dir() and config.file is not None:
        raise CnnjaxError(f"--weights {config.weights} is a folder, which holds its own file\nleave out --file")
    if folder.is_dir() and not (folder / "model.safetensors").exists():
        return _of_training(folder)
    name = str(folder) if folder.is_dir() else config.weights
    net, variables, transform, known = records.load(
        name, file=config.file, hub=config.hub, accept_noncommercial=config.accept_noncommercial
    )
    member, about = Member(net, variables, Prepare(transform)), records.described(known).splitlines()
    if not folder.is_dir():
        return Judge(member, transform, 3, classes.names(known), about)
    facts = runfolder.read_json(folder / "config.json")
    height, width, channels = facts["cnnjax"]["image_shape"]
    geometry = transform if transform.size else dataclasses.replace(transform, size=(height, width))
    return Judge(member, geometry, channels, facts["cnnjax"].get("names", ()), about)


def _of_training(folder: Path) -> Judge:
    from cnnjax.data.images import Transform
    from experiments import evaluate

    run = evaluate.trained(folder, "last")
    height, width, channels = run.data.train.image.shape[1:]
    about = [f"{run.folder}: {run.variant.columns.get('recipe', run.folder.parent.name)}, on {run.data.name}"]
    print(*about, sep="\n")
    return Judge(evaluate.member(run, None), Transform((height, width)), channels, run.data.classes, about)


class Seen(NamedTuple):
    """A picture that could be read."""

    file: str
    picture: Image  # as it is drawn
    image: np.ndarray  # as the network sees it


def read(file: str, by: Judge) -> Seen:
    """Raises `CnnjaxError` for what is no picture."""
    from cnnjax.data.images import conform, decode, to_channels

    name = labelled.printable(file)
    with warnings.catch_warnings(action="ignore"):  # Pillow's, of damage that does not cost the picture
        whole = decode(file, name=name)
    try:
        return Seen(file, labelled.fitted(whole), conform(by.geometry, to_channels(whole, by.channels)))
    except CnnjaxError as error:
        raise CnnjaxError(f"{name}: {error}") from error


def answers(by: Judge, images: Sequence[np.ndarray], *, batch: int, top: int) -> list[list[dict[str, Any]]]:
    """The likeliest classes of each of at most `batch` images, which are made so many, that one program does for all.

    Raises `CnnjaxError` where what the network says is no number.
    """
    import numpy as np

    from cnnjax.train.evaluate import predict

    padded = np.stack([*images, *[images[0]] * (batch - len(images))])
    log_p = np.asarray(predict([by.member], padded), np.float64)[: len(images)]  # type: ignore[arg-type]
    if np.isnan(log_p).any():
        raise CnnjaxError("what the network says is not a number: its weights are too large, or not those of a network")
    named = by.classes if len(by.classes) == log_p.shape[-1] else [f"class {n}" for n in range(log_p.shape[-1])]
    likeliest = np.argsort(-log_p, axis=1, kind="stable")[:, :top]
    return [
        [{"class": int(n), "name": named[n], "probability": float(np.exp(row[n]))} for n in best]
        for row, best in zip(log_p, likeliest, strict=True)
    ]


def measure(config: Settings, files: dict[str, str | None], folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The contents of results.json; the pictures with their classes are drawn into the folder."""
    by, batch = judge(config), min(config.batch, sum(wrong is None for wrong in files.values()))
    (folder / "results.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "pictures", ignore_errors=True)
    (folder / "pictures").mkdir()
    runfolder.write_json(folder / "config.json", record)
    done: dict[str, dict[str, Any]] = {}

    def readable() -> Iterator[Seen]:
        for file, wrong in files.items():
            try:
                if wrong is not None:
                    raise CnnjaxError(wrong)
                yield read(file, by)
            except CnnjaxError as error:
                said = ": ".join(str(error).splitlines()[:2])
                print(f"error: {said}", file=sys.stderr)
                done[file] = {"file": labelled.printable(file), "error": said}

    number, seen = itertools.count(1), readable()
    while group := list(itertools.islice(seen, batch)):
        found = answers(by, [one.image for one in group], batch=batch, top=config.top)
        for one, classes in zip(group, found, strict=True):
            to = f"pictures/{next(number):03d}-{Path(labelled.printable(one.file)).stem[:SHORT]}.png"
            labelled.draw(one.picture, [(c["name"], c["probability"]) for c in classes]).save(folder / to)
            done[one.file] = {"file": labelled.printable(one.file), "classes": classes, "drawn": to}
    return {
        "experiment": "classify",
        "title": f"{len(files)} picture{'s' * (len(files) > 1)}, by {config.weights}",
        "weights": by.about,
        "pictures": [done[file] for file in files],
        "environment": machine.environment(),
        "config": record,
    }


def tables(results: dict[str, Any]) -> tuple[page.Table, page.Table]:
    """What every picture shows; which could not be read."""
    classes, wrong = [], []
    for one in results["pictures"]:
        file = one["file"] if len(one["file"]) <= SHORT else "…" + one["file"][1 - SHORT :]
        if "error" in one:
            wrong.append([file, one["error"]])
        for i, found in enumerate(one.get("classes", ())):
            classes.append(["" if i else file, found["name"], f"{100 * found['probability']:.2f}"])
    return page.Table(["picture", "class", "probability, %"], classes), page.Table(["picture", "what is wrong"], wrong)


def write(folder: Path, results: dict[str, Any]) -> None:
    """The report."""
    classes, wrong = tables(results)
    done = [one for one in results["pictures"] if "drawn" in one]
    shown = [page.Picture(f"pictures/{i:03d}", one["file"], labelled.as_svg(folder / one["drawn"]))
             for i, one in enumerate(done[:MOST_ON_PAGE], 1)]  # fmt: skip
    rest = [f"All {len(done)} are in pictures/."] if len(done) > MOST_ON_PAGE else []
    sections: list[page.Section] = [
        ("Weights", [*results["weights"]]),
        *([("Not classified", [wrong])] if wrong.rows else []),
        *([("Pictures", [*shown, *rest]), ("Classes", [classes])] if done else []),
        ("Configuration", [page.pairs(results["config"])]),
        ("Environment", [page.pairs(results["environment"])]),
    ]
    page.write(folder, page.Page(results["title"], sections, "The same answers are in results.json."))


def show(results: dict[str, Any]) -> None:
    """The table, on the terminal."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, width=150)
    console.print(f"\n{results['title']}\n")
    console.print(page.grid(tables(results)[0]))


def classify(config: Settings) -> dict[str, Any]:
    """Classifies and draws every picture, writes the report, prints the table; the contents of `results.json`.

    Raises `CnnjaxError` in the end where a picture could not be classified; the others are.
    """
    files = pictures(config.image)
    if not files:
        raise CnnjaxError("there is nothing to classify\ngive pictures with --image PATH")
    if all(files.values()):
        raise CnnjaxError("\n".join(list(filter(None, files.values()))[:5]))
    folder, record = config.folder("classify"), {"experiment": "classify", **config.record()}
    with runfolder.opened(folder, record, fresh=config.fresh):
        results = measure(config, files, folder, record)
        write(folder, results)
        runfolder.write_json(folder / "results.json", results)
        show(results)
        print(f"report: {folder / 'report.html'}")
    if wrong := sum("error" in one for one in results["pictures"]):
        raise CnnjaxError(f"{wrong} of {len(files)} pictures could not be classified; they are named above")
    return results


if __name__ == "__main__":
    with command():
        classify(parse("classify", __doc__ or "", {"": Settings()}, (), spread(sys.argv[1:])))
