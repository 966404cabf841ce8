"""The race: peers compute what we compute, and what is measured arrives in the table."""

import dataclasses
import importlib
import json

import numpy as np
import pytest
from peers import library

from cnnjax.errors import CnnjaxError
from experiments import benchmark
from experiments.benchmark import NETWORKS, Options

TINY = Options(
    only=("lenet5",), modes=("infer",), batch=2, rounds=2, seconds=0.01, clock="cpu", peers=("control", "flax")
)


def test_a_tiny_race_writes_table_plot_and_results(tmp_path, capsys):
    benchmark.main(dataclasses.replace(TINY, workdir=tmp_path / "run"))
    (row,) = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert list(row["peers"]) == ["ours", "control", "flax"] and row["batch"] == 2
    assert row["peers"]["flax"]["ratio"] == 1  # the fastest that is not ours, because the only one
    for one in row["peers"].values():
        assert len(one["times"]) == 2 and 0 < one["minimum"] <= one["median"]
        assert 0 < one["of_peak"] < 1.5 and one["cold"] > 0 and one["warm"] > 0 and one["memory_mb"] > 50
        assert one["ratio"] == pytest.approx(row["peers"]["flax"]["median"] / one["median"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<svg" in page and "geometric mean" in page and "Processor time on one core" in page
    assert "geometric mean" in capsys.readouterr().out
    benchmark.main(dataclasses.replace(TINY, workdir=tmp_path / "run"))  # finished: the table again, nothing is timed
    assert json.loads((tmp_path / "run" / "results.json").read_text())["rows"] == [row]


@pytest.mark.parametrize("change, message", [
    ({"parameters": 4}, "3 and 4 parameters"),
    ({"logits": np.array([[1.0, 2.1]])}, "same logits"),
    ({"logits": np.array([[1.0, np.nan]])}, "same logits"),
    ({"losses": (1.0, 0.5)}, "first losses"),
])  # fmt: skip
def test_peers_that_compute_something_else_are_refused(change, message):
    task, _ = benchmark.make_task("lenet5", "train", TINY)
    ours = {"parameters": 3, "logits": np.array([[1.0, 2.0]]), "losses": (1.0, 0.9)}
    benchmark._agree({"ours": ours, "flax": dict(ours)}, task)
    with pytest.raises(CnnjaxError, match=message):
        benchmark._agree({"ours": ours, "flax": {**ours, **change}}, task)


@pytest.mark.parametrize("options, message", [
    ({"only": ("lenet6",)}, "unknown network of the benchmark 'lenet6'"),
    ({"peers": ("tensorflow",)}, "unknown peer 'tensorflow'"),
    ({"rounds": 0}, "--rounds is 0; it must be at least 1"),
    ({"seconds": float("nan")}, "--seconds is nan; it must be a number above 0"),
])  # fmt: skip
def test_mistakes_are_refused(options, message, tmp_path):
    with pytest.raises(CnnjaxError, match=message):
        benchmark.main(dataclasses.replace(TINY, workdir=tmp_path, **options))


def test_a_peer_for_which_there_is_no_memory_is_left_out(monkeypatch):
    free = iter([1000.0, 600.0, 510.0])  # before ours, after it, and before the control, which would take 400 too
    monkeypatch.setattr(benchmark.machine, "free_memory_mb", lambda: next(free))
    row = benchmark.measure("lenet5", "infer", ("ours", "control"), TINY)
    assert list(row["peers"]) == ["ours"]
    both = {**row, "peers": {**row["peers"], "control": row["peers"]["ours"]}}
    assert [line[2] for line in benchmark.overview([row, both]).rows] == ["–", "1.00", "1.00"]


def test_peers_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    peers, absent = benchmark.installed(Options())
    assert peers == ("ours", "control", "reference", "flax")
    assert absent == ["keras", "torch", "torch-channels-last", "torch-compile"]
    with pytest.raises(CnnjaxError, match=r"not installed: torch\n.*peers"):
        benchmark.installed(Options(peers=("torch",)))


@pytest.mark.long
@pytest.mark.parametrize(
    "name, mode",
    [*((name, "infer") for name in NETWORKS), *((name, "train") for name in ("lenet5", "alexnet", "resnet50"))],
)
@pytest.mark.parametrize("peer", ["flax", "keras", "torch", "torch-channels-last"])
def test_a_peer_computes_what_we_compute(peer, mode, name):
    """Narrow members, in this process: the same parameters, logits and, without dropout, losses."""
    module, variant = benchmark.PEERS[peer]
    if module != "in_jax":
        library(module.removeprefix("in_"))
    batch = 8 if mode == "train" else 2  # by two images' statistics a step magnifies any peer's rounding
    task, _ = benchmark.make_task(name, mode, Options(batch=batch, narrow=16))
    ours, theirs = (
        importlib.import_module(f"experiments.peers.{where}").build(task._replace(variant=how))._asdict()
        for where, how in (("in_jax", ""), (module, variant))
    )
    benchmark._agree({"ours": ours, peer: theirs}, task)
