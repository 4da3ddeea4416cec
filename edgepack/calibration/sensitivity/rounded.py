"""Rows of weights as a scheme would give them back, and what the products with them lose by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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


def feedback_for(storage: Storage, columns: int, second: FloatArray) -> Feedback | None:
    """What `rounded` needs besides, for a matrix of so many columns."""
    if storage.rounding not in CALIBRATED or not isinstance(storage.scheme, IntScheme):
        return None
    return feedback(second, storage.scheme.block_of((1, columns)))


def change_of(stored: Mapping[str, Storage], calibration: Calibration | None = None) -> dict[str, Rounded]:
    """Store these tensors so; a calibrated rounding is factored at once.

    Args:
        calibration: needed for calibrated roundings.
    """
    change: dict[str, Rounded] = {}
    for name, storage in stored.items():
        found = None
        if storage.rounding in CALIBRATED and calibration is not None:
            second = calibration.moments(name).second()
            found = feedback_for(storage, len(second), second)
        change[name] = lambda rows, storage=storage, found=found: rounded(rows, storage, found)  # type: ignore[misc]
    return change


def relative_errors(
    rows: FloatArray, storages: Iterable[Storage], inputs: FloatArray, second: Callable[[], FloatArray]
) -> list[float]:
    """Squared error of the products of `rows` [R, K] by their squared size, of every way to store them.

    Args:
        inputs: what they are multiplied with, [positions, K]. Not those that a rounding was made for: on its own text
            compensation looks up to a hundred times better than it is.
        second: the second moment of a calibration, for roundings that need one.

    Raises:
        EdgepackError: they cannot be stored so, or `second` has no factor.
    """
    size = _energy(rows, inputs)
    found: dict[int, Feedback | None] = {}  # one block at a time: a factor is as large as the moment itself
    errors = []
    for storage in storages:
        block = storage.scheme.block_of(rows.shape) if isinstance(storage.scheme, IntScheme) else 0
        if storage.rounding in CALIBRATED and block not in found:
            found = {block: feedback_for(storage, rows.shape[1], second())}
        lost = rounded(rows, storage, found.get(block) if storage.rounding in CALIBRATED else None) - rows
        errors.append(_energy(lost, inputs) / size if size else 0.0)
    return errors


def _energy(rows: FloatArray, inputs: FloatArray) -> float:
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
