"""A calibration file as it grows: its whole space is taken first, then each statistic is written to its place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.calibration.layout import F16_BYTES, RMS, SECOND, FileLayout, packed_row
from edgepack.values import FloatArray


def write_at(descriptor: int, values: NDArray[Any], offset_bytes: int) -> None:
    """Write the contiguous `values` at a place of a file; a call may write less than asked for, so it is repeated."""
    rest = values.data.cast("B")
    while rest:
        written = os.pwrite(descriptor, rest, offset_bytes)
        rest, offset_bytes = rest[written:], offset_bytes + written


def read_at(descriptor: int, values: NDArray[Any], offset_bytes: int) -> None:
    """Fill the contiguous `values` from a place of a file.

    Raises:
        EOFError: the file ends before.
    """
    rest = values.data.cast("B")
    while rest:
        got = os.preadv(descriptor, [rest], offset_bytes)
        if not got:
            raise EOFError("the file ends early")
        rest, offset_bytes = rest[got:], offset_bytes + got


class CalibrationWriter:
    """Writes statistics in any order, from several threads, to a file of a known layout.

    Raises:
        OSError: there is no room for the whole file, or it cannot be written.
    """

    def __init__(self, path: Path, layout: FileLayout) -> None:
        self._layout = layout
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # All of it now: a disk that is too full shows before the first layer, not after the last.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._descriptor, 0, layout.size_bytes)
            else:
                os.ftruncate(self._descriptor, layout.size_bytes)
            write_at(self._descriptor, np.frombuffer(layout.head, np.uint8), 0)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        os.fsync(self._descriptor)

    def write_rms(self, name: str, values: FloatArray) -> None:
        """Write the root mean square of each column, [K]."""
        placed = self._layout.tensors[f"{name}.{RMS}"]
        write_at(self._descriptor, np.ascontiguousarray(values, np.float32), placed.offset_bytes)

    def write_correlations(self, name: str, row: int, column: int, block: FloatArray, columns: int) -> None:
        """Write the part above the diagonal of a block of correlations whose corner is at `row` and `column`."""
        start = self._layout.tensors[f"{name}.{SECOND}"].offset_bytes
        packed = block.astype(np.float16)
        for i, values in enumerate(packed, row):
            first = max(i, column)
            place = packed_row(i, columns) + first - i
            write_at(self._descriptor, values[first - column :], start + place * F16_BYTES)
