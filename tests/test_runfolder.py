"""A folder holds one run and has one writer."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from cnnjax.errors import CnnjaxError
from cnnjax.runfolder import opened, read_json, write_json

HOLD = """
import pathlib, sys, time
from cnnjax.runfolder import opened
with opened(pathlib.Path(sys.argv[1]), {}):
    print("held", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def held(folder):
    """A process that works in the folder."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_folder_in_use_is_refused_and_its_owner_named(tmp_path):
    with held(tmp_path / "run") as process, pytest.raises(CnnjaxError) as error, opened(tmp_path / "run", {}):
        pass
    assert f"in use by process {process.pid} on host {socket.gethostname()}" in str(error.value)


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    with held(tmp_path / "run") as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with opened(tmp_path / "run", {}):
            assert f"process {os.getpid()} " in (tmp_path / "run" / ".lock").read_text()


def test_fresh_does_not_take_a_folder_away_from_its_owner(tmp_path):
    with held(tmp_path / "run"):
        write_json(tmp_path / "run" / "config.json", {})
        with pytest.raises(CnnjaxError, match="in use"), opened(tmp_path / "run", {}, fresh=True):
            pass
    assert (tmp_path / "run" / "config.json").exists()


def test_the_lock_ends_with_the_block(tmp_path):
    with opened(tmp_path / "run", {}):
        pass
    with held(tmp_path / "run"):
        pass


def test_another_configuration_is_refused_with_what_differs(tmp_path):
    with opened(tmp_path / "run", {"seeds": 3, "data": "mnist5k"}):
        write_json(tmp_path / "run" / "config.json", {"seeds": 3, "data": "mnist5k", "old": 1})
    with pytest.raises(CnnjaxError) as error, opened(tmp_path / "run", {"seeds": 5, "data": "mnist5k"}):
        pass
    message = str(error.value)
    assert "seeds (3 there, 5 here)" in message and "old (1 there, None here)" in message
    assert "mnist5k" not in message and len(message.splitlines()) <= 5


def test_only_what_may_grow_may_be_larger(tmp_path):
    with opened(tmp_path / "run", {}):
        write_json(tmp_path / "run" / "config.json", {"seeds": 3, "epochs": 2})
    with opened(tmp_path / "run", {"seeds": 5, "epochs": 2}, growing=("seeds",)):
        pass
    for other in ({"seeds": 2, "epochs": 2}, {"seeds": 5, "epochs": 3}):
        with pytest.raises(CnnjaxError), opened(tmp_path / "run", other, growing=("seeds",)):
            pass


def test_fresh_keeps_the_old_folders_under_other_names(tmp_path):
    for seeds in range(3):
        with opened(tmp_path / "run", {"seeds": seeds}, fresh=True):
            assert not (tmp_path / "run" / "config.json").exists()
            write_json(tmp_path / "run" / "config.json", {"seeds": seeds})
    assert [read_json(tmp_path / name / "config.json")["seeds"] for name in ("run.1", "run.2", "run")] == [0, 1, 2]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, fresh):
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(CnnjaxError, match=r"letters\.txt"), opened(tmp_path, {}, fresh=fresh):
        pass
    assert (tmp_path / "letters.txt").exists() and not list(tmp_path.parent.glob(f"{tmp_path.name}.*"))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run", "/proc/run"):
        with pytest.raises(CnnjaxError, match="cannot write in"), opened(type(tmp_path)(folder), {}):
            pass


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff"])
def test_what_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CnnjaxError, match=r"config\.json"):
        read_json(tmp_path / "config.json")


def test_a_write_that_is_cut_short_leaves_what_was_there(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    write_json(tmp_path / "results.json", {"a": 1})
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "results.json", {"a": 2})
    assert read_json(tmp_path / "results.json") == {"a": 1}


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    write_json(tmp_path / "results.json", {"a": 1})
    with pytest.raises(ValueError):
        write_json(tmp_path / "results.json", {"a": float("nan")})
    assert json.loads((tmp_path / "results.json").read_text()) == {"a": 1}


def test_two_processes_that_start_at_once_do_not_both_get_the_folder(tmp_path):
    commands = [[sys.executable, "-c", HOLD, str(tmp_path / "run")]] * 3
    processes = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for c in commands]
    try:
        deadline = time.monotonic() + 60
        while sum(p.poll() is not None for p in processes) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert sorted(p.poll() is None for p in processes) == [False, False, True]
    finally:
        for process in processes:
            process.kill()
            process.wait()
