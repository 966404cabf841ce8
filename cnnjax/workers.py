"""Work done side by side, by processes of which each has its share of the cores.

A small network does not train faster on a second core; a second network does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from cnnjax import machine
from cnnjax.errors import CnnjaxError

Unit = TypeVar("Unit")
Work = Callable[[Any, Callable[[Any], None]], None]


def side_by_side(
    jobs: int,
    start: Callable[[], Work],
    units: Sequence[Unit],
    tell: Callable[[Unit, Any], None],
    *,
    alike: Callable[[Unit], Hashable],
) -> None:
    """Has `start()(unit, say)` done for every unit, by `jobs` processes that call `start` once each.

    What the work says with `say` comes to `tell(unit, what)` in this process. Whatever goes from one to another is
    pickled. A process goes on with a unit that is `alike` to its last, for which its programs are compiled, else with
    one of a kind that no other process is at.

    Raises what a unit raises that a person can mend, a `CnnjaxError` or an `OSError`; a `CnnjaxError` where a process
    is gone. Then, and when this process is interrupted, the others are asked to stop, and waited for: SIGTERM has a
    training finish its step and save.
    """
    spawn, waiting = multiprocessing.get_context("spawn"), list(units)
    shares = machine.shares(min(jobs, len(units)))
    doing: dict[Connection, Unit] = {}

    def give(connection: Connection, last: Hashable = None) -> None:
        doing.pop(connection, None)
        if waiting:
            unit = waiting.pop(_next(list(map(alike, waiting)), last, set(map(alike, doing.values()))))
            doing[connection] = unit
            with contextlib.suppress(BrokenPipeError):  # it is gone, as will be seen below
                connection.send(unit)

    with contextlib.ExitStack() as stack:
        pipes = [spawn.Pipe() for _ in shares]
        for ours, _ in pipes:
            stack.enter_context(ours)  # closed last: who is asked to stop may still have something to say
        processes = stack.enter_context(_stopped({}))
        for cores, (ours, theirs) in zip(shares, pipes, strict=True):
            with theirs, _born(cores):
                processes[ours] = spawn.Process(target=_work, args=(start, theirs))
                processes[ours].start()
            give(ours)
        while doing:
            ready = wait(list(doing))
            for connection in [one for one in doing if one in ready]:
                unit = doing[connection]
                try:
                    what, value = connection.recv()
                except (EOFError, ConnectionResetError):
                    raise _gone(alike(unit), processes[connection]) from None
                if what == "failed":
                    raise value
                if what == "said":
                    tell(unit, value)
                else:
                    give(connection, alike(unit))
        for connection in processes:
            connection.send(None)
        for process in processes.values():
            process.join()


def _next(waiting: Sequence[Hashable], last: Hashable, busy: Collection[Hashable]) -> int:
    """Which of the waiting kinds a process takes that was at `last`, while others are at `busy`."""
    free = (i for i, kind in enumerate(waiting) if kind not in busy)
    return waiting.index(last) if last in waiting else next(free, 0)


def _work(start: Callable[[], Work], connection: Connection) -> None:
    """What a process does."""
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    try:
        work = start()
        for unit in iter(connection.recv, None):
            work(unit, lambda what: connection.send(("said", what)))
            connection.send(("done", None))
    except (CnnjaxError, OSError) as error:
        connection.send(("failed", error))
    except KeyboardInterrupt as stop:  # it was asked to stop, and has saved
        sys.exit(getattr(stop, "exit_code", 130))


def _end_with(parent: Any) -> None:
    """Ends this process when its parent is gone, even killed: nobody else holds the lock of the run's folder then."""
    parent.join()
    os._exit(1)


def _gone(kind: Hashable, process: BaseProcess) -> CnnjaxError:
    process.join()
    hint = "where memory is short, --jobs 1 needs less" if process.exitcode == -signal.SIGKILL else "see above"
    return CnnjaxError(f"the process of {kind} ended with exit code {process.exitcode}\n{hint}")


@contextlib.contextmanager
def _stopped(processes: dict[Connection, BaseProcess]) -> Iterator[dict[Connection, BaseProcess]]:
    """Ends the processes that are still there after the block; at a second interruption at once."""
    try:
        yield processes
    finally:
        started = [process for process in processes.values() if process.pid]
        try:
            for process in started:
                process.terminate()
            for process in started:
                process.join()
        except BaseException:
            for process in started:
                process.kill()
            raise


@contextlib.contextmanager
def _born(cores: set[int] | None) -> Iterator[None]:
    """Processes that are started here have these cores, and do not hear a terminal's SIGINT.

    From their first moment: the libraries that they import count the cores, and SIGINT would interrupt the imports.
    """
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            stack.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.SIG_IGN))
        if cores:
            stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
            os.sched_setaffinity(0, cores)
        yield
