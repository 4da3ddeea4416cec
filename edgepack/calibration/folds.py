"""Folds: exact changes of the weights after which the model computes the same, and rounding loses less of it.

- ``rotate_vo``: the value heads turn by an orthogonal matrix, the output projection turns back. Attention only averages
  values, and a norm without weight commutes with a rotation, so both stay exact. The output projection's input loses
  its outliers.
- ``scale_up_down``: each column of the down projection grows by what the row of the up projection that feeds it
  shrinks. The activation function acts on the gate alone.
- ``scale_ffn_norm``: each column of the gate and up projections grows by what the norm before them shrinks.

The factor of a column is rms ** `INPUT_POWER` * norm ** -`WEIGHT_POWER`: a column that sees large inputs gets more of
the codes of its block, and columns of one block, which share a scale, become alike. Sources: QuaRot, Ashkboos et al.,
2024, for the first; AWQ, Lin et al., 2023, for the others; the powers are measured (docs/quantization.md).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgepack.model.spec import ModelSpec
from edgepack.quant.recipes import Fold
from edgepack.values import FloatArray

# Of the root mean square of a column's input, and of the norm of the column itself.
INPUT_POWER, WEIGHT_POWER = 0.2, 0.75
# Scales stay within this factor of 1: a column that the text never used says little.
MOST_SCALE = 32.0
# Some rows of a matrix or vector, [stop - start, ...].
Read = Callable[[int, int], FloatArray]


class ColumnSizes(Protocol):
    """What the scales follow."""

    def rms(self, matrix: str) -> FloatArray:
        """Root mean square of each column of the input of `matrix`, [K]."""

    def column_squares(self, matrix: str) -> npt.NDArray[np.float64]:
        """Sum of the squares of each column of `matrix` in the checkpoint, [K]."""


class Folds:
    """The folds of a model, applied to rows as they are read.

    Args:
        sizes: of the inputs and the columns; needed for the two scales.
    """

    def __init__(self, spec: ModelSpec, names: tuple[Fold, ...], sizes: ColumnSizes | None = None) -> None:
        self._spec, self._names, self._sizes = spec, frozenset(names), sizes
        self._scales: dict[tuple[str, ...], FloatArray] = {}

    def rows(self, name: str, start: int, stop: int, read: Read) -> FloatArray:
        """Rows of the tensor with the canonical `name`, as the folded model has them."""
        layer, _, part = name.removeprefix("layers.").partition(".")
        if not name.startswith("layers."):
            return read(start, stop)
        at = f"layers.{layer}."
        if part == "self_attn.v_proj.weight" and "rotate_vo" in self._names:
            return self._rotated_rows(int(layer), start, stop, read)
        rows = read(start, stop)
        if part == "self_attn.o_proj.weight" and "rotate_vo" in self._names:
            heads = rows.reshape(len(rows), -1, self._head_dim(int(layer)))
            rows = (heads @ rotation(heads.shape[-1]).T).reshape(rows.shape)
        if "scale_up_down" in self._names:
            down = f"{at}mlp.down_proj.weight"
            if part == "mlp.up_proj.weight":
                rows = rows / self._scale(down)[start:stop, None]
            elif name == down:
                rows = rows * self._scale(down)
        if "scale_ffn_norm" in self._names:
            both = f"{at}mlp.gate_proj.weight", f"{at}mlp.up_proj.weight"
            if name in both:
                rows = rows * self._scale(*both)
            elif part == "pre_feedforward_layernorm.weight":
                rows = rows / self._scale(*both)[start:stop]
        return rows

    def second(self, name: str, second: FloatArray) -> FloatArray:
        """The second moments of the input of matrix `name` in the folded model, in place of those in its own."""
        layer, _, part = name.removeprefix("layers.").partition(".")
        if part == "self_attn.o_proj.weight" and "rotate_vo" in self._names:
            turn, width = rotation(self._head_dim(int(layer))), len(second)
            half: FloatArray = np.matmul(turn, second.reshape(-1, len(turn), width))
            turned: FloatArray = np.matmul(half.reshape(width, -1, len(turn)), turn.T)
            return turned.reshape(width, width)
        scale = None
        if part == "mlp.down_proj.weight" and "scale_up_down" in self._names:
            scale = self._scale(name)
        elif part in ("mlp.gate_proj.weight", "mlp.up_proj.weight") and "scale_ffn_norm" in self._names:
            scale = self._scale(*(f"layers.{layer}.mlp.{each}_proj.weight" for each in ("gate", "up")))
        if scale is not None:
            second /= scale
            second /= scale[:, None]
        return second

    def _head_dim(self, layer: int) -> int:
        return self._spec.attention_of(layer).head_dim

    def _rotated_rows(self, layer: int, start: int, stop: int, read: Read) -> FloatArray:
        """Whole heads are read, since each of their rows goes into every row."""
        D = self._head_dim(layer)
        first, last = start // D * D, -(-stop // D) * D
        heads = read(first, last).reshape((last - first) // D, D, -1)
        turned: FloatArray = rotation(D) @ heads
        return turned.reshape(last - first, -1)[start - first : stop - first]

    def _scale(self, *matrices: str) -> FloatArray:
        """The factor of each column of `matrices`, which have one input, [K], with a geometric mean of 1."""
        if matrices not in self._scales:
            assert self._sizes is not None  # a recipe with these folds needs a calibration
            norm = np.sqrt(sum(self._sizes.column_squares(matrix) for matrix in matrices))
            rms = self._sizes.rms(matrices[0]).astype(np.float64)
            power = INPUT_POWER * np.log(np.maximum(rms, 1e-30)) - WEIGHT_POWER * np.log(np.maximum(norm, 1e-30))
            power = np.clip(power - power.mean(), -np.log(MOST_SCALE), np.log(MOST_SCALE))
            self._scales[matrices] = np.exp(power).astype(np.float32)
        return self._scales[matrices]


@cache
def rotation(size: int) -> FloatArray:
    """An orthogonal matrix [size, size] that spreads a value over many: Hadamard matrices along the diagonal.

    Columns have signs of a fixed pattern, so that equal values do not all add up in the first row.
    """
    power = size & -size
    block = np.ones((1, 1))
    while len(block) < power:
        block = np.block([[block, block], [block, -block]])
    signs = np.where(np.arange(size, dtype=np.uint32) * np.uint32(2654435761) >> 31, -1.0, 1.0)
    matrix: FloatArray = (np.kron(np.eye(size // power), block / np.sqrt(power)) * signs).astype(np.float32)
    return matrix
