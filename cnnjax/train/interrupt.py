"""Signals that end a run: after the first it finishes its step and saves, at the second it is gone."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A run that was asked to end; `signal` says by what, `exit_code` is what a shell reports for it: 143 or 130.

    Like its base it is no `Exception`, so that nothing that goes on after an error goes on after this.
    """

    def __init__(self, number: int, what: str = "interrupted"):
        self.signal, self.exit_code = signal.Signals(number), 128 + number
        super().__init__(f"{self.signal.name}: {what}")


@contextlib.contextmanager
def postponed() -> Iterator[list[int]]:
    """Yields a list that SIGTERM and SIGINT are added to; the second one ends the process at once.

    Not so in a process that another one has started: that one asks it to stop when it is asked itself, and all hear
    twice of a signal that a terminal or a scheduler sends to all.

    What was asked for and not answered by an exception is asked again when the block has ended. Outside the main
    thread, where handlers cannot be set, nothing changes; nor does it for signals that the process ignores.
    """
    came: list[int] = []

    def hear(number: int, _: Any) -> None:
        came.append(number)

    hurried = multiprocessing.parent_process() is None
    with _handled(hear, signal.SIGTERM, signal.SIGINT) as numbers, _gone_at_the_second_of(numbers if hurried else []):
        yield came
    if came:
        signal.raise_signal(came[0])


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Around a command line: SIGTERM raises `Interrupted`, as SIGINT raises `KeyboardInterrupt`."""

    def stop(number: int, _: Any) -> None:
        raise Interrupted(number)

    with _handled(stop, signal.SIGTERM):
        yield


@contextlib.contextmanager
def _handled(handler: Callable[[int, Any], None], *numbers: int) -> Iterator[list[int]]:
    """Yields the signals, of those given, that come to the handler now."""
    main = threading.current_thread() is threading.main_thread()
    ours = [number for number in numbers if main and signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, handler) for number in ours}
    try:
        yield ours
    finally:
        for number in ours:
            signal.signal(number, before[number])


@contextlib.contextmanager
def _gone_at_the_second_of(numbers: list[int]) -> Iterator[None]:
    """Python's handlers wait for the main thread, which may sit in a compilation for minutes; this does not wait."""
    if not numbers:
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def listen() -> None:
        heard = 0
        while number := os.read(reader, 1)[0]:
            heard += number in numbers
            if heard > 1:
                os._exit(128 + number)

    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writer, b"\0")  # no signal's number
        thread.join()
        os.close(reader)
        os.close(writer)
