"""Grids: scale and zero point of a block, and the codes that are nearest on it.

Letter legend: as in `layout`.
"""

from __future__ import annotations

import numpy as np

from edgepack.errors import EdgepackError, UnsupportedError
from edgepack.quant.layout import IntScheme
from edgepack.values import FloatArray

# Codes [R, B, block], scale and zero point [R, B, 1], all float32: what `IntScheme.pack` takes.
Quantized = tuple[FloatArray, FloatArray, FloatArray]

# The least magnitude of a float16 that is not zero.
_SMALLEST_FLOAT16 = np.float32(2.0**-24)
# 1 / _SMALLEST_SCALE is finite. A block whose range asks for less (all zeros, denormals) becomes zeros of this scale.
_SMALLEST_SCALE = np.float32(np.finfo(np.float32).tiny)
# A little under the largest float32, so that scale * (code - zero_point) never rounds to infinity.
_LARGEST_VALUE = np.float32(np.finfo(np.float32).max * (1 - 2.0**-20))
# Shares of a block's range that are tried besides the whole range: coarse grids gain from deeper cuts.
_SHARES = {2: (0.85, 0.7, 0.55, 0.4), 4: (0.95, 0.9, 0.85, 0.8), 8: (0.98, 0.96)}


def covering(piece: FloatArray, scheme: IntScheme) -> tuple[FloatArray, FloatArray]:
    """Return scale and zero point, each [R, B, 1], of the grid that covers all of each block [R, B, block], and zero.

    Raises:
        EdgepackError: a value is NaN or infinite.
    """
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


def searched(
    unit: FloatArray, scheme: IntScheme, scale: FloatArray, zero: FloatArray, weight: FloatArray
) -> FloatArray:
    """Return the share of `scale` with the least weighted squared error; the zero point stays, so both ends are cut.

    Args:
        unit: a piece [R, B, block] in steps of `scale`, so that squares of any input stay finite.
        weight: of each squared error, any shape that broadcasts to that of `unit`.
    """
    work, codes = np.empty_like(unit), np.empty_like(unit)

    def error(share: float) -> FloatArray:
        np.multiply(unit, np.float32(1.0 / share), out=work)
        np.add(work, zero, out=work)
        np.rint(np.clip(work, 0, scheme.levels, out=codes), out=codes)
        np.subtract(work, codes, out=work)
        np.square(work, out=work)
        total: FloatArray = np.einsum("rbk,rbk->rb", work, np.broadcast_to(weight, work.shape))[..., None]
        return total * np.float32(share * share)

    share, least = np.ones_like(scale), error(1.0)
    for tried in _SHARES[scheme.bits]:
        found = error(tried)
        np.copyto(share, np.float32(tried), where=found < least)
        np.minimum(least, found, out=least)
    return scale * share


def storable(scale: FloatArray, scheme: IntScheme) -> FloatArray:
    """Return the nearest scales that `scheme` can store.

    Raises:
        UnsupportedError: a scale is beyond float16.
    """
    return _round_scale(scale) if scheme.scale_dtype == "float16" else scale


def on_grid(piece: FloatArray, scheme: IntScheme, scale: FloatArray, zero: FloatArray) -> Quantized:
    """`piece` rounded to the nearest codes of a grid, once its scale is one that the scheme can store."""
    scale = storable(scale, scheme)
    codes = piece * (np.float32(1.0) / scale)
    codes += zero
    np.rint(codes, out=codes)
    return np.clip(codes, 0, scheme.levels, out=codes), scale, zero


def _round_scale(scale: FloatArray) -> FloatArray:
    """Return `scale` rounded to what bfloat16 and float16 both can hold, and at least the least float16."""
    bits = scale.view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    rounded = nearest.view(np.float32)
    if rounded.max(initial=0) > np.finfo(np.float16).max:
        raise UnsupportedError(f"a scale of {rounded.max():.6g} is beyond float16 (65504): keep the tensor in float32")
    return np.maximum(rounded.astype(np.float16).astype(np.float32), _SMALLEST_FLOAT16)
