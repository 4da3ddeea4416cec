"""Rounding: from a float32 matrix [N, K] and a scheme to codes, scales and zero points.

Rows are independent: quantizing a slice of rows gives the same slice of every part, bit for bit, so callers may cut a
matrix into row chunks and hand them to threads. No object here holds state.

Letter legend: as in `layout`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgepack.errors import EdgepackError, UnsupportedError
from edgepack.quant.layout import FloatScheme, IntScheme, Scheme, pieces
from edgepack.values import FloatArray

# How a recipe names the ways to round; `_ROUNDINGS` has the function of each.
Rounding = Literal["nearest", "search"]
# Codes [R, B, block], scale and zero point [R, B, 1], all float32: what `IntScheme.pack` takes.
Quantized = tuple[FloatArray, FloatArray, FloatArray]
# A piece [R, B, block], its scheme, and the importance of its columns [B, block], None where all count alike.
Round = Callable[[FloatArray, IntScheme, FloatArray | None], Quantized]

# The least magnitude of a float16 that is not zero.
_SMALLEST_FLOAT16 = np.float32(2.0**-24)
# 1 / _SMALLEST_SCALE is finite. A block whose range asks for less (all zeros, denormals) becomes zeros of this scale.
_SMALLEST_SCALE = np.float32(np.finfo(np.float32).tiny)
# A little under the largest float32, so that scale * (code - zero_point) never rounds to infinity.
_LARGEST_VALUE = np.float32(np.finfo(np.float32).max * (1 - 2.0**-20))
# Shares of a block's range that the search tries besides the whole range: coarse grids gain from deeper cuts.
_SHARES = {2: (0.85, 0.7, 0.55, 0.4), 4: (0.95, 0.9, 0.85, 0.8), 8: (0.98, 0.96)}


def quantize(
    weight: FloatArray, scheme: Scheme, rounding: Rounding = "nearest", *, importance: FloatArray | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Return the parts of `weight` by name.

    Args:
        weight: float32 [N, K], any strides; of any shape for a float scheme, which shares memory with it where it
            can. Cast other dtypes before.
        rounding: without effect in a float scheme, whose one way is the cast.
        importance: float32 [K], how much a squared error in each column counts in the search (mean square of the
            column's input). Other roundings do not look at it.

    Raises:
        UnsupportedError: `scheme` cannot store a matrix of this shape, or float16 does not reach far enough.
        EdgepackError: a value is NaN or infinite, or `importance` has another length than K.
    """
    if isinstance(scheme, FloatScheme):
        return {"values": _cast(weight, scheme)}
    out = {part.name: np.empty(part.shape, part.dtype) for part in scheme.parts(weight.shape)}
    n, k = weight.shape
    block = scheme.block_of(weight.shape)
    by_block = _by_block(importance, k, block)
    for rows in pieces(n, k):
        piece = np.ascontiguousarray(weight[rows], dtype=np.float32).reshape(-1, k // block, block)
        for name, part in scheme.pack(*_ROUNDINGS[rounding](piece, scheme, by_block)).items():
            out[name][rows] = part
    return out


def _cast(weight: FloatArray, scheme: FloatScheme) -> npt.NDArray[Any]:
    largest = _largest_magnitude(weight)
    if not math.isfinite(largest):
        raise EdgepackError("weight holds a NaN or infinite value")
    if scheme.dtype == "float16" and largest >= 65520.0:
        raise UnsupportedError(f"weight reaches {largest:.6g}, beyond float16 (65504): keep it in float32")
    return weight.astype(scheme.dtype, copy=False)


def _nearest(piece: FloatArray, scheme: IntScheme, importance: FloatArray | None) -> Quantized:
    """The nearest codes of the grid that covers the range of each block."""
    return _on_grid(piece, scheme, *_grid(piece, scheme))


def _search(piece: FloatArray, scheme: IntScheme, importance: FloatArray | None) -> Quantized:
    """The nearest codes of a share of that grid, the one that has the least weighted squared error.

    It tries shares of the scale with the zero point kept, which clips both ends alike. An element weighs
    w^2 + mean(w^2) / 4 of its block: with equal weights the search clips large weights, and that costs more than it
    gains (docs/quantization.md). Of no use at 8 bits.
    """
    scale, zero = _grid(piece, scheme)
    unit = piece * (np.float32(1.0) / scale)  # steps of the whole range: squares of any input stay finite
    weight = unit * unit
    weight += np.einsum("rbk,rbk->rb", unit, unit)[..., None] * np.float32(0.25 / unit.shape[-1])
    if importance is not None:
        weight *= importance
    work, codes = np.empty_like(unit), np.empty_like(unit)

    def error(share: float) -> FloatArray:
        np.multiply(unit, np.float32(1.0 / share), out=work)
        np.add(work, zero, out=work)
        np.rint(np.clip(work, 0, scheme.levels, out=codes), out=codes)
        np.subtract(work, codes, out=work)
        np.square(work, out=work)
        total: FloatArray = np.einsum("rbk,rbk->rb", work, weight)[..., None]
        return total * np.float32(share * share)

    share, least = np.ones_like(scale), error(1.0)
    for tried in _SHARES[scheme.bits]:
        found = error(tried)
        np.copyto(share, np.float32(tried), where=found < least)
        np.minimum(least, found, out=least)
    return _on_grid(piece, scheme, scale * share, zero)


_ROUNDINGS: dict[Rounding, Round] = {"nearest": _nearest, "search": _search}


def _grid(piece: FloatArray, scheme: IntScheme) -> tuple[FloatArray, FloatArray]:
    """Return scale and zero point, each [R, B, 1], of the grid that covers all of each block, and zero."""
    low, high = piece.min(axis=-1, keepdims=True), piece.max(axis=-1, keepdims=True)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise EdgepackError("weight holds a NaN or infinite value")
    if not scheme.zero_point:
        scale = np.maximum(high, -low)
        scale *= np.float32(1.0 / (scheme.middle - 1))
        np.clip(scale, _SMALLEST_SCALE, _LARGEST_VALUE / np.float32(scheme.middle), out=scale)
        return scale, np.full_like(scale, scheme.middle)
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    # Halves, because the difference of two large values overflows.
    scale = np.divide(high * np.float32(0.5) - low * np.float32(0.5), scheme.levels / 2, dtype=np.float32)
    np.maximum(scale, _SMALLEST_SCALE, out=scale)
    zero = np.clip(np.rint(-low / scale), 0, scheme.levels)
    np.minimum(scale, _LARGEST_VALUE / np.maximum(zero, scheme.levels - zero), out=scale)
    return scale, zero


def _on_grid(piece: FloatArray, scheme: IntScheme, scale: FloatArray, zero: FloatArray) -> Quantized:
    """`piece` rounded to the nearest codes of a grid, once its scale is one that the scheme can store."""
    scale = _round_scale(scale) if scheme.scale_dtype == "float16" else scale
    codes = piece * (np.float32(1.0) / scale)
    codes += zero
    np.rint(codes, out=codes)
    return np.clip(codes, 0, scheme.levels, out=codes), scale, zero


def _round_scale(scale: FloatArray) -> FloatArray:
    """Return `scale` rounded to what bfloat16 and float16 both can hold, and at least the least float16.

    Raises:
        UnsupportedError: a scale is beyond float16.
    """
    bits = scale.view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    rounded = nearest.view(np.float32)
    if rounded.max(initial=0) > np.finfo(np.float16).max:
        raise UnsupportedError(f"a scale of {rounded.max():.6g} is beyond float16 (65504): keep the tensor in float32")
    return np.maximum(rounded.astype(np.float16).astype(np.float32), _SMALLEST_FLOAT16)


def _by_block(importance: FloatArray | None, k: int, block: int) -> FloatArray | None:
    """Return `importance` relative to its mean as [B, block]; None where all columns count alike."""
    if importance is None:
        return None
    if importance.shape != (k,):
        raise EdgepackError(f"importance has shape {tuple(importance.shape)}, expected ({k},): one number per column")
    if not np.isfinite(importance).all() or (importance < 0).any():
        raise EdgepackError("importance holds a negative, NaN or infinite value: expected mean squares")
    mean = max(float(importance.mean(dtype=np.float64)), 1e-30)
    relative: FloatArray = (importance / mean).astype(np.float32).reshape(-1, block)
    return relative


def _largest_magnitude(weight: FloatArray) -> float:
    """Return max |weight| (NaN where there is one) without a temporary of its size."""
    if weight.size == 0:
        return 0.0
    return max(float(weight.max()), -float(weight.min()))
