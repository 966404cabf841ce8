"""Damages the newest checkpoint of a finished run in every way, and lets the same command go on.

`python tests/corrupt.py --flips 50` flips so many single bits, one at a time, in any of the checkpoint's files, and
halves, empties, zeroes and deletes each of them. Each time the command has to say in one line what is wrong, to go on
from the checkpoint before, to exit with 0, and to come to the same bits and the same metrics.jsonl as before.
"""

import argparse
import collections
import contextlib
import io
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from kill_resume import rows_of
from noise_experiment import EXPERIMENT, write_data

from cnnjax.experiment import main


def flip(path: Path, where: int) -> None:
    """Turns over one bit."""
    content = bytearray(path.read_bytes())
    content[where // 8] ^= 1 << where % 8
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "deleted": lambda path: path.unlink(),
}


def damages(folder: Path, flips: int) -> Iterator[tuple[str, Callable[[Path], object], Path]]:
    """(what is done, how, to which file of the checkpoint in `folder`); an empty file can only be deleted."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    full = [path for path in files if (folder / path).stat().st_size]
    for _ in range(flips):
        path = random.choice(full)
        bit = random.randrange(8 * (folder / path).stat().st_size)
        yield "a bit flipped", lambda path, bit=bit: flip(path, bit), path
    for what, how in DAMAGE.items():
        for path in files if what == "deleted" else full:
            yield what, how, path


def command(folder: Path, source: str) -> tuple[int, str, list[str]]:
    """The exit code of the noise experiment's command line, its hash, and the lines that it printed on stderr."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(EXPERIMENT, ["--data", source, "--workdir", str(folder)])
        except SystemExit as stop:
            code = stop.code
    told = [line for line in out.getvalue().splitlines() if line.startswith("sha256")]
    return code, "".join(told), err.getvalue().splitlines()


def compare(flips: int, seed: int = 0) -> dict[str, tuple[int, int]]:
    """What was done -> (how often all went as it should, how often it was done)."""
    random.seed(seed)
    good, done = collections.Counter(), collections.Counter()
    with tempfile.TemporaryDirectory() as temporary:
        whole, folder = Path(temporary) / "whole", Path(temporary) / "damaged"
        source = write_data(Path(temporary) / "noise.npz")
        _, digest, _ = command(whole, source)
        rows = rows_of(whole)
        newest = Path("net", "seed-0", "checkpoints", "240")
        for what, how, path in damages(whole / newest, flips):
            shutil.copytree(whole, folder)
            for result in (*folder.rglob("result.json"), *folder.rglob("results.json")):
                result.unlink()
            how(folder / newest / path)
            code, came, lines = command(folder, source)
            told = (
                len(lines) == 1
                and str(folder / newest) in lines[0]
                and (folder / newest).with_suffix(".corrupt").exists()
            )
            right = code == 0 and came == digest and rows_of(folder) == rows and told
            good[what] += right
            done[what] += 1
            if not right:
                print(what, path, code, came == digest, *lines, sep="\n  ")
            shutil.rmtree(folder)
    return {what: (good[what], done[what]) for what in done}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=50)
    counts = compare(parser.parse_args().flips)
    for what, (good, done) in counts.items():
        print(f"{what}: {good}/{done} detected and passed over, the same end, exit 0")
    sys.exit(any(good < done for good, done in counts.values()))
