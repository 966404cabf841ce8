"""The wire format of protocol buffers (https://protobuf.dev/programming-guides/encoding), as far as weights need it.

A message is walked in the file itself: numbers are decoded, and of what is longer only the place is noted, so that
half a gigabyte of weights is never in memory twice.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from cnnjax.weights.tensors import LONGEST, MANY, Source, bytes_at, np

MOST = 5 * MANY
"""Fields of one file."""


class Span(NamedTuple):
    """A place in the file: a message, a text or packed numbers."""

    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


class Wire:
    """A file in the wire format."""

    def __init__(self, source: Source):
        self.file = source.file
        self.whole = Span(0, source.size)
        self.left = MOST

    def fields(self, message: Span) -> Iterator[tuple[int, int | Span]]:
        """(number, value) of each field: an int for a varint, else the place of the bytes."""
        at = message.start
        while at < message.stop:
            self.left -= 1
            if self.left < 0:
                raise ValueError(f"it has more than {MOST:,} fields")
            self.file.seek(at)
            tag = self._varint()
            number, wire = tag >> 3, tag & 7
            if wire == 0:
                value, at = self._varint(), self.file.tell()
            elif wire in (1, 2, 5):
                length = self._varint() if wire == 2 else 8 if wire == 1 else 4
                value = Span(self.file.tell(), self.file.tell() + length)
                at = value.stop
            else:
                raise ValueError(f"it has a field of the unknown wire type {wire}")
            if at > message.stop or not number:
                raise ValueError("a field runs past the end of its message")
            yield number, value

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.file.read(1)
            if not byte:
                raise ValueError("it ends in the middle of a number")
            value |= (byte[0] & 0x7F) << shift
            if byte[0] < 0x80:
                return value
        raise ValueError("it has a number of more than 64 bits")

    def text(self, value: int | Span) -> str:
        span = place(value)
        if span.nbytes > LONGEST:
            raise ValueError(f"it has a text of {span.nbytes:,} bytes")
        return bytes(bytes_at(self.file, span.start, span.nbytes)).decode()

    def varints(self, values: list[int | Span]) -> list[int]:
        """A repeated field of whole numbers, packed or one by one, as signed 64-bit numbers."""
        found = itertools.chain.from_iterable([v] if isinstance(v, int) else self._packed(v) for v in values)
        return [(value + (1 << 63)) % (1 << 64) - (1 << 63) for value in found]

    def _packed(self, span: Span) -> list[int]:
        if span.nbytes > MOST:
            raise ValueError(f"it has {span.nbytes:,} bytes of varints")
        values, value, shift = [], 0, 0
        for byte in bytes_at(self.file, span.start, span.nbytes).tolist():
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                values.append(value)
                value = shift = 0
            elif shift == 70:
                raise ValueError("it has a number of more than 64 bits")
        if shift:
            raise ValueError("it ends in the middle of a number")
        return values

    def numbers(self, spans: list[Span], dtype: np.dtype) -> np.ndarray:
        """A repeated field of packed numbers of fixed width, which may come in several pieces."""
        pieces = [bytes_at(self.file, span.start, span.nbytes).view(dtype) for span in spans]
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.zeros(0, dtype), *pieces])


def place(value: int | Span) -> Span:
    if isinstance(value, int):
        raise ValueError("it has a number where a message, a text or packed numbers belong")
    return value


def number(value: int | Span) -> int:
    if not isinstance(value, int):
        raise ValueError("it has a message where a number belongs")
    return value
