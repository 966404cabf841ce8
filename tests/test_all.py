"""The run over all experiments: what is run, what is not run again, what the page says, what is published."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cnnjax import runfolder
from cnnjax.errors import CnnjaxError
from experiments import all as everything
from experiments.all import Settings, claiming, run_all

ROOT = Path(__file__).parent.parent


def results(name: str, verdict: str = "holds", data: str = "mnist5k") -> dict:
    """What an experiment leaves behind."""
    claim = {"claim": "b is worse", "formula": "b − a > 0", "verdict": verdict, "mean": 1.0, "low": 0.5, "high": 1.5,
             "n": 2, "published": None}  # fmt: skip
    seeds = {"0": {"error": 2.0, "depth": 3.0, "secret": [1, 2]}, "1": {"error": 4.0, "depth": 5.0}}
    row = {"variant": "a", "columns": {"layers": 3}, "mean": 3.0, "sd": 1.41, "n": 2, "published": 1.5, "seeds": seeds}
    return {
        "experiment": name,
        "about": {"title": "A title.", "claim": "A claim.", "source": "A paper.", "departures": "None."},
        "metric": "error",
        "published_as": "an error",
        "measured": {"depth": "depth, m"},
        "rows": [row],
        "verdict": {"verdict": verdict, "reason": "of 1 claims", "claims": [claim]},
        "data": {"name": data, "train": 4, "test": 2, "classes": 2},
        "cost": {"seconds": 90.0, "run_seconds": 150.0},
        "environment": {"processor": "a chip", "cores": 2, "devices": "1 × cpu", "jax": "0"},
        "config": {"scale": "lab"},
        "finished": "2026-01-01",
    }


@pytest.fixture
def runs(monkeypatch):
    """The experiments that were run, each of which finishes but for "pooling"."""
    done = []

    def run_one(name: str, config: Settings, folder: Path) -> int:
        done.append(name)
        (folder / f"{name}.log").write_text("it said something\n")
        if name == "pooling":
            return 3
        (folder / name).mkdir(exist_ok=True)
        runfolder.write_json(folder / name / "results.json", results(name))
        return 0

    monkeypatch.setattr(everything, "run_one", run_one)
    return done


def test_every_experiment_with_a_claim_is_run_and_a_failure_does_not_end_the_rest(runs, tmp_path, capsys):
    failed = run_all(Settings(scale="smoke", workdir=tmp_path / "all"))
    assert failed == ["pooling"] and runs == claiming() and {"alexnet_layers", "lenet_mnist", "locality"} < set(runs)
    assert not {"all", "train", "evaluate"} & set(runs)
    said = capsys.readouterr().out
    assert "alexnet_layers: holds" in said and "pooling: failed with exit code 3" in said
    page = (tmp_path / "all" / "report.html").read_text()
    assert '<a href="alexnet_layers/report.html">alexnet_layers</a>' in page and "holds" in page
    assert '<a href="pooling.log">pooling</a>' in page and "not finished" in page
    assert "[alexnet_layers](alexnet_layers/report.html)" in (tmp_path / "all" / "report.md").read_text()


def test_finished_experiments_are_not_run_again_but_failed_ones_are(runs, tmp_path):
    config = Settings(scale="smoke", workdir=tmp_path / "all")
    run_all(config)
    runs.clear()
    run_all(config)
    assert runs == ["pooling"]
    runs.clear()
    run_all(Settings(scale="smoke", workdir=tmp_path / "all", fresh=True))
    assert runs == claiming() and (tmp_path / "all.1" / "lenet_mnist" / "results.json").exists()


def test_only_those_that_are_named_are_run(runs, tmp_path):
    run_all(Settings(scale="smoke", only=("lenet_mnist",), workdir=tmp_path / "all"))
    assert runs == ["lenet_mnist"]
    assert "not run" in (tmp_path / "all" / "report.html").read_text()


def test_another_scale_is_refused_in_the_same_folder(runs, tmp_path):
    run_all(Settings(scale="smoke", workdir=tmp_path / "all"))
    with pytest.raises(CnnjaxError, match="another configuration"):
        run_all(Settings(scale="lab", workdir=tmp_path / "all"))


def test_what_is_published_has_every_number_and_no_path(runs, tmp_path):
    docs = tmp_path / "docs"
    run_all(Settings(scale="lab", only=("lenet_mnist", "alexnet_layers"), workdir=tmp_path / "all", publish=docs))
    everything.publish(results("locality", "does not hold at this scale", "npz:/secret/signs.npz"), docs)
    assert sorted(path.stem for path in (docs / "results").iterdir()) == ["alexnet_layers", "lenet_mnist", "locality"]
    kept = json.loads((docs / "results" / "locality.json").read_text())
    assert kept["rows"][0]["seeds"] == {"0": {"error": 2.0, "depth": 3.0}, "1": {"error": 4.0, "depth": 5.0}}
    assert kept["data"]["name"] == "npz:signs.npz" and kept["seconds"] == 90 and kept["machine"]["cores"] == 2
    page = (docs / "results.md").read_text()
    assert "| holds | 1 | 0 | 0 | lab | mnist5k | 2 | 1.5 |" in page
    assert "| does not hold at this scale | 0 | 1 | 0 | lab | npz:signs.npz | 2 | 1.5 |" in page
    assert "npz:signs.npz, 1.5 minutes (its runs took 2.5, side by side) on 1 × cpu, a chip, 2 cores" in page
    assert "secret" not in page and str(tmp_path) not in page
    assert "| a | 3 | 3.00 ± 1.41 | 1.5 | 4 ± 1 |" in page
    _, _, wrong = page.partition("## Claims that did not hold")
    assert "[locality](#locality) | b is worse" in wrong.partition("## alexnet_layers")[0]
    assert "[lenet_mnist](#lenet_mnist) | b is worse" not in wrong


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("mnist5k", "mnist5k"),
        ("npz:/a/b.npz", "npz:b.npz"),
        ("folder:/a/b", "folder:b"),
        ("fashion_mnist:/a/b", "fashion_mnist"),
        ("tfds:imagenet2012", "tfds:imagenet2012"),
    ],
)
def test_sources_are_published_without_their_place(name, published):
    assert everything.kept(results("locality", data=name))["data"]["name"] == published


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--only", "nosuch"], "unknown experiment 'nosuch'"),
        (["--data", "nosuch=mnist5k"], "unknown experiment 'nosuch'"),
        (["--scale", "smoke", "--publish", "docs"], "--publish"),
        (["--resume", "--fresh"], "--resume"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, says):
    done = subprocess.run([sys.executable, "-m", "experiments.all", *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) <= 5


@pytest.mark.long
def test_an_experiment_runs_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "experiments.all", "--scale", "smoke", "--only", "lenet_mnist"]
    done = subprocess.run([*command, "--workdir", str(tmp_path / "all")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "all" / "lenet_mnist" / "report.html").exists()
    assert "lenet5-dense" in (tmp_path / "all" / "lenet_mnist.log").read_text()
