"""What a compiled training step asks of a TPU slice: memory, collectives, and estimates of its time.

Nothing here was measured on a TPU. What the compiler says is read off its program; the rest is arithmetic on the
vendor's data sheets, and is called an estimate wherever it is shown.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cnnjax.errors import CnnjaxError, unknown

GIB = 2**30


class Chip(NamedTuple):
    """A generation of TPU, per chip."""

    memory: float
    """HBM, bytes."""
    flops: float
    """Peak in bfloat16, 1/s."""
    bandwidth: float
    """Of HBM, bytes/s."""
    clock: float
    """1/s: the peak over what the matrix units do in a cycle."""
    link: float
    """Of one link to a neighbour, one way, bytes/s."""
    axes: int
    """Of its torus."""
    ring: int
    """The ends of an axis are joined where its length is a multiple of this."""
    largest: int
    """Chips in the largest slice."""


# cloud.google.com/tpu/docs/v4, v5e, v5p and v6e, read in November 2026: memory, peaks and bandwidths. A link is the
# stated interconnect bandwidth per chip (v5e 400 GB/s and v6e 800 GB/s both ways, v5p 4,800 Gbit/s one way) over its
# 2 links an axis; v4's is in Jouppi et al. 2023 (arXiv:2304.01433), section 2. Clocks: 4 (v4, v5p: 8) arrays of 128²
# multiply-adds; v6e's is what its peak takes with as much as four arrays of 256² do.
CHIPS = {
    #           memory      peak     HBM       clock    link   axes ring largest
    "v4": Chip(32 * GIB, 275e12, 1200e9, 1.05e9, 50e9, 3, 4, 4096),
    "v5e": Chip(16 * GIB, 197e12, 819e9, 1.50e9, 50e9, 2, 16, 256),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 1.75e9, 100e9, 3, 4, 6144),
    "v6e": Chip(32 * GIB, 918e12, 1638e9, 1.75e9, 100e9, 2, 16, 256),
}

HOP = 1e-6
"""Seconds from a chip to its neighbour, for a message however short (recalled: Austin et al. 2025, "How to scale your
model")."""


class Slice(NamedTuple):
    """Chips that are cabled together, e.g. v5e:16x16."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)


def slice_named(name: str) -> Slice:
    """Raises `CnnjaxError` for a name that stands for no slice."""
    kind, _, sides = name.partition(":")
    if kind not in CHIPS:
        raise unknown("TPU", kind, CHIPS)
    chip = CHIPS[kind]
    example = "4x4" if chip.axes == 2 else "2x2x4"
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sides) or sides.count("x") != chip.axes - 1:
        raise CnnjaxError(f"topology {name!r} is not {kind}: and {chip.axes} numbers of chips, as in {kind}:{example}")
    shape = tuple(map(int, sides.split("x")))
    if math.prod(shape) > chip.largest:
        raise CnnjaxError(f"topology {name!r} has {math.prod(shape):,} chips; a slice of {kind} has {chip.largest:,}")
    return Slice(name, kind, shape)


def slices(kind: str, most: int = 256) -> list[Slice]:
    """1, 2, 4, … chips of a kind, each slice as nearly square as there are."""
    found = []
    for power in range(int(math.log2(min(most, CHIPS[kind].largest))) + 1):
        axes = CHIPS[kind].axes
        shape = tuple(sorted(2 ** ((power + axis) // axes) for axis in range(axes)))
        found.append(Slice(f"{kind}:{'x'.join(map(str, shape))}", kind, shape))
    return found


# --- collectives ------------------------------------------------------------------------------------------------------

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4,
         "s64": 8, "u64": 8, "f64": 8}  # fmt: skip

_COLLECTIVE = re.compile(
    r"^\s*(?:ROOT )?%?[\w.-]+ = (?P<shape>.+?) "
    r"(?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?P<start>-start)?\("
)
_CHANNEL = re.compile(r"channel_id=(\d+)")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")


class Tally(NamedTuple):
    """Collectives of one kind. `bytes` are those of whole arrays: what is added up, or what an all-gather gives."""

    count: int
    bytes: int


def collectives(program: str, chips: int) -> dict[str, Tally]:
    """The collectives of a compiled program by kind, each once however often it is mentioned.

    `program`: `compiled.as_text()`, which is one chip's of so many.
    """
    found: dict[str, Tally] = {}
    seen, computation = set(), ""
    for line in program.splitlines():
        opened = _COMPUTATION.match(line)
        if opened:
            computation = opened[1]
        match = _COLLECTIVE.match(line)
        if not match:
            continue
        channel = _CHANNEL.search(line)
        if channel is not None:
            if channel[1] in seen:
                continue
            seen.add(channel[1])
        sizes, kind = array_bytes(match["shape"]), match["kind"]
        if match["start"] and kind != "all-reduce":  # (what goes in, what comes out, …)
            sizes = sizes[len(sizes) // 2 :]
        if kind == "reduce-scatter":
            sizes = [size * chips for size in sizes]
        elif computation.startswith("all-reduce-scatter"):  # a TPU's form of it: a sum of which each chip keeps a part
            kind = "reduce-scatter"
        before = found.get(kind, Tally(0, 0))
        found[kind] = Tally(before.count + 1, before.bytes + sum(sizes))
    return found


def array_bytes(shape: str) -> list[int]:
    """The sizes of the arrays in a type as programs print it, e.g. `(f32[2,3]{1,0}, bf16[])`."""
    return [
        BYTES[dtype] * math.prod(int(side) for side in sides.split(",") if side)
        for dtype, sides in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape)
        if dtype in BYTES
    ]


def communication(found: Mapping[str, Sequence[int]], where: Slice) -> float:
    """Estimated seconds of collectives one after another, every link at its peak and none hidden by arithmetic.

    found: kind -> (count, bytes), as from `collectives`.

    A ring passes (n - 1) / n of the bytes through every chip, an all-reduce twice; an axis has two rings where its ends
    are joined, else one. To that come `HOP`s to the farthest chip.
    """
    if where.chips == 1:
        return 0.0
    joined = [side > 2 and side % where.chip.ring == 0 for side in where.shape]
    rate = where.chip.link * sum(1 + ends for side, ends in zip(where.shape, joined, strict=True) if side > 1)
    hops = sum(side // 2 if ends else side - 1 for side, ends in zip(where.shape, joined, strict=True))
    share = (where.chips - 1) / where.chips
    return sum(
        (2 if kind == "all-reduce" else 1) * (share * size / rate + count * hops * HOP)
        for kind, (count, size) in found.items()
    )


# --- time -------------------------------------------------------------------------------------------------------------


def cycles(program: str) -> int:
    """The compiler's own estimates of its operations, added up; those for which it gives none count nothing."""
    return sum(map(int, re.findall(r'"estimated_cycles":"(-?\d+)"', program)))


def believable(seconds: float | None, flops: float, chip: Chip) -> float | None:
    """`seconds`, or None for what cannot be true: not a number, not positive, less than the peak of the chip allows."""
    if seconds is None or not math.isfinite(seconds) or seconds <= 0 or seconds < 0.99 * flops / chip.flops:
        return None
    return seconds


def scaling(
    compute: float, found: Mapping[str, Sequence[int]], kind: str, batch: int, most: int = 256
) -> list[tuple[int, float, float]]:
    """Estimates for 1 to `most` chips with the same batch each: (chips, images/s, share of what as many alone do).

    compute: seconds of a step without its collectives; batch: images a chip.
    """
    rows = []
    for where in slices(kind, most):
        seconds = compute + communication(found, where)
        rows.append((where.chips, batch * where.chips / seconds, compute / seconds))
    return rows


def estimates(record: Mapping[str, Any]) -> dict[str, Any]:
    """Times of a program that fits; None for what the compiler does not say, or says and cannot be true.

    record: topology, batch (a chip), flops, optimal_seconds, cycles and collectives.
    """
    where = slice_named(record["topology"])
    found = record["collectives"]
    optimal = believable(record["optimal_seconds"], record["flops"], where.chip)
    by_cycles = believable(record["cycles"] / where.chip.clock, record["flops"], where.chip)
    compute = by_cycles or optimal
    passing = communication(found, where)
    rows = [] if compute is None else scaling(compute, found, where.kind, record["batch"])
    return {
        "optimal_seconds": optimal,
        "cycles_seconds": by_cycles,
        "communication_seconds": passing,
        "images_per_second": compute and record["batch"] * where.chips / (compute + passing),
        "scaling": [dict(zip(("chips", "images_per_second", "efficiency"), row, strict=True)) for row in rows],
    }


def largest(compile: Callable[[int], bool], start: int, most: int) -> tuple[int, int | None]:
    """(the largest batch that was seen to fit, the smallest that was not, if any): doubling or halving, then bisecting.

    compile: whether a batch fits. It stops when the two are within an eighth, or after `most` calls.
    """
    fits, refused, batch = 0, None, start
    for _ in range(most):
        if compile(batch):
            fits = batch
        else:
            refused = batch
        if refused is None:
            batch = 2 * fits
        elif refused == 1 or (fits and refused - fits <= max(1, fits // 8)):
            break
        else:
            batch = (fits + refused) // 2 if fits else refused // 2
    return fits, refused


def needed(message: str) -> tuple[float, float] | None:
    """(bytes needed at least, bytes there are) from the compiler's refusal of what does not fit, if it says so."""
    said = r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm|\(([\d.]+)([KMG])\) exceeds available HBM \(([\d.]+)([KMG])\)"
    match = re.search(said, message)
    if match is None:
        return None
    have, have_unit, there, there_unit = (group for group in match.groups() if group is not None)
    unit = {"K": 2**10, "M": 2**20, "G": GIB}
    return float(have) * unit[have_unit], float(there) * unit[there_unit]
