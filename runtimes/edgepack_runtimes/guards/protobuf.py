"""Protocol buffers, read without their library and without its trust: what is wrong with the bytes is one error.

Only what a check needs: a message as its fields by number. Importing `onnx` instead would cost a load 0.2 s, and the
library merges repeated messages and skips what it does not understand, so that two readers may see two things.
Source: the encoding page of the Protocol Buffers documentation.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from edgepack.errors import EdgepackError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED: Final = {FIXED64: 8, FIXED32: 4}
Span = tuple[int, int]


class WireError(EdgepackError):
    """Bytes that are no message; whoever reads a file adds its name."""


class Message:
    """One message inside `data`, its fields cut apart and its inner messages not yet looked at.

    Args:
        data: the file.
        span: first byte of the message and the one behind it; by default all of `data`.
        repeated: numbers of the fields that may come more than once.
    """

    __slots__ = ("data", "fields")

    def __init__(self, data: bytes, span: Span | None = None, repeated: Collection[int] = ()) -> None:
        self.data = data
        self.fields: dict[int, list[tuple[int, int, int]]] = {}
        at, end = span or (0, len(data))
        fields = self.fields
        while at < end:
            key = data[at]
            at += 1
            if key >= 128:
                key, at = _varint(data, at - 1, end)
            number, wire = key >> 3, key & 7
            if wire == VARINT:
                start, at = _varint(data, at, end)  # the value itself
                stop = 0
            elif wire == BYTES:
                start = at + 1
                if at < end and data[at] < 128:  # most are short
                    at = stop = start + data[at]
                else:
                    length, start = _varint(data, at, end)
                    at = stop = start + length
            elif wire in _FIXED:
                start = at
                at = stop = start + _FIXED[wire]
            else:
                raise WireError(f"field {number} has the unknown wire type {wire}")
            if at > end or number == 0:
                raise WireError(f"field {number} reaches {at - end} bytes beyond the end of its message")
            known = fields.get(number)
            if known is None:
                fields[number] = [(wire, start, stop)]
            elif number in repeated or wire != BYTES:
                known.append((wire, start, stop))
            else:
                raise WireError(f"field {number} comes twice")

    def spans(self, number: int) -> list[Span]:
        """Where the bytes of every field `number` stand: texts, bytes or inner messages."""
        spans = []
        for wire, start, stop in self.fields.get(number, ()):
            if wire != BYTES:
                raise WireError(f"field {number} has another wire type than expected")
            spans.append((start, stop))
        return spans

    def span(self, number: int) -> Span | None:
        """Where the bytes of the one field `number` stand; None without one."""
        found = self.spans(number)
        if len(found) > 1:
            raise WireError(f"field {number} comes {len(found)} times, expected once")
        return found[0] if found else None

    def text(self, number: int) -> str:
        """The text of the one field `number`; empty without one."""
        span = self.span(number)
        if span is None:
            return ""
        start, stop = span
        try:
            return self.data[start:stop].decode("utf-8")
        except UnicodeDecodeError as error:
            raise WireError(f"field {number} is no UTF-8") from error

    def numbers(self, number: int) -> list[int]:
        """The signed 64-bit values of all fields `number`, packed or not."""
        values: list[int] = []
        for wire, start, stop in self.fields.get(number, ()):
            if wire == VARINT:
                values.append(start)
            elif wire == BYTES:
                at = start
                while at < stop:
                    value, at = _varint(self.data, at, stop)
                    values.append(value)
            else:
                raise WireError(f"field {number} has another wire type than expected")
        return [value - (1 << 64) if value >= 1 << 63 else value for value in values]

    def number(self, number: int, default: int = 0) -> int:
        """The signed value of field `number`; the last one counts, as everywhere."""
        values = self.numbers(number)
        return values[-1] if values else default


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The value at `at` and what stands behind it."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (1 << 64) - 1, at
        shift += 7
    raise WireError("a number has no end")
