"""The one error that a user can cause."""

import contextlib
import sys
from collections.abc import Iterator


class CnnjaxError(Exception):
    """Wrong input: one to five lines that say what is wrong, with which value, and what would be right.

    The command lines print it on stderr without a traceback and exit with its `exit_code`.
    """

    exit_code = 2


def unknown(kind: str, name: object, legal) -> CnnjaxError:
    """The error for a name that is not in a list, e.g. `unknown("layer", "conv9", net.names)`."""
    return CnnjaxError(f"unknown {kind} {name!r}\nlegal: {', '.join(map(str, legal))}")


@contextlib.contextmanager
def exit_with_error() -> Iterator[None]:
    """Around a command line: a `CnnjaxError` becomes its lines on stderr and its exit code, without a traceback."""
    try:
        yield
    except CnnjaxError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
