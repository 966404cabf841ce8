"""A pickle read as data. There is no way from here to a function, a class or a module of Python.

`pickletools` only splits a pickle into its opcodes. What they build is lists, tuples, dicts, strings, numbers, and what
the caller's own table says for a name; a name outside the table is refused where it stands, called or not.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple, cast

from cnnjax.weights.tensors import TENSORS_ONLY, Bounded, show

MOST = 1_000_000
"""Opcodes of one pickle; the state of ResNet-1202 takes 300,000."""

# fmt: off
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE",
            "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
            "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"}
# fmt: on


class Builder(NamedTuple):
    """What a pickle may call by a name, instead of what the name means in Python."""

    build: Callable[..., object]


def unpickle(
    file: IO[bytes],
    names: Mapping[tuple[str, ...], object] | None = None,
    persistent: Callable[[object], object] | None = None,
) -> object:
    """The data in the pickle that begins where `file` stands; leaves it behind the pickle.

    `names`: (module, name) -> what stands for it, callable only if a `Builder`. `persistent`: what stands for a
    persistent id. Raises: ValueError for everything else that a pickle can ask for.
    """
    names = names or {}
    stack: list = []
    marks: list[int] = []
    memo: dict[int, object] = {}

    def take(count: int) -> list:
        """The last `count` objects, off the stack."""
        if count > len(stack) - (marks[-1] if marks else 0):
            raise ValueError("its pickle takes more than it has put")
        return [stack.pop() for _ in range(count)][::-1]

    def since_mark() -> list:
        if not marks:
            raise ValueError("its pickle ends a group that it has not begun")
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], Bounded(file)))):
        if count > MOST:
            raise ValueError(f"its pickle has more than {MOST:,} steps")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return take(1)[0]
            case "MARK":
                marks.append(len(stack))
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case name if name in LITERALS:
                stack.append(argument)
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(take(int(opcode.name[-1]))))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(since_mark())
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                stack.append(_update({}, since_mark()))
            case "APPEND" | "APPENDS":
                items = take(1) if opcode.name == "APPEND" else since_mark()
                (target,) = take(1)
                if type(target) is not list:
                    raise ValueError("its pickle appends to what is no list")
                stack.append(target)
                target.extend(items)
            case "SETITEM" | "SETITEMS":
                items = take(2) if opcode.name == "SETITEM" else since_mark()
                (target,) = take(1)
                stack.append(_update(target, items))
            case "POP":
                take(1)
            case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                (memo[len(memo) if argument is None else int(argument)],) = stack[-1:] or take(1)
            case "GET" | "BINGET" | "LONG_BINGET":
                if int(argument) not in memo:
                    raise ValueError("its pickle fetches what it has not stored")
                stack.append(memo[int(argument)])
            case "GLOBAL" | "STACK_GLOBAL":
                wanted = tuple(str(argument).split(" ", 1)) if opcode.name == "GLOBAL" else tuple(take(2))
                if not all(type(part) is str for part in wanted):
                    raise ValueError("its pickle asks for a name that is no text")
                if wanted not in names:
                    raise ValueError(f"it asks for {show('.'.join(wanted))}\n{TENSORS_ONLY}")
                stack.append(names[wanted])
            case "REDUCE":
                function, arguments = take(2)
                if type(function) is not Builder or type(arguments) is not tuple:
                    raise ValueError(f"its pickle calls what cannot be called\n{TENSORS_ONLY}")
                stack.append(_build(function, arguments))
            case "BUILD":  # the attributes of an OrderedDict, such as the `_metadata` of a state_dict
                target, _ = take(2)
                if type(target) is not dict:
                    raise ValueError(f"its pickle sets the state of an object\n{TENSORS_ONLY}")
                stack.append(target)
            case "BINPERSID" if persistent:
                stack.append(persistent(take(1)[0]))
            case name:
                raise ValueError(f"its pickle uses {name}\n{TENSORS_ONLY}")
    raise ValueError("its pickle does not end")


def _update(target: object, items: list) -> dict:
    """Keys are scalars: to hash nested tuples can take forever."""
    keys = items[::2]
    if type(target) is not dict or len(items) % 2 or not all(type(key) in (str, int, float, bool) for key in keys):
        raise ValueError("its pickle fills what is no dict of strings and numbers")
    target.update(zip(keys, items[1::2], strict=True))
    return target


def _build(function: Builder, arguments: tuple) -> object:
    try:
        return function.build(*arguments)
    except TypeError as error:
        raise ValueError(f"its pickle builds a tensor from what makes none: {error}") from error
