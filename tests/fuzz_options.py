"""Random command lines of `experiments.train`: each trains for two steps or is refused in a few lines.

`python tests/fuzz_options.py 300` tries 300 of them and prints how many did which.
"""

import argparse
import collections
import contextlib
import io
import itertools
import os
import tempfile
from pathlib import Path

if __name__ == "__main__":  # in the tests conftest.py has said so
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import hypothesis
import jax
import numpy as np
from hypothesis import strategies as st

from cnnjax.errors import CnnjaxError
from cnnjax.experiment import configuration, run
from cnnjax.train import metrics
from cnnjax.train.recipes import RECIPES
from experiments.train import EXPERIMENT

STEPS = 2
LINES = 5  # of an error, at most

# What can be trained, and what is wrong; the last are what a person might give by mistake or out of malice.
RIGHT = {
    "--model": ["lenet5", "lenet_caffe", "slides_kaggle_lenet", "lecun1989_Net-3", "slides_mlp_784_500_500_10"],
    "--recipe": ["adam", *RECIPES],
    "--data": ["npz:rgb", "npz:grey"],
    "--batch": ["1", "4", "7", "8", "24", "32"],
    "--seeds": ["1", "2"],
    "--seed": ["0", "7", "4294967294"],
    "--learning-rate": ["1e-3", "0.5", "1e-30"],
    "--size": ["28", "33"],
    "--channels": ["1", "3"],
    "--metric": ["error", "error5"],
    "--precision": ["float32", "bfloat16"],
    "--parallel": ["jit", "pmap"],
    "--devices": ["1", "2", "8"],
    "--accumulate": ["1", "2", "4"],
    "--remat": ["all"],
    "--test-data": ["npz:rgb"],
}
WRONG = {
    "--model": ["nosuch", "", "autoencoder", "vgg16_transfer_head", "lenet5_1998", "johnson_sr_x8", "лёнет", "../x"],
    "--recipe": ["nosuch", "", "Adam", "vgg"],
    "--data": [
        "", ":", "npz:", "npz:nosuch", "npz:one", "npz:empty", "npz:text", "npz:floats", "npz:.", "folder:", "folder:.",
        "folder:nosuch", "tfds:", "tfds:nosuch", "mnist:nosuch", "cifar10:.", "mnist5k:x", "数字", "npz:\ud800", "\0",
    ],
    "--batch": ["0", "-1", "33", "1000000000", "1e3", "nan", "", "99999999999999999999"],
    "--steps": ["0", "-1", "two", "nan"],
    "--epochs": ["0", "-1", "nan", "inf", "1e400", "1"],
    "--seeds": ["0", "-3", "x"],
    "--seed": ["-1", "1e9", "4294967296", "99999999999999999999999"],
    "--learning-rate": ["0", "-0.1", "nan", "inf", "1e308", "1e-400", "x"],
    "--size": ["0", "-5", "1", "2", "7", "10"],
    "--channels": ["0", "2", "4"],
    "--metric": ["loss", ""],
    "--precision": ["float16", "f32"],
    "--parallel": ["xla", ""],
    "--devices": ["0", "-1", "3", "9", "1000"],
    "--accumulate": ["0", "-1", "3", "1000000"],
    "--remat": ["nosuch", "", "all ", "C9"],
    "--frozen": ["nosuch", "all", "", "\n", "C1"],
    "--start": [".", "nosuch", "/dev/null", ""],
    "--test-data": ["npz:one", "npz:grey", "nosuch", ""],
    "--nosuch": ["1"],
    "--config": ["nosuch", "rgb", "."],
}  # fmt: skip


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Options of which a few are wrong, or none, or anything at all."""
    given = {name: draw(st.sampled_from(RIGHT[name])) for name in ("--model", "--recipe", "--data")}
    for name in draw(st.sets(st.sampled_from(list(RIGHT)), max_size=4)):
        given[name] = draw(st.sampled_from(RIGHT[name]))
    mistakes = draw(st.sampled_from([0, 0, 0, 0, 1, 1, 1, 2, 3]))
    for name in draw(st.sets(st.sampled_from(list(WRONG)), min_size=mistakes, max_size=mistakes)):
        given[name] = draw(st.sampled_from(WRONG[name]))
    if draw(st.integers(1, 10)) == 7:
        given[draw(st.sampled_from(list(WRONG)))] = draw(st.text(max_size=20))
    given.setdefault("--batch", "8")
    if not {"--steps", "--epochs"} & set(given):
        given["--steps"] = str(STEPS)
    return [f"{name}={value}" for name, value in given.items()]


def write_data(folder: Path) -> None:
    """Forty images each, and files that are none."""
    random = np.random.default_rng(0)

    def images(*shape: int) -> np.ndarray:
        return random.integers(0, 256, (40, *shape), dtype=np.uint8)

    label = np.arange(40, dtype=np.int32) % 4
    with contextlib.chdir(folder):
        for name, arrays in {
            "rgb": {"image": images(12, 12, 3), "label": label},
            "grey": {"image": images(28, 28), "label": label % 2},
            "one": {"image": images(12, 12, 3), "label": 0 * label},
            "empty": {"image": images(12, 12, 3)[:0], "label": label[:0]},
            "floats": {"image": images(12, 12, 3) / 255, "label": label},
        }.items():
            with open(name, "wb") as file:
                np.savez(file, **arrays)
        Path("text").write_text("no archive")


def outcome(argv: list[str], folder: Path) -> str:
    """ "trained" or "refused"; whatever else is raised is a mistake of ours."""
    said = io.StringIO()
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(said):
            where = folder / f"run-{next(_numbers)}"
            results = run(EXPERIMENT, configuration(EXPERIMENT, [*argv, f"--workdir={where}"]))
    except CnnjaxError as error:
        lines = str(error).splitlines()
        assert 1 <= len(lines) <= LINES, (argv, str(error))
        assert all(map(str.strip, lines)), (argv, str(error))
        return "refused"
    (row,) = results["rows"]
    for path in where.glob("*/seed-*/metrics.jsonl"):
        assert metrics.read(path)[-1]["step"] == row["columns"]["steps"], argv
    assert len(row["seeds"]) == len(list(where.glob("*/seed-*/metrics.jsonl"))), argv
    return "trained"


_numbers = itertools.count()


def explore(examples: int) -> collections.Counter[str]:
    """How many of so many command lines, always the same ones, were trained and how many refused."""
    found, tried = collections.Counter[str](), set()
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder))

        @hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(command_lines())
        def each(argv: list[str]) -> None:
            hypothesis.assume(tuple(argv) not in tried)
            tried.add(tuple(argv))
            found[outcome(argv, Path(folder))] += 1
            if found.total() % 20 == 0:
                jax.clear_caches()  # hundreds of programs, each in pages of its own, are more than a process may map

        jax.config.update("jax_disable_most_optimizations", True)  # two steps take less time than their compilation
        try:
            each()
        finally:
            jax.config.update("jax_disable_most_optimizations", False)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("examples", type=int)
    told = explore(parser.parse_args().examples)
    print(", ".join(f"{count} {what}" for what, count in sorted(told.items())))
