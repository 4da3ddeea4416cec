"""One part of a decoder on one sequence: what its matrices are multiplied with goes to a scratch file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from edgepack.calibration.inputs import ProductInput
from edgepack.calibration.writer import read_at, write_at
from edgepack.errors import EdgepackError
from edgepack.model.families import family_of
from edgepack.model.numpy_ops import NumpyOps, WeightSource
from edgepack.model.ops import Weight
from edgepack.model.spec import ModelSpec
from edgepack.model.tensors import checkpoint_name
from edgepack.shown import shown
from edgepack.values import FloatArray

# As many others the first position of a sequence counts as. Every position attends to the start token, so that a
# rounding which spoils its keys and values spoils all of them (docs/quantization.md).
FIRST_WEIGHT = 16
# Columns that are read back at once. Which products are summed depends on it, so it decides the last bits of the file.
BLOCK_COLUMNS = 1024
_F32_BYTES = 4


class HeldWeights:
    """The weights of one part of a decoder: each is read once, whole, when it is first asked for.

    Tables are not held: of them single rows are read.
    """

    def __init__(self, spec: ModelSpec, source: WeightSource) -> None:
        self._source, self._held = source, dict[str, FloatArray]()
        table = family_of(spec).tensor_table(spec)
        self._rows = {checkpoint_name(spec, t.name): t.shape[0] for t in table if not t.gathered}
        self._locks = {name: Lock() for name in self._rows}

    def read_rows(self, name: str, start: int, stop: int) -> FloatArray:
        """Rows of a weight; see `NumpyOps`."""
        if name not in self._rows:
            return self._source.read_rows(name, start, stop)
        with self._locks[name]:
            if name not in self._held:
                self._held[name] = self._source.read_rows(name, 0, self._rows[name])
        return self._held[name][start:stop]

    def release(self) -> None:
        """Forget all of them: the next part has others."""
        self._held.clear()


@dataclass(frozen=True, slots=True)
class Sums:
    """What one use of an input in one sequence adds to the statistics of its K columns.

    Attributes:
        squares: weighted sum of the squares of the values, float64 [K].
        finite: whether each is a number, bool [K].
    """

    squares: NDArray[np.float64]
    finite: NDArray[np.bool_]


def weight_of(rows: int) -> int:
    """The weights of the positions of a sequence together."""
    return rows - 1 + FIRST_WEIGHT


def weight_roots(rows: int) -> FloatArray:
    """The square root of the weight of each position of a sequence, [rows, 1]."""
    roots = np.ones((rows, 1), np.float32)
    roots[0] = FIRST_WEIGHT**0.5
    return roots


class Scratch:
    """A file of all inputs of one stage, times the roots of their weights, in blocks of columns, each [rows, columns].

    Args:
        rows: positions of a sequence.
    """

    def __init__(self, path: Path, inputs: Sequence[ProductInput], sequences: int, rows: int) -> None:
        self.sequences, self.rows = sequences, rows
        self._offsets: dict[str, int] = {}
        self._inputs = {read.name: read for read in inputs}
        end = 0
        for read in inputs:
            self._offsets[read.name] = end
            end += sequences * read.uses * rows * read.columns * _F32_BYTES
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._path = path

    def close(self) -> None:
        """Close and remove the file."""
        os.close(self._descriptor)
        self._path.unlink(missing_ok=True)

    def write(self, name: str, sequence: int, use: int, values: FloatArray) -> Sums:
        """Write `values` [rows, K], and sum them up."""
        k, roots = values.shape[1], weight_roots(self.rows)
        squares, finite = np.empty(k), np.empty(k, np.bool_)
        for start in range(0, k, BLOCK_COLUMNS):
            columns = slice(start, min(start + BLOCK_COLUMNS, k))
            block = np.ascontiguousarray(values[:, columns] * roots)
            write_at(self._descriptor, block, self._place(name, sequence, use, start))
            exact = block.astype(np.float64)
            squares[columns] = np.square(exact, out=exact).sum(0)
            finite[columns] = np.isfinite(block).all(0)
        return Sums(squares, finite)

    def read(self, name: str, sequence: int, use: int, columns: slice) -> FloatArray:
        """One block of columns again, [rows, columns]."""
        block = np.empty((self.rows, columns.stop - columns.start), np.float32)
        read_at(self._descriptor, block, self._place(name, sequence, use, columns.start))
        return block

    def _place(self, name: str, sequence: int, use: int, first_column: int) -> int:
        read = self._inputs[name]
        before = (sequence * read.uses + use) * read.columns + first_column
        return self._offsets[name] + before * self.rows * _F32_BYTES


class CollectingOps(NumpyOps):
    """Computes on one sequence, and writes down what the first matrix of every input is multiplied with.

    Attributes:
        sums: of every use, by input.
    """

    def __init__(
        self, spec: ModelSpec, weights: WeightSource, scratch: Scratch, leaders: Mapping[str, str], sequence: int
    ) -> None:
        """Take the input's name by the first matrix that reads it as `leaders`."""
        super().__init__(spec, weights)
        self._scratch, self._leaders, self._sequence = scratch, leaders, sequence
        self._uses: Counter[str] = Counter()
        self.sums: dict[str, list[Sums]] = {}

    def linear(self, x: FloatArray, matrix: Weight) -> FloatArray:
        self.record(x, matrix.name)
        return super().linear(x, matrix)

    def record(self, x: FloatArray, matrix: str) -> None:
        """Write down `x` [1, S, K], which `matrix` is multiplied with, if it is the first that reads it.

        Raises:
            EdgepackError: it holds NaN or infinity.
        """
        name = self._leaders.get(matrix)
        if name is None:
            return
        sums = self._scratch.write(name, self._sequence, self._uses[name], x.reshape(-1, x.shape[-1]))
        self._uses[name] += 1
        if not sums.finite.all():
            column = int(np.argmin(sums.finite))
            raise EdgepackError(
                f"{_where(name)} is multiplied with nan or infinity (column {column}, sequence {self._sequence}): "
                "expected finite activations; are the weights those of a trained model, and the text one for it?"
            )
        self.sums.setdefault(name, []).append(sums)


def _where(name: str) -> str:
    part, _, rest = name.partition(".")
    layer, _, matrix = rest.partition(".")
    return f"layer {layer}: matrix {shown(matrix)}" if part == "layers" else f"matrix {shown(name)}"


def combine(sums: Sequence[Sums], rows: int) -> FloatArray:
    """The root mean square of each column over all of them, [K]; each stands for `rows` positions."""
    total = np.zeros_like(sums[0].squares)
    for part in sums:
        total += part.squares
    rms: FloatArray = np.sqrt(total / (len(sums) * weight_of(rows))).astype(np.float32)
    return rms
