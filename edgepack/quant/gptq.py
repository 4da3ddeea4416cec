"""GPTQ: rounding column after column, where each makes up for the errors of those before it.

What is minimised is the squared error of the product itself, tr((W - Q) S (W - Q)^T) for the second moment S of its
input, and not that of the weights. With S = U D U^T, U unit upper triangular, column k is rounded from

    w_k + sum over j < k of (w_j - q_j) U[j, k]

which is what GPTQ computes from the Cholesky factor of the inverse of S; no inverse is needed. Sources: GPTQ, Frantar
et al., 2022; this form and that it is the same: QuIP, Chee et al., 2023, theorem 6. Blocks of large inputs come first,
and large inputs first in each (group-aware reordering, GPTQModel): blocks and scales stay where they are.

Letter legend: R rows, K columns, as in `layout`. Columns lead here, [K, R], so that each is contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgepack.errors import EdgepackError
from edgepack.quant.grid import Quantized, covering, searched, storable
from edgepack.quant.layout import IntScheme
from edgepack.values import FloatArray

# Share of the mean diagonal that is added to the diagonal: the sample never says that an input cannot occur.
DAMPING = 0.01
# Share of its own that is added to each number of the diagonal: a float16 correlation is right to 2 ** -12 of it.
_OWN_DAMPING = 0.002
# More is tried where a second moment is not positive definite in float32 with less.
_MOST_DAMPING = 1.0
# Columns that are factored at once: a block of 512 x 512 stays in the second-level cache.
_FACTOR_BLOCK = 512
# Columns between which errors go one by one; further ones get theirs in one product.
_STEP = 32


@dataclass(frozen=True, slots=True)
class Feedback:
    """How the errors of a matrix's columns go into the columns after them.

    Attributes:
        order: the columns in the order in which they are rounded, int64 [K].
        upper: U, [K, K], rows and columns in that order; what stands below its diagonal has no meaning.
        variance: D, [K], in that order: what an error that nothing makes up for costs.
        damping: share of the mean diagonal that was added.
    """

    order: npt.NDArray[np.int64]
    upper: FloatArray
    variance: FloatArray
    damping: float


def feedback(second: FloatArray, block: int) -> Feedback:
    """Factor the second moment of a matrix's input.

    Args:
        second: float32 [K, K], symmetric.
        block: columns that share a scale, K where all do.

    Raises:
        EdgepackError: it holds NaN or infinite values, or none of any size.
    """
    diagonal = second.diagonal().astype(np.float64)
    mean = float(diagonal.mean())
    if not np.isfinite(second.sum(dtype=np.float64)) or (diagonal < 0).any():
        raise EdgepackError("the second moment holds a negative square, NaN or infinite value")
    order = _large_first(diagonal, block)
    damping = DAMPING
    while True:
        upper = second[np.ix_(order, order)]
        added = damping * mean + damping / DAMPING * _OWN_DAMPING * diagonal[order] if mean else 1.0
        upper[np.diag_indices_from(upper)] += np.asarray(added, np.float32)
        if _factor(upper):
            break
        if damping >= _MOST_DAMPING:
            raise EdgepackError("the second moment is not positive definite, whatever is added to its diagonal")
        damping *= 10
    deviation = upper.diagonal().copy()
    upper /= deviation
    return Feedback(order, upper, deviation * deviation, damping)


def _large_first(diagonal: npt.NDArray[np.float64], block: int) -> npt.NDArray[np.int64]:
    """The columns by block, blocks of the largest squares first, and the largest first in each."""
    squares = diagonal.reshape(-1, block)
    within = np.argsort(-squares, axis=1, kind="stable")
    blocks = np.argsort(-squares.mean(1), kind="stable")
    order: npt.NDArray[np.int64] = (within + np.arange(len(squares))[:, None] * block)[blocks].reshape(-1)
    return order


def _factor(matrix: FloatArray) -> bool:
    """Turn a symmetric matrix into its factor V, upper triangular with V V^T = matrix, in place; False if it has none.

    What is below the diagonal blocks stays as it is.
    """
    starts = range(0, len(matrix), _FACTOR_BLOCK)
    for start in reversed(starts):
        own = slice(start, min(start + _FACTOR_BLOCK, len(matrix)))
        try:
            corner = np.linalg.cholesky(matrix[own, own][::-1, ::-1])[::-1, ::-1]
        except np.linalg.LinAlgError:
            return False
        matrix[own, own] = corner
        if not start:
            break
        above = np.linalg.solve(corner, matrix[:start, own].T).T
        matrix[:start, own] = above
        for left in range(0, start, _FACTOR_BLOCK):  # the upper triangle alone, by columns of blocks
            right = slice(left, min(left + _FACTOR_BLOCK, start))
            matrix[: right.stop, right] -= above[: right.stop] @ above[right].T
    return bool(np.isfinite(matrix.diagonal()).all())


def compensated(weight: FloatArray, scheme: IntScheme, found: Feedback) -> Quantized:
    """Round whole rows, each column making up for the errors of those before it.

    Each block gets its grid when its turn comes, from what its columns are by then: the share of the range with the
    least squared error, an error weighing as much as nothing after it can make up for.

    Args:
        weight: float32 [R, K].

    Returns:
        Codes [R, B, block], scale and zero point [R, B, 1].

    Raises:
        EdgepackError: `found` belongs to another number of columns, or a weight is NaN or infinite.
    """
    rows, columns = weight.shape
    if found.upper.shape != (columns, columns):
        raise EdgepackError(f"the second moment is of {len(found.upper)} inputs, the matrix has {columns} columns")
    block = scheme.block_of(weight.shape)
    wanted = np.ascontiguousarray(weight.T[found.order])
    errors, codes = np.empty_like(wanted), np.empty_like(wanted)
    scales, zeros = (np.empty((rows, columns // block, 1), np.float32) for _ in range(2))
    with np.errstate(over="ignore", invalid="ignore"):  # of the largest weights; what comes of it is refused
        for start in range(0, columns, block):
            own, place = slice(start, start + block), found.order[start] // block
            target = wanted[own] + found.upper[:start, own].T @ errors[:start]
            scale, zero = _block_grid(target, scheme, found.variance[own])
            scales[:, place, 0], zeros[:, place, 0] = grid = scale, zero
            _round_block(target, wanted[own], found.upper[own, own], (*grid, scheme.levels), errors[own], codes[own])
    if not (np.isfinite(errors).all() and np.isfinite(codes).all()):
        raise EdgepackError(
            "weights near the end of float32 leave no room to make up for errors: round them to nearest"
        )
    out = np.empty((rows, columns), np.float32)
    out[:, found.order] = codes.T
    return out.reshape(rows, -1, block), scales, zeros


def _block_grid(target: FloatArray, scheme: IntScheme, variance: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Scale and zero point [R] of a block [block, R]."""
    piece = np.ascontiguousarray(target.T)[:, None, :]
    scale, zero = covering(piece, scheme)
    unit = piece * (np.float32(1.0) / scale)
    scale = storable(searched(unit, scheme, scale, zero, variance / max(float(variance.max()), 1e-30)), scheme)
    return scale[:, 0, 0], zero[:, 0, 0]


def _round_block(
    target: FloatArray,
    wanted: FloatArray,
    upper: FloatArray,
    grid: tuple[FloatArray, FloatArray, int],
    errors: FloatArray,
    codes: FloatArray,
) -> None:
    """Round the columns [block, R] of `target` one by one into `codes`; `errors` is what `wanted` has on them."""
    scale, zero, levels = grid
    inverse = np.float32(1.0) / scale
    for first in range(0, len(target), _STEP):
        stop = min(first + _STEP, len(target))
        if first:
            target[first:stop] += upper[:first, first:stop].T @ errors[:first]
        for k in range(first, stop):
            code = codes[k]
            np.multiply(target[k], inverse, out=code)
            code += zero
            np.rint(code, out=code)
            np.clip(code, 0, levels, out=code)
            np.subtract(wanted[k], (code - zero) * scale, out=errors[k])
            if k + 1 < stop:
                target[k + 1 : stop] += upper[k, k + 1 : stop, None] * errors[k]
