"""Signals that end a run: after the first it finishes its step and saves, at the second it is gone."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


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

    What was asked for and not answered by an exception is asked again when the block has ended. Where handlers cannot
    be set, outside the main thread, nothing changes; nor does it for signals that the process ignores.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    numbers = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def leave_at_second() -> None:
        # Python's handlers wait for the main thread, which may sit in a compilation for minutes; this one does not.
        heard = 0
        while number := os.read(reader, 1):
            heard += number[0] in numbers
            if heard > 1:
                os._exit(128 + number[0])

    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    thread = threading.Thread(target=leave_at_second, daemon=True)
    thread.start()
    try:
        yield came
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(writer)
        thread.join()
        os.close(reader)
    if came:
        signal.raise_signal(came[0])


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Around a command line: SIGTERM raises `Interrupted`, as SIGINT raises `KeyboardInterrupt`."""

    def stop(number: int, _) -> None:
        raise Interrupted(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
