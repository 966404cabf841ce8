"""What a program costs, read off the program itself: multiply-adds and receptive fields by walking a jaxpr.

Nothing here knows a layer. A convolution that somebody forgot to declare is counted because it is in the program.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend import core


class Reach(NamedTuple):
    """Output index i along an axis depends on the input's [i · jump + low, i · jump + high]."""

    jump: float
    low: float
    high: float

    @property
    def field(self) -> int:
        """Pixels of the input that one output sees."""
        return math.ceil(self.high - self.low) + 1


Reaches = tuple[Reach, Reach] | None  # (rows, columns); None: all of the input
PIXEL: Reaches = (Reach(1, 0, 0), Reach(1, 0, 0))
CONSTANT = ()  # depends on no pixel at all


class Cost(NamedTuple):
    """Multiply-adds for the traced batch; layers with weights on the longest path; what an output depends on."""

    macs: int
    depth: int
    reach: Reaches


class _Value(NamedTuple):
    """What is known of an array in the program."""

    reach: Any  # `CONSTANT` where no pixel is in it
    depth: int


def cost(jaxpr: core.ClosedJaxpr, image: int, start: Reaches = PIXEL) -> Cost:
    """The cost of `jaxpr` and the reach of its first output; its input number `image` holds maps [batch, height, …].

    Multiply-adds are those of convolutions (weights × output positions; × input positions where the convolution is
    transposed, padding included as the papers count it) and of matrix products. Everything else counts nothing.
    """
    values = [_Value(CONSTANT, 0)] * len(jaxpr.jaxpr.invars)
    values[image] = _Value(start, 0)
    macs, outputs = _walk(jaxpr.jaxpr, values)
    reach, depth = outputs[0]
    return Cost(macs, depth, start if reach == CONSTANT else reach)


def _walk(jaxpr: core.Jaxpr, inputs: Sequence[_Value]) -> tuple[int, list[_Value]]:
    known: dict[Any, _Value] = dict(zip(jaxpr.invars, inputs, strict=True))
    macs = 0

    def read(atom) -> _Value:
        nothing = _Value(CONSTANT, 0)
        return nothing if isinstance(atom, core.Literal) else known.get(atom, nothing)

    for eqn in jaxpr.eqns:
        values = [read(atom) for atom in eqn.invars]
        inner = _inner(eqn)
        if inner is not None:
            more, results = _walk(inner, values[len(values) - len(inner.invars) :])
        else:
            more = _macs(eqn)
            depth = max((value.depth for value in values), default=0) + (more > 0)
            results = [_Value(_step(eqn, [value.reach for value in values]), depth)] * len(eqn.outvars)
        macs += more
        known.update(zip(eqn.outvars, results, strict=True))
    return macs, [read(atom) for atom in jaxpr.outvars]


def _inner(eqn) -> core.Jaxpr | None:
    """The program inside a call (jit, custom derivatives, remat), if the equation is one."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = eqn.params.get(name)
        if inner is not None:
            return inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner
    return None


def _macs(eqn) -> int:
    if eqn.primitive.name == "conv_general_dilated":
        image, kernel = (atom.aval for atom in eqn.invars)
        numbers = eqn.params["dimension_numbers"]
        if any(d != 1 for d in eqn.params["lhs_dilation"]):
            return kernel.size * image.size // image.shape[numbers.lhs_spec[1]]
        return kernel.size * eqn.outvars[0].aval.size // kernel.shape[numbers.rhs_spec[0]]
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        left = eqn.invars[0].aval
        return eqn.outvars[0].aval.size * math.prod(left.shape[axis] for axis in contracted)
    return 0


def _step(eqn, states: list[Any]) -> Any:
    """The reach of an equation's outputs."""
    seen = [state for state in states if state != CONSTANT]
    if not seen:
        return CONSTANT
    if None in seen:
        return None
    rule = _RULES.get(eqn.primitive.name)
    if rule is not None:
        return rule(eqn, seen[0], states.index(seen[0]))
    return _union(seen)


def _union(seen: list[Any]) -> Reaches:
    axes = []
    for axis in (0, 1):
        if len({reaches[axis].jump for reaches in seen}) > 1:
            return None
        low = min(reaches[axis].low for reaches in seen)
        axes.append(Reach(seen[0][axis].jump, low, max(reaches[axis].high for reaches in seen)))
    return axes[0], axes[1]


def _window(reach: Reach, size: int, stride: int, before: int, grow: int = 1) -> Reach:
    """After a window of `size`, moved by `stride` over maps padded by `before` and dilated by `grow`."""
    jump = reach.jump / grow
    return Reach(jump * stride, reach.low - before * jump, reach.high + (size - 1 - before) * jump)


def _conv(eqn, reaches: Any, operand: int) -> Reaches:
    p, kernel = eqn.params, eqn.invars[1].aval
    sizes = [kernel.shape[axis] for axis in p["dimension_numbers"].rhs_spec[2:]]
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(sizes, p["rhs_dilation"], strict=True)]
    rows, columns = (
        _window(reaches[i], spans[i], p["window_strides"][i], p["padding"][i][0], p["lhs_dilation"][i]) for i in (0, 1)
    )
    return rows, columns


def _pool(eqn, reaches: Any, operand: int) -> Reaches:
    p = eqn.params
    rows, columns = (
        _window(reaches[i], p["window_dimensions"][i + 1], p["window_strides"][i + 1], p["padding"][i + 1][0])
        for i in (0, 1)
    )
    return rows, columns


def _slice(eqn, reaches: Any, operand: int) -> Reaches:
    start, strides = eqn.params["start_indices"], eqn.params["strides"]
    moved = []
    for i in (0, 1):
        jump, low, high = reaches[i]
        step = 1 if strides is None else strides[i + 1]
        moved.append(Reach(jump * step, low + start[i + 1] * jump, high + start[i + 1] * jump))
    return moved[0], moved[1]


def _pad(eqn, reaches: Any, operand: int) -> Reaches:
    config = eqn.params["padding_config"]
    rows, columns = (_window(reaches[i], 1, 1, config[i + 1][0]) for i in (0, 1))
    return rows._replace(high=rows.low + reaches[0].high - reaches[0].low), columns._replace(
        high=columns.low + reaches[1].high - reaches[1].low
    )


def _product(eqn, reaches: Any, operand: int) -> Reaches:
    """A matrix product over channels keeps the maps; one over pixels, as after flattening, sees everything."""
    contracted = eqn.params["dimension_numbers"][0][operand]
    maps = eqn.invars[operand].aval.shape
    return reaches if len(maps) == 4 and all(maps[axis] == 1 for axis in (1, 2) if axis in contracted) else None


def _same_maps(eqn, reaches: Any, operand: int) -> Reaches:
    """Kept where the maps are still [batch, height, width, …] of the same size, else everything."""
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    return reaches if len(before) == len(after) and before[:3] == after[:3] else None


# By primitive, (equation, reaches of the first operand that has any, its number) -> reaches; others join what they
# read.
_RULES = {
    "conv_general_dilated": _conv,
    "reduce_window_sum": _pool,
    "reduce_window_max": _pool,
    "slice": _slice,
    "pad": _pad,
    "dot_general": _product,
    "reshape": _same_maps,
    "gather": _same_maps,
    "rev": lambda eqn, reaches, operand: None,
    "reduce_sum": _same_maps,
    "reduce_max": _same_maps,
}
