"""What a run writes down: rows, metrics, checkpoints, how it ended, and what the time went into."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from cnnjax import machine
from cnnjax.errors import CnnjaxError
from cnnjax.train import checkpoint, fingerprint
from cnnjax.train.metrics import Row, append, board, read, rewind


class NonFinite(CnnjaxError):
    """Training has diverged; `step` counts the updates up to and with the first one that was seen not to be finite."""

    exit_code = 3

    def __init__(self, step: int, what: str):
        super().__init__(step, what)  # from which it is made again in another process
        self.step, self.what = step, what

    def __str__(self) -> str:
        return f"training diverged: {self.what} is not finite at step {self.step}\ntry a smaller learning rate"


class Journal:
    """What one run writes down: its rows, the metrics since the last one, its checkpoints, and how it ended."""

    def __init__(self, seed: int, folder: Path | None, on_log: Callable | None = None, factor: float | None = None):
        self.seed, self.folder, self.factor = seed, folder, factor
        self.rows: list[Row] = []
        self.window: list[dict[str, float]] = []
        self.saved: checkpoint.Checkpoints | None = None
        self.outlets: list[Callable[[Row], None]] = [] if on_log is None else [on_log]
        self.failed: NonFinite | None = None

    def open(self, stack: contextlib.ExitStack, settings: dict[str, Any], steps: int, *, keep_best: bool) -> int:
        """Takes possession of the folder; the step of the newest whole checkpoint there, or 0."""
        if self.folder is None:
            return 0
        best = "error" if keep_best else None
        self.saved = stack.enter_context(checkpoint.opened(self.folder / "checkpoints", best=best))
        done = checkpoint.latest(self.saved) or 0
        if done:
            facts = checkpoint.facts(self.saved, done)
            fingerprint.check(self.folder, facts["settings"], settings)
            if done > steps:
                raise CnnjaxError(
                    f"{self.folder} holds a run of {done} steps, more than the {steps} that are asked for"
                )
            self.window = facts["window"]
        return done

    def rewind(self, stack: contextlib.ExitStack, done: int, *, tensorboard: bool) -> None:
        """Drops what was written after step `done`, and writes from there."""
        if self.folder is None:
            return
        path = self.folder / "metrics.jsonl"
        if jax.process_index():  # one process writes for all
            self.rows = [row for row in read(path) if row["step"] <= done]
            return
        self.rows = rewind(path, done)
        self.outlets.append(functools.partial(append, path))
        if tensorboard:
            self.outlets.append(stack.enter_context(board(self.folder / "tensorboard", done)))

    def tell(self, row: Row) -> None:
        self.rows.append(row)
        for outlet in self.outlets:
            outlet(row)

    def diverged(self, step: int, what: str) -> None:
        self.failed = self.failed or NonFinite(step, what)


def write_down(journals: Sequence[Journal], waiting: list[dict[str, jax.Array]], done: int, several: bool) -> None:
    """Adds the metrics of the last steps to the journals as numbers, once the device has them."""
    found = jax.device_get(waiting)
    for i, journal in enumerate(journals):
        rows = [
            {name: float(values[step, i] if several else values[step]) for name, values in part.items()}
            for part in found
            for step in range(len(part["loss"]))
        ]
        for step, row in enumerate(rows, start=done - len(rows) + 1):
            for name, value in row.items():
                if not math.isfinite(value):
                    journal.diverged(step, name)
        journal.window += rows


class Clock:
    """What the time goes into, between two rows."""

    def __init__(self):
        self.compile_seconds: float | None = None
        self.restart()

    def restart(self) -> None:
        self.mark, self.waited, self.images = time.perf_counter(), 0.0, 0

    def waits(self, batches: Iterator[Any]) -> Iterator[Any]:
        """`batches`, the time until each of them counted as waiting."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    @contextlib.contextmanager
    def times(self, images: int) -> Iterator[None]:
        """Around steps on so many images. The first call compiles, or finds what was compiled, and does not count."""
        called = time.perf_counter()
        yield
        self.images += images
        if self.compile_seconds is None:
            self.compile_seconds = time.perf_counter() - called
            self.restart()

    def read(self) -> dict[str, float | None]:
        elapsed = time.perf_counter() - self.mark
        return {
            "images_per_second": self.images / elapsed if self.images else None,
            "data_wait_percent": 100 * self.waited / elapsed if self.images else None,
            "compile_seconds": self.compile_seconds,
            "memory_mb": machine.peak_memory_mb(),
        }
