"""The runner, on an experiment that trains nothing: options, folders, exit codes, and what is written."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest
from test_runfolder import held

from cnnjax import options
from cnnjax.data.splits import Dataset
from cnnjax.experiment import Experiment, main
from cnnjax.variant import Diverged, Variant
from cnnjax.verdict import Claim

DOC = """Whether b is worse than a.

Claim: It is.
Source: Nobody 1999, Table 1.
Command: python -m experiments.fake
Expected: That it holds.
"""

ERRORS = {"a": 3.0, "b": 4.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(options.Config):
    """The options of a made-up experiment."""

    width: float = 0.25
    """Width of every layer, relative to the paper's."""
    jobs: int | None = 1
    """Its lists are this process's."""


class Fake:
    """An experiment and a count of what it measured; `fail` is raised at the measurement of that number."""

    def __init__(self):
        self.measured, self.fail = [], {}

    def measure(self, name, variant: Variant, data: Dataset, seed, folder, on_log):
        if len(self.measured) in self.fail:
            raise self.fail.pop(len(self.measured))
        self.measured.append((name, seed))
        on_log({"step": 1, "test": {"error": 1.0}})
        return {"error": ERRORS[name] + 0.1 * seed, "count": 1000}

    def variants(self, config, data):
        def row(name):
            return Variant(measure=lambda *how: self.measure(name, *how), columns={"parameters": 60_965_224})

        return {name: row(name) for name in ERRORS}

    @property
    def experiment(self):
        scales = {
            "smoke": Settings(scale="smoke", seeds=1),
            "lab": Settings(),
            "paper": Settings(scale="paper", seeds=9),
        }
        return Experiment(
            name="fake",
            doc=DOC,
            scales=scales,
            variants=self.variants,
            published={"a": 18.1, "b": None},
            published_as="top-5 error (Nobody 1999, Table 1)",
            reference="a",
            claims=[Claim("b is worse", {"b": 1, "a": -1}, above=0)],
        )

    def __call__(self, *argv: object) -> int:
        """The exit code of a command line."""
        try:
            main(self.experiment, [str(argument) for argument in argv])
        except SystemExit as stop:
            return stop.code or 0
        return 0


@pytest.fixture
def fake(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Fake()


def test_all_variants_are_measured_with_all_seeds(fake, tmp_path):
    assert fake("--seeds", 2, "--seed", 5) == 0
    assert fake.measured == [("a", 5), ("a", 6), ("b", 5), ("b", 6)]
    folder = tmp_path / "runs" / "fake-lab"
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"config.json", "results.json", "report.html", "report.md", "b/seed-6/result.json"} <= written
    results = json.loads((folder / "results.json").read_text())
    assert [(row["variant"], row["mean"], row["n"]) for row in results["rows"]] == [("a", 3.55, 2), ("b", 4.55, 2)]
    assert results["verdict"]["verdict"] == "holds" and results["about"]["claim"] == "It is."


def test_a_finished_run_prints_its_table_again(fake, capsys):
    fake()
    first = capsys.readouterr().out
    assert fake() == 0
    assert capsys.readouterr().out in first and len(fake.measured) == 6
    assert re.search(r"a +60,965,224 +3\.10 ± 0\.10 +18\.1 *\n", first) and "holds" in first


def test_an_interrupted_run_goes_on_where_it_was(fake, capsys):
    fake.fail = {4: KeyboardInterrupt()}
    assert fake() == 130
    assert "goes on" in capsys.readouterr().err
    assert fake() == 0
    assert fake.measured == [(name, seed) for name in "ab" for seed in range(3)]
    assert "4 of 6 runs are done" in capsys.readouterr().out


def test_a_training_that_diverges_exits_with_3(fake, capsys):
    fake.fail = {0: Diverged("the loss is not finite at step 7")}
    assert fake() == 3
    assert "step 7" in capsys.readouterr().err


def test_only_trains_the_variants_that_are_named(fake):
    assert fake("--only", "b", "--seeds", 1) == 0
    assert fake.measured == [("b", 0)]


def test_the_smoke_scale_is_content_with_some_variants(fake, monkeypatch):
    content = dataclasses.replace(fake.experiment, smoke=("b",))
    monkeypatch.setattr(Fake, "experiment", property(lambda self: content))
    assert fake("--scale", "smoke") == 0 and fake.measured == [("b", 0)]
    assert fake("--scale", "smoke", "--only", "a", "--fresh") == 0 and fake.measured[1:] == [("a", 0)]
    assert fake("--seeds", 1) == 0 and fake.measured[2:] == [("a", 0), ("b", 0)]


def test_another_configuration_needs_another_folder(fake, capsys, tmp_path):
    fake("--seeds", 2)
    assert fake("--seeds", 1) == 2
    assert "seeds (2 there, 1 here)" in capsys.readouterr().err and len(fake.measured) == 4
    assert fake("--seeds", 1, "--fresh") == 0 and len(fake.measured) == 6
    assert (tmp_path / "runs" / "fake-lab.1" / "results.json").exists()


def test_more_seeds_go_on_from_fewer(fake, tmp_path):
    results = tmp_path / "runs" / "fake-lab" / "results.json"
    fake("--seeds", 1)
    fake.fail = {3: KeyboardInterrupt()}
    assert fake("--seeds", 3) == 130 and not results.exists()
    assert fake("--seeds", 3) == 0 and fake("--seeds", 3) == 0
    assert fake.measured == [("a", 0), ("b", 0), ("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert [row["n"] for row in json.loads(results.read_text())["rows"]] == [3, 3]


def test_a_mistyped_source_leaves_no_run_behind(fake):
    assert fake("--data", "mnist5") == 2
    assert fake() == 0


def test_a_config_file_runs_again(fake, tmp_path):
    fake("--scale", "smoke", "--seed", 4, "--width", 0.5, "--only", "b", "--only", "a")
    config = tmp_path / "runs" / "fake-smoke" / "config.json"
    fake.measured.clear()
    assert fake("--config", config, "--workdir", "again") == 0
    assert fake.measured == [("a", 4), ("b", 4)]
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == json.loads(config.read_text())
    assert fake("--config", config) == 0 and len(fake.measured) == 2  # the finished run itself


BAD = {
    "--scale big": ["big", "smoke", "lab", "paper"],
    "--sedes 3": ["--sedes", "--seeds"],
    "--seeds three": ["--seeds", "three"],
    "--seeds 0": ["--seeds", "0", "at least 1"],
    "--seed -1": ["--seed", "-1"],
    "--seed 4294967296": ["--seed", "below 4294967296"],
    "--size 0": ["--size", "at least 1"],
    "--epochs nan": ["--epochs", "nan"],
    "--learning-rate 0": ["--learning-rate", "0"],
    "--batch 0": ["--batch"],
    "--jobs 0": ["--jobs", "at least 1"],
    "--only c": ["'c'", "a, b"],
    "--channels 2": ["2", "1", "3"],
    "--data nosuch": ["nosuch", "mnist5k"],
    "--data folder:/nowhere": ["/nowhere"],
    "--test-data nosuch": ["nosuch", "mnist5k"],
    "--config /nowhere.json": ["/nowhere.json"],
    "--config list.json": ["list.json"],
    "--config other.json": ["other", "fake"],
    "--config unknown.json": ["--colour"],
    "--config wrong.json": ["--seeds", "many"],
    "--config smoke.json --scale lab": ["smoke", "lab"],
    "--workdir file": ["file", "--workdir"],
    "--workdir file/run": ["file/run", "--workdir"],
    "--metric error5": ["error5"],
    "--seeds": ["--seeds"],
    "stray": ["stray"],
}


@pytest.mark.parametrize("line", BAD)
def test_a_mistake_is_named_in_a_few_lines(fake, capsys, tmp_path, line):
    (tmp_path / "file").write_text("")
    (tmp_path / "list.json").write_text("[]")
    for name, content in {
        "other": {"experiment": "other"},
        "unknown": {"experiment": "fake", "colour": 1},
        "wrong": {"experiment": "fake", "seeds": "many"},
        "smoke": {"experiment": "fake", "scale": "smoke"},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert fake(*line.split()) == 2
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert 1 <= len(lines) <= 5 and not said.out.count("Traceback") and "Traceback" not in said.err
    assert all(word in said.err for word in BAD[line]), said.err


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_tyros_frames_are_taken_off_in_either_alphabet(encoding, tmp_path):
    script = "import sys; from cnnjax.options import *; parse('x', '', {'lab': Config()}, (), sys.argv[1:])"
    command = [sys.executable, "-c", script, "--sedes", "3"]
    said = subprocess.run(
        command, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, text=True
    ).stderr
    assert said.endswith(
        "CnnjaxError: Unrecognized options: --sedes, 3\nperhaps you meant --seeds\n"
        "python -m experiments.x --help explains every option\n"
    )


def test_a_second_run_in_a_folder_is_refused(fake, capsys, tmp_path):
    with held(tmp_path / "runs" / "fake-lab") as process:
        assert fake() == 2
        assert f"process {process.pid} on host" in capsys.readouterr().err
    assert fake() == 0


def test_each_scale_has_defaults_of_its_own(fake):
    def parsed(*argv):
        experiment = fake.experiment
        return options.parse(experiment.name, experiment.doc, experiment.scales, experiment.published, argv)

    assert [parsed(*argv).seeds for argv in ([], ["--scale", "smoke"], ["--scale=paper"])] == [3, 1, 9]
    assert parsed("--scale", "paper", "--seeds", "2").seeds == 2


def test_the_time_left_is_told_after_each_run(fake, capsys):
    fake("--seeds", 1)
    lines = [line for line in capsys.readouterr().out.splitlines() if "seed 0" in line]
    assert re.fullmatch(r"a, seed 0, test error 3\.00 %; about \d+\.\d min left", lines[0])
    assert lines[1] == "b, seed 0, test error 4.00 %"
