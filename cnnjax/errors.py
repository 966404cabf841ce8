"""The one error that a user can cause."""


class CnnjaxError(Exception):
    """Wrong input: one to five lines that say what is wrong, with which value, and what would be right.

    The command lines print it on stderr without a traceback and exit with code 2.
    """


def unknown(kind: str, name: object, legal) -> CnnjaxError:
    """The error for a name that is not in a list, e.g. `unknown("layer", "conv9", net.names)`."""
    return CnnjaxError(f"unknown {kind} {name!r}\nlegal: {', '.join(map(str, legal))}")
