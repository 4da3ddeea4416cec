"""The weights of a checkpoint as a package stores them: folded, and rounded by what is known of their inputs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepack.calibration.file import WAY_OUT, Calibration
from edgepack.calibration.folds import Folds
from edgepack.checkpoint.folder import Checkpoint
from edgepack.errors import EdgepackError
from edgepack.model.ops import Weight
from edgepack.model.spec import ModelSpec
from edgepack.model.tensors import checkpoint_name
from edgepack.quant.gptq import DAMPING, Feedback, feedback
from edgepack.quant.layout import IntScheme, Scheme
from edgepack.quant.recipes import Fold
from edgepack.quant.rounding import Rounding, quantize
from edgepack.shown import shown
from edgepack.values import FloatArray

# Threads may be at the end of one matrix and the beginning of the next.
_KEPT_FEEDBACKS = 2
# What is read of a matrix at once, 4 MB.
_READ_ELEMENTS = 1 << 20


class PlannedWeights:
    """Rows of the weights, and their rounding. Several threads may call it.

    Args:
        calibration: of this checkpoint; needed for the rounding ``gptq`` and the folds that scale.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: ModelSpec,
        folds: tuple[Fold, ...] = (),
        calibration: Calibration | None = None,
    ) -> None:
        self._checkpoint, self._spec, self._calibration = checkpoint, spec, calibration
        self._folds = Folds(spec, folds, self if calibration is not None else None)
        self._feedbacks: OrderedDict[tuple[str, int], Feedback] = OrderedDict()
        self._raised: dict[str, float] = {}
        self._lock = Lock()

    def rms(self, matrix: str) -> FloatArray:
        """Root mean square of each column of the input of `matrix` in the checkpoint, [K]."""
        assert self._calibration is not None
        return self._calibration.moments(matrix).rms

    def column_squares(self, matrix: str) -> npt.NDArray[np.float64]:
        """Sum of the squares of each column of `matrix` in the checkpoint, [K]."""
        name = checkpoint_name(self._spec, matrix)
        rows, columns = self._checkpoint.tensors[name].shape
        total, step = np.zeros(columns), max(1, _READ_ELEMENTS // columns)
        for start in range(0, rows, step):
            values = self._checkpoint.read_rows(name, start, min(start + step, rows))
            total += np.einsum("nk,nk->k", values, values)
        return total

    def rows(self, weight: Weight, start: int, stop: int) -> FloatArray:
        """Rows of a weight as the graph uses it, with its factor and offset, in the folded model.

        Raises:
            CheckpointError: it cannot be read.
        """

        def read(start: int, stop: int) -> FloatArray:
            values = self._checkpoint.read_rows(checkpoint_name(self._spec, weight.name), start, stop)
            if weight.times != 1.0:
                values *= np.float32(weight.times)
            if weight.plus != 0.0:
                values += np.float32(weight.plus)
            return values

        with np.errstate(over="ignore"):  # a scheme refuses what is no longer finite
            return self._folds.rows(weight.name, start, stop, read)

    def quantize(
        self, name: str, values: FloatArray, scheme: Scheme, rounding: Rounding
    ) -> Mapping[str, npt.NDArray[Any]]:
        """Some whole rows of the tensor `name` as the parts of `scheme`.

        Raises:
            EdgepackError: they cannot be stored so; the tensor is named.
        """
        found = None
        if rounding == "gptq" and isinstance(scheme, IntScheme) and self._calibration is not None:
            found = self._feedback(name, scheme.block_of(values.shape))
        try:
            return quantize(values, scheme, rounding, feedback=found)
        except EdgepackError as error:
            where = f"{self._checkpoint.path}: tensor {shown(checkpoint_name(self._spec, name))}"
            raise type(error)(f"{where}: {error}") from error

    def notes(self) -> tuple[str, ...]:
        """What the roundings so far found to tell a user, a line each."""
        if not self._raised:
            return ()
        name, damping = max(self._raised.items(), key=lambda item: (item[1], item[0]))
        said = (
            f"singular second moments in the calibration: {len(self._raised)} damped by more than "
            f"{100 * DAMPING:g} % of their mean, at most by {100 * damping:g} % ({name}); more tokens may help"
        )
        return (said,)

    def _feedback(self, name: str, block: int) -> Feedback:
        assert self._calibration is not None
        read = self._calibration.input_of(name)
        with self._lock:
            if (read, block) not in self._feedbacks:
                while len(self._feedbacks) >= _KEPT_FEEDBACKS:
                    self._feedbacks.popitem(last=False)
                second = self._folds.second(name, self._calibration.moments(name).second())
                try:
                    found = feedback(second, block)
                except EdgepackError as error:
                    where = f"{self._calibration.path}: input of {shown(name)}"
                    raise EdgepackError(f"{where}: {error}; {WAY_OUT}") from error
                if found.damping > DAMPING:
                    self._raised[read] = found.damping
                self._feedbacks[read, block] = found
            self._feedbacks.move_to_end((read, block))
            return self._feedbacks[read, block]
