"""Work side by side: who does what, what comes back, and what happens when one of them fails or is stopped."""

import contextlib
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from pathlib import Path

import kill_resume
import pytest
from test_experiments import EXPERIMENTS

from cnnjax import machine, runs, workers
from cnnjax.errors import CnnjaxError
from cnnjax.options import Config
from cnnjax.progress import progress
from cnnjax.train import interrupt
from cnnjax.variant import Variant


def start():
    """Does a unit: says it, fails with it, dies of it, waits for a signal, or makes a file and waits for another."""

    def work(unit, say):
        _, what = unit
        say((os.getpid(), what))
        if isinstance(what, Exception):
            raise what
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "leave":
            os._exit(5)
        if isinstance(what, Path):
            with interrupt.postponed() as came:
                what.write_text("begun")
                while not came:
                    time.sleep(0.01)
                time.sleep(0.2)
                say("its last row")
                what.write_text("saved")
        if isinstance(what, list):
            what[0].touch()
            while not what[1].exists():
                time.sleep(0.01)

    return work


def told(units, jobs=2) -> list:
    """What two processes say of the units, in the order in which it comes."""
    said = []
    workers.side_by_side(jobs, start, units, lambda *what: said.append(what), alike=lambda unit: unit[0])
    return said


def test_every_unit_is_done_once_and_two_are_at_work_at_once(tmp_path):
    meet = [[tmp_path / "a", tmp_path / "b"], [tmp_path / "b", tmp_path / "a"]]
    units = [(kind, what) for kind, first in zip("ab", meet, strict=True) for what in (first, 1, 2)]
    said = told(units)
    assert sorted(map(str, units)) == sorted(str(unit) for unit, _ in said)
    assert all(unit[1] == what for unit, (_, what) in said)
    processes = {process for _, (process, _) in said}
    assert len(processes) == 2 and os.getpid() not in processes


def test_there_are_no_more_processes_than_units():
    assert [what for _, (_, what) in told([("a", 1)], jobs=64)] == [1]


@pytest.mark.parametrize(
    ("waiting", "last", "busy", "chosen"),
    [
        ("aab", None, "", 0),
        ("aab", None, "a", 2),  # another kind is compiled meanwhile
        ("aab", "b", "a", 2),
        ("bbc", "a", "b", 2),
        ("bb", "a", "b", 0),  # nothing else is left
    ],
)
def test_a_process_stays_with_its_kind_and_else_keeps_away_from_the_others(waiting, last, busy, chosen):
    assert workers._next(list(waiting), last, set(busy)) == chosen


@pytest.mark.parametrize("error", [CnnjaxError("no such thing\nlegal: others"), OSError(28, "No space left", "file")])
def test_what_a_person_can_mend_comes_through_and_the_others_save(error, tmp_path):
    """The one that fails comes after one of its kind that waits until the other is at work."""
    place = tmp_path / "other"
    with pytest.raises(type(error)) as caught:
        told([("a", [tmp_path / "first", place]), ("b", place), ("a", error)])
    assert str(caught.value) == str(error) and place.read_text() == "saved"
    assert getattr(caught.value, "errno", None) == getattr(error, "errno", None)


@pytest.mark.parametrize(("what", "says"), [("die", ["code -9", "--jobs 1"]), ("leave", ["code 5", "see above"])])
def test_a_process_that_is_gone_is_told(what, says):
    with pytest.raises(CnnjaxError) as caught:
        told([("a", what), ("b", 1)])
    assert all(word in str(caught.value) for word in ["process of a ended", *says])


def test_where_a_process_cannot_be_started_that_is_said_and_the_others_save(monkeypatch, tmp_path):
    place, begin, begun = tmp_path / "other", SpawnProcess.start, []

    def first_alone(process):
        if begun:
            awaited(place.exists)
            raise OSError(12, "Cannot allocate memory")
        begun.append(begin(process))

    monkeypatch.setattr(SpawnProcess, "start", first_alone)
    with pytest.raises(OSError, match="Cannot allocate"):
        told([("a", place), ("b", 1)])
    assert place.read_text() == "saved"


@contextlib.contextmanager
def at_work(*units):
    """A process of its own, in a group of its own, in which two are at work on the units."""
    program = f"from pathlib import PosixPath\nfrom test_workers import *\nwith interrupt.raised(): told({units!r})"
    here = Path(__file__).parent
    how = {"env": {**os.environ, "PYTHONPATH": f"{here}:{here.parent}"}, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", program], start_new_session=True, **how) as process:
        try:
            yield process
            process.wait(60)
            awaited(lambda: not alive(process.pid))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def alive(group: int) -> list[int]:
    """The processes of a group that are still at work."""
    found = subprocess.run(["ps", "-eo", "pgid=,stat=,pid="], capture_output=True, text=True).stdout.splitlines()
    return [int(pid) for of, stat, pid in map(str.split, found) if int(of) == group and not stat.startswith("Z")]


def awaited(*happened: Callable[[], bool]) -> None:
    begun = time.monotonic()
    while not all(true() for true in happened):
        assert time.monotonic() - begun < 60
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_to_all_processes_has_them_all_save(number, tmp_path):
    """From a terminal or a scheduler."""
    places = tmp_path / "one", tmp_path / "two"
    with at_work(("a", places[0]), ("b", places[1])) as process:
        awaited(*(place.exists for place in places))
        os.killpg(process.pid, number)
    assert [place.read_text() for place in places] == ["saved", "saved"]


def test_none_outlives_the_process_that_started_them(tmp_path):
    """Though they say nothing, so that nothing tells them."""
    places = tmp_path / "one", tmp_path / "two"
    with at_work(*(("a", [place, tmp_path / "never"]) for place in places)) as process:
        awaited(*(place.exists for place in places))
        process.kill()


def test_each_process_has_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 5}, raising=False)
    assert machine.cores() == 5
    assert machine.shares(2) == [{0, 2, 5}, {1, 3}] and machine.shares(1) == [{0, 1, 2, 3, 5}]
    assert machine.shares(7) == [{0}, {1}, {2}, {3}, {5}, {0}, {1}]
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.shares(2) == [None, None] and machine.cores() == os.cpu_count()


@pytest.mark.parametrize(
    ("options", "cores", "memory", "backend", "jobs"),
    [
        ({}, 2, 9000, "cpu", 2),
        ({}, 64, math.inf, "cpu", 4),
        ({}, 8, 9000, "cpu", 2),
        ({}, 8, 100, "cpu", 1),
        ({}, 8, 64000, "gpu", 1),
        ({"scale": "smoke"}, 8, 64000, "cpu", 1),
        ({"scale": "paper"}, 8, 64000, "cpu", 1),
        ({"scale": "smoke", "jobs": 3}, 2, 100, "cpu", 3),
        ({"jobs": 1}, 8, 64000, "gpu", 1),
    ],
)
def test_there_are_as_many_processes_as_cores_and_memory_allow(options, cores, memory, backend, jobs, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(machine, "free_memory_mb", lambda: memory)
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    assert runs._jobs(Config(**options)) == jobs


def test_no_two_processes_are_asked_for_where_one_has_the_device(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    with pytest.raises(CnnjaxError, match="--jobs is 3, and on a gpu"):
        runs._jobs(Config(jobs=3))


@pytest.mark.parametrize(
    ("available", "limits", "free"),
    [(9, ("max", "max"), 9), (9, ("max", "5"), 4), (9, ("3", "5"), 2), (1, ("3", "5"), 1), (None, ("max", "5"), 4)],
)
def test_no_more_memory_is_free_than_a_container_and_a_job_in_it_may_have(available, limits, free, tmp_path):
    """In GB; each of the two groups holds one that it cannot give back."""
    own = tmp_path / "sys/fs/cgroup/container/job"
    own.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/other\n0::/container/job\n")
    if available is not None:
        (tmp_path / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {available * 10**9 // 1024} kB\n")
    for group, limit in zip((own, own.parent), limits, strict=True):
        (group / "memory.max").write_text(limit if limit == "max" else f"{limit}000000000\n")
        (group / "memory.stat").write_text("inactive_anon 7\nfile 9000000000\nanon 1000000000\n")  # in any order
    assert machine.free_memory_mb(tmp_path) == pytest.approx(free * 1000)


def test_where_nothing_tells_how_much_memory_is_free_it_is_no_limit(tmp_path):
    assert machine.free_memory_mb(tmp_path) == math.inf and machine.free_memory_mb() > 0


def test_rows_that_share_networks_are_one_unit_a_seed():
    rows = {"a": Variant(), "b": Variant(shares=True), "c": Variant(shares=True)}
    todo = [(name, seed) for name in rows for seed in (0, 1)]
    alone = [(("a", (seed,)),) for seed in (0, 1)]
    assert runs._units(rows, todo) == [*alone, *((("b", (seed,)), ("c", (seed,))) for seed in (0, 1))]


def test_seeds_are_trained_together_on_an_accelerator(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    rows = {"a": Variant(), "b": Variant(measure=lambda *how: {})}
    todo = [(name, seed) for name in rows for seed in (0, 1)]
    assert runs._units(rows, todo) == [(("a", (0, 1)),), (("b", (0,)),), (("b", (1,)),)]


def test_the_time_of_runs_side_by_side_is_counted_once():
    rows = [{"begun": begun, "seconds": seconds} for begun, seconds in [(10.0, 4), (0, 2), (11.0, 1), (13.0, 3)]]
    assert runs.clock_seconds(rows) == 2 + 6


def test_the_bar_keeps_apart_what_two_runs_say(capsys):
    with progress(4) as tell:
        for name, error in (("a", 1.0), ("b", 2.0)):
            tell(name, 2, {"step": 1, "test": {"error": error}})
        tell("a", 2, None)
        tell("b", 2, None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a, test error 1.00 %; about 0.0 min left") and lines[1] == "b, test error 2.00 %"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiments_variants_and_settings_can_be_sent_to_a_process(name):
    one = EXPERIMENTS[name].EXPERIMENT
    assert pickle.loads(pickle.dumps((one.variants, one.scales))) == (one.variants, one.scales)


def ended(folder: Path, jobs: int) -> tuple[set[str], list]:
    """What three seeds of the noise experiment came to: hashes of the states, and the rows without their timings."""
    with kill_resume.start(folder, "--seeds", 3, "--jobs", jobs) as process:
        out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    hashes = {line for line in out.splitlines() if line.startswith("sha256")}
    return hashes, [kill_resume.rows_of(folder, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """What three runs one after the other come to."""
    return ended(tmp_path_factory.mktemp("calm") / "one", 1)


@pytest.mark.long
@pytest.mark.parametrize(("name", "code"), [("INT", 130), ("KILL", -9)])
def test_runs_side_by_side_that_are_stopped_come_to_the_same_end_as_one_after_the_other(name, code, tmp_path, calm):
    how = {"stderr": subprocess.PIPE, "start_new_session": True}
    with kill_resume.start(tmp_path / "two", "--seeds", 3, "--jobs", 2, **how) as process:
        rows = 0
        while rows < 20:
            rows += process.stdout.readline().startswith("row")
        if name == "INT":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        else:
            process.send_signal(signal.Signals[f"SIG{name}"])
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert said.splitlines() == ([] if name == "KILL" else [said.strip()]), said
    assert any((tmp_path / "two").glob("net/seed-*/checkpoints/*"))
    hashes, rows = ended(tmp_path / "two", 2)
    assert rows == calm[1] and len(calm[0]) == 3 and hashes <= calm[0]
