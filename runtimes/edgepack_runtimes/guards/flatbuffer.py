"""FlatBuffers, checked and read a column at a time: all tables of one type at once, as numpy arrays.

The same rules as FlatBuffers' own verifier: every table, vector and string has to stand inside the data, aligned and in
full. A walk table by table in Python would take seconds for a decoder of 7,000 operators; by columns it takes
milliseconds. Source: the "internals" page of the FlatBuffers documentation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgepack.errors import EdgepackError

Positions = npt.NDArray[np.int64]
# Vectors may overlap, so that a small file can have any number of elements. Gemma 3n E2B's decoder has 9,000 tensors.
MOST_TABLES = 2_000_000


class FlatBufferError(EdgepackError):
    """Bytes that are no FlatBuffer of the expected type; whoever reads a file adds its name."""


def article(name: str) -> str:
    """`name` with a or an before it."""
    return f"an {name}" if name[0] in "aeio" else f"a {name}"


@dataclass(frozen=True, slots=True)
class Vectors:
    """A vector for each of some tables.

    Attributes:
        starts: position of the first element; 0 where there is none.
        lengths: number of elements.
    """

    starts: Positions
    lengths: Positions

    def owners(self) -> Positions:
        """For every element of all vectors the index of its vector."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def elements(self, width: int) -> Positions:
        """Position of every element of all vectors."""
        first = np.repeat(self.starts - width * (np.cumsum(self.lengths) - self.lengths), self.lengths)
        return first + width * np.arange(len(first))


class FlatBuffer:
    """Bytes of which nothing is believed.

    Args:
        data: the whole of them, uint8; mapped is fine, only what is asked for is touched.
    """

    def __init__(self, data: npt.NDArray[np.uint8]) -> None:
        self.data = data

    def read(self, positions: Positions, dtype: str) -> Positions:
        """The numbers at `positions`, which are known to be inside."""
        kind = np.dtype(dtype)
        columns = self.data[positions[:, None] + np.arange(kind.itemsize)]
        return np.ascontiguousarray(columns).view(kind)[:, 0].astype(np.int64)

    def root(self, identifier: bytes | None = None) -> Tables:
        """The one table that the data begins with.

        Raises:
            FlatBufferError: there is none.
        """
        if len(self.data) < 8:
            raise FlatBufferError(f"{len(self.data)} bytes are too few")
        if identifier is not None and bytes(self.data[4:8]) != identifier:
            raise FlatBufferError(f"it does not begin as {identifier.decode()}")
        return Tables(self, self.read(np.zeros(1, np.int64), "<u4"), "root")

    def inside(self, positions: Positions, sizes: Positions | int, align: int, what: str) -> None:
        """Raise `FlatBufferError` unless `sizes` bytes at `positions` are inside and aligned."""
        wrong = (positions < 0) | (positions + sizes > len(self.data)) | (positions % align != 0)
        if wrong.any():
            raise FlatBufferError(f"{article(what)} points to byte {positions[wrong][0]}, where it cannot be")


class Tables:
    """All tables of one type.

    Args:
        buffer: where they are.
        positions: of each of them; nothing else is known yet.
        name: of the type, for messages.

    Raises:
        FlatBufferError: one of them is not inside.
    """

    def __init__(self, buffer: FlatBuffer, positions: Positions, name: str) -> None:
        self.buffer, self.positions, self.name = buffer, positions, name
        buffer.inside(positions, 4, 4, name)
        self.vtables = positions - buffer.read(positions, "<i4")
        buffer.inside(self.vtables, 4, 2, f"{name} table")
        self.vtable_sizes = buffer.read(self.vtables, "<u2")
        self.sizes = buffer.read(self.vtables + 2, "<u2")
        buffer.inside(self.vtables, self.vtable_sizes, 2, f"{name} table")
        buffer.inside(positions, self.sizes, 4, name)
        if ((self.vtable_sizes < 4) | (self.vtable_sizes % 2 != 0) | (self.sizes < 4)).any():
            raise FlatBufferError(f"{article(name)} has an impossible size")

    def __len__(self) -> int:
        return len(self.positions)

    def _field(self, slot: int, width: int) -> Positions:
        """Position of a field in every table; 0 where it is left out."""
        at = 4 + 2 * slot
        present = self.vtable_sizes >= at + 2
        offsets = np.zeros(len(self), np.int64)
        offsets[present] = self.buffer.read(self.vtables[present] + at, "<u2")
        wrong = (offsets != 0) & ((offsets < 4) | (offsets + width > self.sizes))
        fields = np.where(offsets != 0, self.positions + offsets, 0)
        if wrong.any() or (fields % width != 0).any():
            raise FlatBufferError(f"field {slot} of {article(self.name)} is not inside it")
        return fields

    def scalars(self, slot: int, dtype: str, default: int = 0) -> Positions:
        """A number of every table."""
        fields = self._field(slot, np.dtype(dtype).itemsize)
        values = np.full(len(self), default, np.int64)
        values[fields != 0] = self.buffer.read(fields[fields != 0], dtype)
        return values

    def has(self, slot: int) -> Positions:
        """Indices of the tables that have a field at all."""
        return np.flatnonzero(self._field(slot, 1))

    def check_fields(self) -> None:
        """Check that every field, whatever it means, begins inside its table: for tables of plain numbers."""
        for slot in range((int(self.vtable_sizes.max(initial=4)) - 4) // 2):
            self._field(slot, 1)

    def _targets(self, slot: int) -> Positions:
        """Where the offset in a field leads; 0 where it is left out."""
        fields = self._field(slot, 4)
        targets = np.zeros(len(self), np.int64)
        present = fields != 0
        targets[present] = fields[present] + self.buffer.read(fields[present], "<u4")
        return targets

    def vectors(self, slot: int, width: int) -> Vectors:
        """A vector of numbers or offsets of `width` bytes each, of every table."""
        targets = self._targets(slot)
        present, what = targets != 0, f"vector of {article(self.name)}"
        self.buffer.inside(targets[present], 4, 4, what)
        lengths = np.zeros(len(self), np.int64)
        lengths[present] = self.buffer.read(targets[present], "<u4")
        starts = np.where(present, targets + 4, 0)
        self.buffer.inside(starts[present], lengths[present] * width, min(width, 8), what)
        return Vectors(starts, lengths)

    def strings(self, slot: int) -> Vectors:
        """A text of every table: its bytes, behind which a zero stands."""
        found = self.vectors(slot, 1)
        ends = (found.starts + found.lengths)[found.starts != 0]
        self.buffer.inside(ends, 1, 1, f"text of {article(self.name)}")
        if self.buffer.data[ends].any():
            raise FlatBufferError(f"a text of {article(self.name)} has no end")
        return found

    def texts(self, slot: int, most: int = 256) -> list[str]:
        """The texts themselves, at most `most` characters each."""
        found, data = self.strings(slot), self.buffer.data
        places = zip(found.starts.tolist(), found.lengths.tolist(), strict=True)
        return [bytes(data[start : start + min(length, most)]).decode("utf-8", "replace") for start, length in places]

    def tables(self, slot: int, name: str) -> tuple[Tables, Positions]:
        """All tables in the vectors of a field, and the index of the table here that each belongs to.

        Raises:
            FlatBufferError: one is not inside, or there are too many.
        """
        found = self.vectors(slot, 4)
        if found.lengths.sum() > MOST_TABLES:
            raise FlatBufferError(f"it has {found.lengths.sum()} times {name}, expected at most {MOST_TABLES}")
        places = found.elements(4)
        return Tables(self.buffer, places + self.buffer.read(places, "<u4"), name), found.owners()

    def children(self, slot: int, name: str) -> tuple[Tables, Positions]:
        """The one table in a field, where it is there, and the index of the table here that each belongs to."""
        targets = self._targets(slot)
        owners = np.flatnonzero(targets)
        return Tables(self.buffer, targets[owners], name), owners
