"""How far an experiment is, as a person sees it while it runs."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def progress(steps: int) -> Iterator[Callable[[str, int, Mapping[str, Any] | None], None]]:
    """A bar over all `steps` with the time left, and a line after each run; without a terminal, the lines alone.

    Yields a function to tell of each row that a run logs, as (label, steps of the run, row), and of its end, with None.
    Several runs may be under way.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(highlight=False)
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    begun, before = time.perf_counter(), 0
    under_way: dict[str, dict[str, Any]] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=steps)

        def show(label: str, steps_of_run: int, row: Mapping[str, Any] | None) -> None:
            nonlocal before
            now = under_way.setdefault(label, {"step": 0})
            now.update(row or {})
            shown = [f"loss {now['train']['loss']:.3f}"] if "train" in now else []
            shown += [f"test error {now['test']['error']:.2f} %"] if "test" in now else []
            line = ", ".join([label, *shown])
            if row is not None:
                done = before + sum(one["step"] for one in under_way.values())
                bar.update(task, completed=done, description=line)
                return
            del under_way[label]
            before += steps_of_run
            left = (time.perf_counter() - begun) / before * (steps - before) / 60
            console.print(line + (f"; about {left:.1f} min left" if before < steps else ""))

        yield show
