"""The options of a command: given once, typed, explained by their docstrings, kept in `config.json`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from cnnjax import runfolder
from cnnjax.errors import CnnjaxError

if TYPE_CHECKING:  # NumPy and its company load when the images do, so that --help answers at once
    from cnnjax.data.splits import Dataset


class Checked:
    """Options that say what is wrong with them."""

    def at_least(self, **least: int) -> None:
        """Raises `CnnjaxError` for an option, given by its name, that is smaller than this; None is not."""
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise CnnjaxError(f"{_option(name)} is {value}; it must be at least {smallest}")

    def positive(self, *names: str) -> None:
        """Raises `CnnjaxError` for an option that is not a finite number above 0; None is fine."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise CnnjaxError(f"{_option(name)} is {value}; it must be a number above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """What every command can be asked that works in a folder of its own."""

    workdir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the run, by default one in runs/ with a name of its own. The same command again goes on there; what is
    finished is not done again."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Take all options from this config.json of an earlier run; options that are given beside it win."""
    fresh: bool = False
    """Start over; the folder that is there is kept under another name."""

    @property
    def label(self) -> str:
        """What tells the folder of this run from those of others of its kind."""
        return ""

    def folder(self, name: str) -> Path:
        """Where the run of the command of this name is kept."""
        label = re.sub(r"[^\w.+]+", "-", self.label).strip("-")[:100]
        return self.workdir or Path("runs") / (f"{name}-{label}" if label else name)

    def record(self) -> dict[str, Any]:
        """What is asked for, but not where and how: the fields that `config.json` keeps."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _NOT_RECORDED}
        return {
            name: list(map(_plain, value)) if isinstance(value, tuple) else _plain(value)
            for name, value in fields.items()
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(Options):
    """Where images come from, and what they are brought to."""

    data: str = "mnist5k"
    """Where the images come from: mnist5k, mnist, fashion_mnist, cifar10, cifar100 (or NAME:PATH), tfds:NAME,
    folder:PATH, npz:PATH."""
    test_data: str | None = None
    """Another source, whose test images are scored instead."""
    size: int | None = None
    """Height and width, in pixels, to which the images are brought; None leaves them as they are."""
    channels: Literal[1, 3] | None = None
    """1 turns the images grey, 3 makes them RGB; None leaves them as they are."""
    seed: int = 0
    """The first seed; the others are the numbers that follow."""

    def __post_init__(self):
        self.at_least(seed=0, size=1)
        if self.seed >= SEEDS:
            raise CnnjaxError(f"--seed is {self.seed}; it must be below {SEEDS}, from where on JAX's keys repeat")

    def load(self) -> Dataset:
        """The images as they are asked for."""
        from cnnjax.data.sources import load

        size = None if self.size is None else (self.size, self.size)
        return load(self.data, size=size, channels=self.channels, test=self.test_data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(Source):
    """What every training can be asked whose numbers stand in a table."""

    seeds: int = 3
    """How many times each variant is trained, each time from another seed."""
    metric: Literal["error", "error5"] = "error"
    """What is compared: the top-1 ("error") or the top-5 ("error5") test error."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least(seeds=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Training):
    """What every experiment can be asked; an experiment may derive its own from it, with further fields."""

    scale: Literal["smoke", "lab", "paper"] = "lab"
    """How large: "smoke" shows in seconds that it runs, "lab" takes minutes on a laptop, "paper" is the published
    recipe, for a GPU. Each scale has defaults of its own for the other options."""
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="VARIANT")] = ()
    """Train this variant and no other; may be given several times."""
    epochs: float = 10.0
    """How many times each training image is seen."""
    batch: int = 64
    """Images per step."""
    learning_rate: float = 1e-3
    """The learning rate that the schedule starts from."""
    bar: float = 5.0
    """Test error in % that the reference network must reach; above it the verdict is "underpowered"."""
    jobs: int | None = None
    """Trainings at once, each in a process with its share of the cores; None: at the lab scale one a core and for each
    4 GB of memory that is free, at most 4; otherwise, and on an accelerator, one."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least(batch=1, jobs=1)
        self.positive("epochs", "learning_rate", "bar")

    @property
    def label(self) -> str:
        return self.scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class Narrow(Config):
    """What an experiment can be asked besides whose networks need not be as wide as the papers'."""

    width: float = 1.0
    """Width of every layer but the outputs, relative to the paper's."""

    def __post_init__(self):
        super().__post_init__()
        self.positive("width")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


SEEDS = 2**32
_NOT_RECORDED = ("workdir", "config", "fresh", "jobs")
C = TypeVar("C", bound=Options)


def parse(name: str, doc: str, scales: Mapping[str, C], variants: Iterable[str], argv: Sequence[str]) -> C:
    """The settings of the scale that `argv` names, changed by `--config` and then by the other options.

    name, doc, scales, variants: the experiment's; a command without scales has one entry. Prints the help and exits for
    `--help`.
    """
    given = _peek(argv)
    recorded = [] if given["config"] is None else _from_file(name, Path(given["config"]), given["scale"])
    scale = _peek([*recorded, *argv])["scale"] or "lab"
    default = scales.get(scale, next(iter(scales.values())))  # tyro refuses a scale that there is not
    command = f"python -m experiments.{name}"
    said, said_first = io.StringIO(), (doc.strip(), ", ".join(variants))
    try:
        with contextlib.redirect_stderr(said):
            config = tyro.cli(
                type(default),
                prog=command,
                description=re.sub(r"\n(?=[A-Z]\w+: )", "\n\n", "\nVariants: ".join(filter(None, said_first))),
                args=[*recorded, *argv],
                default=default,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise CnnjaxError(f"{_unboxed(said.getvalue())}\n{command} --help explains every option") from None
    return config


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _peek(argv: Sequence[str]) -> dict[str, str | None]:
    """The two options that decide on the defaults of all others; mistakes are left for tyro to name."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--scale", "--config"):
        parser.add_argument(option, nargs="?")
    return vars(parser.parse_known_args(argv)[0])


def _from_file(experiment: str, path: Path, scale: str | None) -> list[str]:
    """A `config.json` as the options that it stands for, so that it is checked as they are."""
    fields = runfolder.read_json(path)
    name = fields.pop("experiment", None)
    if name != experiment:
        raise CnnjaxError(f"{path} is the configuration of experiment {name!r}, not of {experiment!r}")
    if scale not in (None, fields.get("scale")):
        raise CnnjaxError(
            f"{path} is of scale {fields.get('scale')!r}, and --scale says {scale!r}; leave one of them out"
        )
    return arguments(fields)


def arguments(fields: Mapping[str, Any]) -> list[str]:
    """The command line that says the same as `fields`. A flag is there or not."""
    values = {_option(name): value if isinstance(value, list) else [value] for name, value in fields.items()}
    given = [(option, value) for option in values for value in values[option] if value is not False]
    return [option if value is True else f"{option}={value}" for option, value in given]


def _unboxed(said: str) -> str:
    """The first thing that tyro says, and the options that it suggests, without title and frame ."""
    inside = re.sub("[│╭╮╰╯]", "", said.partition("\n")[2])
    message, *more = filter(str.strip, re.split(r"[─-]{5,}", inside))
    likely = re.findall(r"^\s*(--[\w-]+)", more[0], re.MULTILINE) if "Perhaps you meant" in more[0] else []
    return " ".join(message.split()) + (f"\nperhaps you meant {' or '.join(dict.fromkeys(likely))}" if likely else "")
