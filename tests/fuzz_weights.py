"""Damages small weight files of every format in random ways, and lets each be read whole in a process of its own.

`python tests/fuzz_weights.py 10000` makes so many mutants: bits flipped, bytes set, the end cut off, chunks doubled,
dropped, zeroed or taken from another file, and numbers replaced where lengths and offsets stand. Reading one has to
succeed or to raise `UnreadableWeights`, within `SECONDS` and with less than 1 GB of memory; whatever else happens is
printed, kept as a file, and makes the exit code 1.
"""

import argparse
import collections
import io
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads would reserve most of the memory that is allowed
sys.path.insert(0, str(Path(__file__).parent))

import weight_files

from cnnjax.weights.read import UnreadableWeights, check_finite, read

MEMORY = 1 << 30
SECONDS = 20
READ, REFUSED, GREEDY, WRONG = range(4)
NUMBERS = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
)


def place(content: bytes) -> int:
    """Headers stand at the ends of files, so half of the damage is done there."""
    near = min(len(content), 400)
    return random.choice(
        (random.randrange(len(content)), random.randrange(near), len(content) - 1 - random.randrange(near))
    )


def flip(content: bytes, _: bytes) -> bytes:
    at = place(content)
    return content[:at] + bytes([content[at] ^ 1 << random.randrange(8)]) + content[at + 1 :]


def set_byte(content: bytes, _: bytes) -> bytes:
    at = place(content)
    return (
        content[:at] + bytes([random.choice((0, 1, 0x2E, 0x7F, 0x80, 0xFF, random.randrange(256)))]) + content[at + 1 :]
    )


def cut(content: bytes, _: bytes) -> bytes:
    return content[: place(content)]


def chunk(content: bytes) -> tuple[int, int]:
    start = place(content)
    return start, min(len(content), start + random.choice((1, 2, 4, 8, 16, 64, 512)))


def double(content: bytes, _: bytes) -> bytes:
    start, stop = chunk(content)
    return content[:stop] + content[start:stop] * random.choice((1, 2, 50)) + content[stop:]


def drop(content: bytes, _: bytes) -> bytes:
    start, stop = chunk(content)
    return content[:start] + content[stop:]


def zero(content: bytes, _: bytes) -> bytes:
    start, stop = chunk(content)
    return content[:start] + bytes(stop - start) + content[stop:]


def splice(content: bytes, other: bytes) -> bytes:
    start, stop = chunk(other)
    at = place(content)
    return content[:at] + other[start:stop] + content[at + random.choice((0, stop - start)) :]


def number(content: bytes, _: bytes) -> bytes:
    kind = random.choice(("<B", "<H", "<I", "<Q"))
    value = random.choice((*NUMBERS, len(content), random.randrange(len(content)))) % (1 << 8 * struct.calcsize(kind))
    at = place(content)
    return (content[:at] + struct.pack(kind, value) + content[at + struct.calcsize(kind) :])[: max(len(content), at)]


def digits(content: bytes, _: bytes) -> bytes:
    """Another decimal number where one stands, as in headers that are text."""
    found = [i for i, byte in enumerate(content[:600]) if chr(byte).isdigit()]
    if not found:
        return flip(content, content)
    at = random.choice(found)
    return content[:at] + random.choice(("", "-", "9" * random.randrange(1, 40), "1e9")).encode() + content[at + 1 :]


MUTATIONS: tuple[Callable[[bytes, bytes], bytes], ...] = (
    flip, flip, set_byte, cut, double, drop, zero, splice, number, number, digits,
)  # fmt: skip


def mutant(content: bytes, other: bytes) -> bytes:
    if content.startswith(b"PK") and random.random() < 0.8:
        return inside(content, other)
    for _ in range(random.choice((1, 1, 1, 2, 4, 8))):
        content = random.choice(MUTATIONS)(content, other) or b"\0"
    return content


def inside(content: bytes, other: bytes) -> bytes:
    """Another archive, sound in itself, with one damaged member: what the checksums of an archive would else hide."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
        packed = archive.infolist()[0].compress_type != zipfile.ZIP_STORED
    name = random.choice([name for name in members if members[name]] + [name for name in members if "pkl" in name])
    return weight_files.archive(members | {name: mutant(members[name], other)}, compress=packed)


def outcome(path: Path) -> int:
    try:
        tensors = read(path)
        held = {name: tensors[name] for name in tensors}
        check_finite(held)
        return READ
    except UnreadableWeights as error:
        lines = str(error).splitlines()
        if isinstance(error.__cause__, MemoryError):
            return GREEDY
        return REFUSED if 1 <= len(lines) <= 5 and max(map(len, lines)) <= 600 else WRONG
    except Exception:
        traceback.print_exc()
        return WRONG


def attempt(path: Path) -> tuple[str, int]:
    """(what came of reading a file in a process of its own, the most KB that the process had in memory)."""
    sys.stdout.flush()
    process = os.fork()
    if not process:
        code = WRONG
        try:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.alarm(SECONDS)
            code = outcome(path)
        finally:
            os._exit(code)
    _, status, usage = os.wait4(process, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return ("took too long" if number == signal.SIGALRM else f"died of signal {number}"), usage.ru_maxrss
    return ("read", "refused", "took too much memory", "raised something else")[os.WEXITSTATUS(status)], usage.ru_maxrss


def main(count: int, seed: int, keep: Path) -> int:
    samples = weight_files.samples()
    counts: dict[str, collections.Counter] = {name: collections.Counter() for name in samples}
    most, bad = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights")
        for content in samples.values():  # also warms the libraries up, once for all processes
            path.write_bytes(content)
            read(path)
        for index in range(count):
            random.seed(f"{seed} {index}")
            name = list(samples)[index % len(samples)]
            path.write_bytes(mutant(samples[name], samples[random.choice(list(samples))]))
            what, memory = attempt(path)
            counts[name][what] += 1
            most = max(most, memory)
            if what not in ("read", "refused"):
                bad += 1
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{seed}-{index}-{name}").write_bytes(path.read_bytes())
    for name, counted in counts.items():
        print(f"{name:20}", ", ".join(f"{what} {times}" for what, times in sorted(counted.items())))
    print(f"{count} mutants, {bad} badly handled, at most {most / 1024:.0f} MB in memory")
    return int(bad > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=Path, default=Path(tempfile.gettempdir(), "fuzzed"), help="where failures are kept"
    )
    arguments = parser.parse_args()
    sys.exit(main(arguments.count, arguments.seed, arguments.keep))
