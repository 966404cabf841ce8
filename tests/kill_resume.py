"""Ends a training run with a signal, again and again at random moments, and compares what comes of it in the end.

`python tests/kill_resume.py --count 20` kills it with SIGKILL, every other time in the midst of a save; `--signal TERM`
and `--signal INT` ask it to stop, and it has to exit with 143 or 130. Printed is how often it was ended, and whether
the resumed run came to the same SHA-256 over all leaves of its state and to the same metrics.jsonl, timings aside, as
a run that nobody disturbed.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from noise_experiment import LOG, write_data

STEPS = 240
HERE = Path(__file__).resolve().parent
CODES = {"KILL": -9, "TERM": 143, "INT": 130}


def start(folder: Path, *options: object, **how) -> subprocess.Popen:
    """The command line of the noise experiment in `folder`, beside which its images lie."""
    images = folder.parent / "noise.npz"
    source = f"npz:{images}" if images.exists() else write_data(images)
    command = [sys.executable, HERE / "noise_experiment.py", "--data", source, "--workdir", folder, *options]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HERE.parent)}
    return subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True, env=environment, **how)


def rows_of(folder: Path, seed: int = 0) -> list[dict]:
    """What is in the metrics.jsonl of the run, timings aside."""
    lines = (folder / "net" / f"seed-{seed}" / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "time"} for line in lines]


def finish(folder: Path) -> tuple[str, list[dict]]:
    """Lets the run in `folder` end; its hash, and its rows without their timings."""
    out, _ = start(folder).communicate(timeout=300)
    return next(line for line in out.splitlines() if line.startswith("sha256")), rows_of(folder)


def partial(folder: Path) -> bool:
    """Whether a save is under way, or was when the run was killed."""
    return any((folder / "net" / "seed-0" / "checkpoints").glob("*.partial*"))


def end(folder: Path, name: str, *, rows: int, saving: bool) -> bool:
    """Starts the run, ends it after so many rows and, if asked, in a save; whether it left with the right code."""
    with start(folder, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        while rows and (line := process.stdout.readline()):
            rows -= line.startswith("row")
        while saving and process.poll() is None and not partial(folder):
            time.sleep(0.0005)
        time.sleep(0 if saving else random.random() * 0.03)
        process.send_signal(signal.Signals[f"SIG{name}"])
        process.communicate(timeout=60)
        return process.returncode == CODES[name]


def compare(count: int, name: str = "KILL", seed: int = 0) -> tuple[int, int, bool]:
    """(how often the signal ended a running run, of them in an unfinished save, whether the end was the same)."""
    random.seed(seed)
    with tempfile.TemporaryDirectory() as temporary:
        calm, disturbed = Path(temporary) / "calm", Path(temporary) / "disturbed"
        hits = torn = 0
        for number in range(count):
            most = STEPS // LOG // count
            rows = random.randint(max(1, most // 2), most)
            hits += end(disturbed, name, rows=rows, saving=name == "KILL" and number % 2 == 1)
            torn += partial(disturbed)
        return hits, torn, finish(disturbed) == finish(calm)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--signal", choices=list(CODES), default="KILL")
    arguments = parser.parse_args()
    hits, torn, same = compare(arguments.count, arguments.signal)
    ended = f"{hits}/{arguments.count} times ended by SIG{arguments.signal}, {torn} of them in an unfinished save"
    print(f"{ended}: the end is {'the same' if same else 'ANOTHER ONE'}")
    sys.exit(not same or hits < arguments.count)
