"""Rows of weights as a scheme would give them back, and what the products with them lose by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from threading import Lock

import numpy as np

from edgepack.calibration.collecting import HeldWeights
from edgepack.calibration.file import Calibration
from edgepack.model.families import family_of
from edgepack.model.spec import ModelSpec
from edgepack.model.tensors import checkpoint_name
from edgepack.quant.gptq import Feedback, feedback
from edgepack.quant.layout import IntScheme
from edgepack.quant.recipes import Storage
from edgepack.quant.rounding import CALIBRATED, quantize
from edgepack.values import FloatArray

# Some whole rows [R, K] to what is stored of them.
Rounded = Callable[[FloatArray], FloatArray]
# By canonical name, for the tensors that change.
Change = Mapping[str, Rounded]
# Rows of a matrix whose products are compared: the ratio of two errors needs no more.
COMPARED_ROWS = 512


def rounded(rows: FloatArray, storage: Storage, found: Feedback | None = None) -> FloatArray:
    """`rows` quantized and back; `found` is needed where `storage` is calibrated.

    Raises:
        EdgepackError: they cannot be stored so.
    """
    parts = quantize(rows, storage.scheme, storage.rounding, feedback=found)
    return storage.scheme.dequantize(parts, rows.shape)


class Factors:
    """What calibrated roundings need of the inputs of matrices. One thread uses it at a time.

    Args:
        one_block: keep those of one block size alone: for K = 16,384 each is 1.07 GB.
    """

    def __init__(self, calibration: Calibration, *, one_block: bool = False) -> None:
        self._calibration, self._one_block = calibration, one_block
        self._found: dict[tuple[str, int], Feedback] = {}

    def of(self, matrix: str, storage: Storage, columns: int) -> Feedback | None:
        """The factor for `matrix`, which has so many columns; None where `storage` needs none.

        Raises:
            EdgepackError: the calibration has nothing of it, or something that has no factor.
        """
        if storage.rounding not in CALIBRATED or not isinstance(storage.scheme, IntScheme):
            return None
        block = storage.scheme.block_of((1, columns))
        key = (self._calibration.input_of(matrix), block)
        if key not in self._found:
            if self._one_block:
                self._found = {known: factor for known, factor in self._found.items() if known[1] == block}
            self._found[key] = feedback(self._calibration.moments(matrix).second(), block)
        return self._found[key]


def change_of(stored: Mapping[str, Storage], columns: Mapping[str, int], factors: Factors) -> dict[str, Rounded]:
    """Store these tensors so.

    Args:
        columns: of the tensors.
    """
    found = {name: factors.of(name, storage, columns[name]) for name, storage in stored.items()}
    return {name: partial(rounded, storage=storage, found=found[name]) for name, storage in stored.items()}


def product_energy(rows: FloatArray, inputs: FloatArray) -> float:
    """Sum of the squares of all products of `rows` [R, K] and `inputs` [positions, K]."""
    return float(np.square(inputs @ rows.T).sum(dtype=np.float64))


def compared(rows: int) -> slice:
    """Which rows of a matrix of so many stand for all of them."""
    return slice(0, None, max(1, rows // COMPARED_ROWS))


class ChangedWeights:
    """The weights of one part of a decoder with a change; several sequences of one thread each may read them."""

    def __init__(self, spec: ModelSpec, held: HeldWeights, change: Change, ids: Iterable[int]) -> None:
        """Take all token `ids` that will be looked up: their rows are rounded in one go."""
        table = {tensor.name: tensor for tensor in family_of(spec).tensor_table(spec)}
        self._held, self._lock = held, Lock()
        self._change = {checkpoint_name(spec, name): (table[name], rounding) for name, rounding in change.items()}
        self._ids = sorted({0, *ids})
        self._whole = dict[str, FloatArray]()
        self._looked_up = dict[str, dict[int, FloatArray]]()

    def read_rows(self, name: str, start: int, stop: int) -> FloatArray:
        """Rows of a weight; see `NumpyOps`."""
        if name not in self._change:
            return self._held.read_rows(name, start, stop)
        tensor, rounding = self._change[name]
        with self._lock:
            if tensor.gathered:
                if name not in self._looked_up:
                    known = [row for row in self._ids if row < tensor.shape[0]]
                    rows = np.concatenate([self._held.read_rows(name, row, row + 1) for row in known])
                    self._looked_up[name] = dict(zip(known, rounding(rows), strict=True))
                return np.stack([self._looked_up[name][row] for row in range(start, stop)])
            if name not in self._whole:
                self._whole[name] = rounding(self._held.read_rows(name, 0, tensor.shape[0]))
            return self._whole[name][start:stop]

    def release(self) -> None:
        """Forget the matrices: the next part has others."""
        self._whole.clear()
