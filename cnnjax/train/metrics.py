"""metrics.jsonl: one row a line, each on the disk before the run goes on.

A row is {"step", "epoch", "train" or "test": {…}, "time": {…}}. Runs with the same seed write the same rows, "time"
apart. A killed run loses at most the row that it was writing.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cnnjax.errors import CnnjaxError

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """The complete rows of the file; none where it does not exist. A half-written last line is no row."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(
        path.read_text().split("\n")[:-1], start=1
    ):  # what follows the last newline is half a row
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise CnnjaxError(f"line {number} of {path} is no JSON: {line[:60]!r} ({error.msg})") from None
    return rows


def append(path: Path, row: Row) -> None:
    """Writes `row` through to the disk."""
    with path.open("a") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def rewind(path: Path, step: int) -> list[Row]:
    """Drops the rows after `step`, which a run resumed there will write again, and returns the others."""
    rows = [row for row in read(path) if row["step"] <= step]
    if path.exists():
        kept = path.with_suffix(".tmp")
        kept.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
        os.replace(kept, path)
    return rows


@contextlib.contextmanager
def board(folder: Path, done: int) -> Iterator[Callable[[Row], None]]:
    """What writes rows for TensorBoard, as "train/loss" and the like; those after step `done` that are there go.

    Raises `CnnjaxError` where tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise CnnjaxError("TensorBoard's files need tensorboardX: pip install 'cnnjax[tensorboard]'") from None
    writer = SummaryWriter(str(folder), purge_step=done + 1)

    def write(row: Row) -> None:
        for kind in row.keys() - {"step", "epoch"}:
            for name, value in row[kind].items():
                if value is not None:
                    writer.add_scalar(f"{kind}/{name}", value, row["step"])
        writer.flush()

    try:
        yield write
    finally:
        writer.close()
