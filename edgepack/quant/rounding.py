"""Rounding: from a float32 matrix [N, K] and a scheme to codes, scales and zero points.

Rows are independent, so callers may cut a matrix into row chunks and hand them to threads: a slice of rows gives the
same slice of every part, bit for bit without calibration, and with it where BLAS adds in the same order. No object here
holds state.

Letter legend: as in `layout`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgepack.errors import EdgepackError, UnsupportedError
from edgepack.quant.gptq import Feedback, compensated
from edgepack.quant.grid import Quantized, covering, on_grid, searched
from edgepack.quant.layout import FloatScheme, IntScheme, Scheme, pieces
from edgepack.values import FloatArray

# How a recipe names the ways to round; `_ROUNDINGS` has the function of each.
Rounding = Literal["nearest", "search", "gptq"]
# Those that need to know the input of the matrix.
CALIBRATED: frozenset[Rounding] = frozenset({"gptq"})
# A piece [R, B, block] and its scheme.
Round = Callable[[FloatArray, IntScheme], Quantized]


def quantize(
    weight: FloatArray,
    scheme: Scheme,
    rounding: Rounding = "nearest",
    *,
    feedback: Feedback | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Return the parts of `weight` by name.

    Args:
        weight: float32 [N, K], any strides; of any shape for a float scheme, which shares memory with it where it
            can. Cast other dtypes before.
        rounding: without effect in a float scheme, whose one way is the cast.
        feedback: of the matrix's input, for the rounding ``gptq``, which needs it.

    Raises:
        UnsupportedError: `scheme` cannot store a matrix of this shape, or float16 does not reach far enough.
        EdgepackError: a value is NaN or infinite, or `feedback` is of another length than K, or missing.
    """
    if isinstance(scheme, FloatScheme):
        return {"values": _cast(weight, scheme)}
    if rounding == "gptq":
        scheme.parts(weight.shape)
        if feedback is None:
            raise EdgepackError("rounding gptq needs a calibration: make one with `edgepack calibrate`")
        return scheme.pack(*compensated(np.asarray(weight, np.float32), scheme, feedback))
    out = {part.name: np.empty(part.shape, part.dtype) for part in scheme.parts(weight.shape)}
    n, k = weight.shape
    block = scheme.block_of(weight.shape)
    for rows in pieces(n, k):
        piece = np.ascontiguousarray(weight[rows], dtype=np.float32).reshape(-1, k // block, block)
        for name, part in scheme.pack(*_ROUNDINGS[rounding](piece, scheme)).items():
            out[name][rows] = part
    return out


def _cast(weight: FloatArray, scheme: FloatScheme) -> npt.NDArray[Any]:
    largest = _largest_magnitude(weight)
    if not math.isfinite(largest):
        raise EdgepackError("weight holds a NaN or infinite value")
    if scheme.dtype == "float16" and largest >= 65520.0:
        raise UnsupportedError(f"weight reaches {largest:.6g}, beyond float16 (65504): keep it in float32")
    return weight.astype(scheme.dtype, copy=False)


def _nearest(piece: FloatArray, scheme: IntScheme) -> Quantized:
    """The nearest codes of the grid that covers the range of each block."""
    return on_grid(piece, scheme, *covering(piece, scheme))


def _search(piece: FloatArray, scheme: IntScheme) -> Quantized:
    """The nearest codes of a share of that grid, the one that has the least weighted squared error.

    An element weighs w^2 + mean(w^2) / 4 of its block: with equal weights the search clips large weights, and that
    costs more than it gains (docs/quantization.md). Of no use at 8 bits.
    """
    scale, zero = covering(piece, scheme)
    unit = piece * (np.float32(1.0) / scale)
    weight = unit * unit
    weight += np.einsum("rbk,rbk->rb", unit, unit)[..., None] * np.float32(0.25 / unit.shape[-1])
    return on_grid(piece, scheme, searched(unit, scheme, scale, zero, weight), zero)


_ROUNDINGS: dict[Rounding, Round] = {"nearest": _nearest, "search": _search}


def _largest_magnitude(weight: FloatArray) -> float:
    """Return max |weight| (NaN where there is one) without a temporary of its size."""
    if weight.size == 0:
        return 0.0
    return max(float(weight.max()), -float(weight.min()))
