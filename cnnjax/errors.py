"""The one error that a user can cause."""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence


class CnnjaxError(Exception):
    """Wrong input: one to five lines that say what is wrong, with which value, and what would be right.

    The command lines print it on stderr without a traceback and exit with its `exit_code`.
    """

    exit_code = 2


def unknown(kind: str, name: object, legal) -> CnnjaxError:
    """The error for a name that is not in a list, e.g. `unknown("layer", "conv9", net.names)`."""
    return CnnjaxError(f"unknown {kind} {name!r}\nlegal: {', '.join(map(str, legal))}")


def differences(heading: str, have: Mapping[str, str], want: Mapping[str, str]) -> CnnjaxError | None:
    """The error for named shapes that are not those wanted, as a table under `heading`; None where they are."""
    found = {
        "missing": [name for name in want if name not in have],
        "unexpected": [name for name in have if name not in want],
        "different": [
            f"{name}: have {have[name]}, want {want[name]}"
            for name in want
            if name in have and have[name] != want[name]
        ],
    }
    table = [f"  {kind}: {_some(names)}" for kind, names in found.items() if names]
    return CnnjaxError("\n".join([f"{heading}:", *table])) if table else None


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@contextlib.contextmanager
def exit_with_error() -> Iterator[None]:
    """Around a command line: a `CnnjaxError` becomes its lines on stderr and its exit code, without a traceback."""
    try:
        yield
    except CnnjaxError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
