"""Quantization schemes: how a float32 matrix [N, K] becomes named byte arrays, and back.

A scheme owns its bytes. `nbytes` is the only size arithmetic of the project; the planner, the writers and the tests
call it. The byte layout is that of ONNX Runtime's MatMulNBits and GatherBlockQuantized operators:

    value = scale * (code - zero_point)

with unsigned codes packed little end first (4 bits: element 0 in the low nibble), one scale per `block` consecutive
elements of a row, and zero points packed along the blocks of a row the same way, each row padded to whole bytes.
Without zero points the implicit one is 2 ** (bits - 1).

Rows are independent: quantizing a slice of rows gives the same slice of every part, bit for bit, so callers may cut a
matrix into row chunks and hand them to threads. No object here holds state.

Letter legend: N rows, K columns, B blocks of a row, R rows of one cache-sized piece.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from edgepack.errors import EdgepackError, UnsupportedError
from edgepack.shown import shown
from edgepack.values import Frozen

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]
PartDtype = Literal["uint8", "float32", "float16"]

# Elements of one piece: float32 work buffers of this size stay in the second-level cache of phone and server cores.
_PIECE_ELEMENTS = 1 << 17
# The least magnitude of a float16 that is not zero.
_SMALLEST_FLOAT16 = np.float32(2.0**-24)
# 1 / _SMALLEST_SCALE is finite. A block whose range asks for less (all zeros, denormals) becomes zeros of this scale.
_SMALLEST_SCALE = np.float32(np.finfo(np.float32).tiny)
# A little under the largest float32, so that scale * (code - zero_point) never rounds to infinity.
_LARGEST_VALUE = np.float32(np.finfo(np.float32).max * (1 - 2.0**-20))
# Shares of a block's range that the search tries besides the whole range: coarse grids gain from deeper cuts.
_SHARES = {2: (0.85, 0.7, 0.55, 0.4), 4: (0.95, 0.9, 0.85, 0.8), 8: (0.98, 0.96)}


class Part(Frozen):
    """One array of a quantized matrix, as it stands in a file."""

    name: str
    dtype: PartDtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class FloatScheme(Frozen):
    """Values kept in floating point, of any shape."""

    kind: Literal["float"] = "float"
    dtype: Literal["float32", "float16"] = "float32"

    @property
    def name(self) -> str:
        """Short name for tables and file names, for example ``float32``."""
        return self.dtype

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """Return the one part ``values`` of a tensor of `shape`."""
        return (Part(name="values", dtype=self.dtype, shape=tuple(shape)),)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a tensor of `shape`."""
        return sum(part.nbytes for part in self.parts(shape))

    def quantize(self, weight: FloatArray, *, importance: FloatArray | None = None) -> dict[str, npt.NDArray[Any]]:
        """Return ``{"values": weight}`` in this scheme's dtype; float32 in, float32 out shares memory with `weight`.

        Raises:
            EdgepackError: a value is NaN or infinite.
            UnsupportedError: a value is outside the range of float16.
        """
        largest = _largest_magnitude(weight)
        if not math.isfinite(largest):
            raise EdgepackError("weight holds a NaN or infinite value")
        if self.dtype == "float16" and largest >= 65520.0:
            raise UnsupportedError(f"weight reaches {largest:.6g}, beyond float16 (65504): keep it in float32")
        return {"values": weight.astype(self.dtype, copy=False)}

    def dequantize(self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, ...]) -> FloatArray:
        """Return the float32 values of `parts` in `shape`."""
        _check_parts(self.parts(shape), parts)
        return parts["values"].astype(np.float32, copy=False)


class IntScheme(Frozen):
    """Unsigned integer codes with one scale, and if asked for one zero point, per block of a row.

    Attributes:
        bits: bits per code.
        block: elements that share a scale; a power of two, at least 16. None: one scale for a whole row, which is what
            other tools call per channel.
        zero_point: store a zero point per block, so that the codes cover [min, max] and not [-max, max].
        search: take a share of the scale that covers the block's range, by least weighted squared error. Of no use at
            8 bits.
        scale_dtype: type of the scales in the file. ``float16`` scales keep 8 significant bits, those that bfloat16
            has too: LiteRT stores them as the one and its kernels compute with the other.
    """

    kind: Literal["int"] = "int"
    bits: Literal[2, 4, 8]
    block: int | None
    zero_point: bool = False
    search: bool = False
    scale_dtype: Literal["float32", "float16"] = "float32"

    @field_validator("block")
    @classmethod
    def _power_of_two(cls, block: int | None) -> int | None:
        if block is not None and (block < 16 or block & (block - 1)):
            raise ValueError(f"block must be a power of two and at least 16, got {block}")
        return block

    @property
    def name(self) -> str:
        """Short name of the byte layout for tables, for example ``int4-b128-zp``."""
        block = "row" if self.block is None else f"b{self.block}"
        return f"int{self.bits}-{block}{'-zp' if self.zero_point else ''}"

    def block_of(self, shape: tuple[int, ...]) -> int:
        """Return how many elements of a matrix of `shape` [N, K] share a scale."""
        return shape[-1] if self.block is None else self.block

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether rows of `shape` [N, K] are whole blocks and whole bytes."""
        return shape[-1] % self.block_of(shape) == 0 and shape[-1] * self.bits % 8 == 0

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """Return the parts of a matrix of `shape` [N, K] in the order in which writers store them.

        ``codes`` uint8 [N, K * bits / 8], ``scales`` [N, K / block] and, with zero points, ``zero_points``
        uint8 [N, ceil(K / block * bits / 8)].

        Raises:
            UnsupportedError: `shape` is no matrix, or K is no multiple of the block.
        """
        if len(shape) != 2:
            raise UnsupportedError(f"scheme {self.name} packs matrices, got shape {tuple(shape)}: use a float scheme")
        n, k = shape
        block = self.block_of(shape)
        if not self.fits(shape):
            raise UnsupportedError(
                f"scheme {self.name}: {k} columns are no multiple of the block {block}: choose a smaller block"
            )
        blocks = k // block
        codes = Part(name="codes", dtype="uint8", shape=(n, k * self.bits // 8))
        scales = Part(name="scales", dtype=self.scale_dtype, shape=(n, blocks))
        if not self.zero_point:
            return (codes, scales)
        return (codes, scales, Part(name="zero_points", dtype="uint8", shape=(n, -(-blocks * self.bits // 8))))

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of all parts of a matrix of `shape` [N, K].

        Raises:
            UnsupportedError: as `parts`.
        """
        return sum(part.nbytes for part in self.parts(shape))

    def quantize(self, weight: FloatArray, *, importance: FloatArray | None = None) -> dict[str, npt.NDArray[Any]]:
        """Return the parts of `weight` by name.

        Args:
            weight: float32 [N, K], any strides; cast other dtypes before.
            importance: float32 [K], how much a squared error in each column counts in the search (mean square of the
                column's input). Without the search it has no effect.

        Raises:
            UnsupportedError: as `parts`.
            EdgepackError: a value is NaN or infinite, or `importance` has another length than K.
        """
        out = {part.name: np.empty(part.shape, part.dtype) for part in self.parts(weight.shape)}
        n, k = weight.shape
        block = self.block_of(weight.shape)
        blocks = k // block
        by_block = _by_block(importance, k, block) if self.search else None
        for rows in _pieces(n, k):
            piece = np.ascontiguousarray(weight[rows], dtype=np.float32).reshape(-1, blocks, block)
            scale, zero = self._fit(piece, by_block)
            codes = _round(piece, scale, zero, self.levels, np.empty_like(piece)).astype(np.uint8)
            out["codes"][rows] = _pack(codes.reshape(len(piece), k), self.bits)
            out["scales"][rows] = scale[..., 0]
            if self.zero_point:
                out["zero_points"][rows] = _pack(zero[..., 0].astype(np.uint8), self.bits)
        return out

    def dequantize(self, parts: Mapping[str, npt.NDArray[Any]], shape: tuple[int, ...]) -> FloatArray:
        """Return the float32 matrix [N, K] that `parts` stand for.

        Raises:
            UnsupportedError: as `parts`.
            EdgepackError: a part is missing or has another shape or dtype than `shape` asks for.
        """
        _check_parts(self.parts(shape), parts)
        n, k = shape
        blocks = k // self.block_of(shape)
        out = np.empty((n, blocks, self.block_of(shape)), np.float32)
        for rows in _pieces(n, k):
            piece = out[rows]
            piece[...] = _unpack(parts["codes"][rows], self.bits, k).reshape(piece.shape)
            if self.zero_point:
                piece -= _unpack(parts["zero_points"][rows], self.bits, blocks)[..., None].astype(np.float32)
            else:
                piece -= np.float32(self.middle)
            piece *= parts["scales"][rows][..., None]
        return out.reshape(n, k)

    @property
    def levels(self) -> int:
        """Largest code: 15 for 4 bits."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The implicit zero point of a scheme without zero points: 8 for 4 bits."""
        return 1 << (self.bits - 1)

    def _fit(self, piece: FloatArray, importance: FloatArray | None) -> tuple[FloatArray, FloatArray]:
        """Return scale and zero point, each float32 [R, B, 1], of `piece` [R, B, block]."""
        low, high = piece.min(axis=-1, keepdims=True), piece.max(axis=-1, keepdims=True)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise EdgepackError("weight holds a NaN or infinite value")
        scale, zero = self._grid(low, high)
        scale = self._search(piece, scale, zero, importance) if self.search else scale
        return (_round_scale(scale) if self.scale_dtype == "float16" else scale), zero

    def _search(
        self, piece: FloatArray, scale: FloatArray, zero: FloatArray, importance: FloatArray | None
    ) -> FloatArray:
        """Return the share of `scale` [R, B, 1] that has the least weighted squared error.

        It tries shares of the scale with the zero point kept, which clips both ends alike. An element weighs
        w^2 + mean(w^2) / 4 of its block: with equal weights the search clips large weights, and that costs more than it
        gains (docs/quantization.md).
        """
        unit = piece * (np.float32(1.0) / scale)  # steps of the whole range: squares of any input stay finite
        weight = unit * unit
        weight += np.einsum("rbk,rbk->rb", unit, unit)[..., None] * np.float32(0.25 / unit.shape[-1])
        if importance is not None:
            weight *= importance
        work, codes = np.empty_like(unit), np.empty_like(unit)

        def error(share: float) -> FloatArray:
            np.multiply(unit, np.float32(1.0 / share), out=work)
            np.add(work, zero, out=work)
            np.rint(np.clip(work, 0, self.levels, out=codes), out=codes)
            np.subtract(work, codes, out=work)
            np.square(work, out=work)
            total: FloatArray = np.einsum("rbk,rbk->rb", work, weight)[..., None]
            return total * np.float32(share * share)

        share, least = np.ones_like(scale), error(1.0)
        for tried in _SHARES[self.bits]:
            found = error(tried)
            np.copyto(share, np.float32(tried), where=found < least)
            np.minimum(least, found, out=least)
        return scale * share

    def _grid(self, low: FloatArray, high: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return scale and zero point of the grid that covers [low, high] and zero."""
        if not self.zero_point:
            scale = np.maximum(high, -low)
            scale *= np.float32(1.0 / (self.middle - 1))
            np.clip(scale, _SMALLEST_SCALE, _LARGEST_VALUE / np.float32(self.middle), out=scale)
            return scale, np.full_like(scale, self.middle)
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        # Halves, because the difference of two large values overflows.
        scale = np.divide(high * np.float32(0.5) - low * np.float32(0.5), self.levels / 2, dtype=np.float32)
        np.maximum(scale, _SMALLEST_SCALE, out=scale)
        zero = np.clip(np.rint(-low / scale), 0, self.levels)
        np.minimum(scale, _LARGEST_VALUE / np.maximum(zero, self.levels - zero), out=scale)
        return scale, zero


Scheme = Annotated[FloatScheme | IntScheme, Field(discriminator="kind")]


def _pieces(n: int, k: int) -> Iterator[slice]:
    """Yield slices of rows that hold about `_PIECE_ELEMENTS` elements each."""
    rows = max(1, _PIECE_ELEMENTS // max(k, 1))
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


def _round(piece: FloatArray, scale: FloatArray, zero: FloatArray, levels: int, out: FloatArray) -> FloatArray:
    """Return the codes of `piece`, as float32 whole numbers, in `out`."""
    np.multiply(piece, np.float32(1.0) / scale, out=out)
    out += zero
    np.rint(out, out=out)
    return np.clip(out, 0, levels, out=out)


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


def _pack(codes: ByteArray, bits: int) -> ByteArray:
    """Pack uint8 codes [R, K] into [R, ceil(K * bits / 8)], little end first, rows padded with zero bits."""
    per_byte = 8 // bits
    if per_byte == 1:
        return codes
    if codes.shape[1] % per_byte:
        codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per_byte)))
    codes = np.ascontiguousarray(codes)
    if bits == 4:
        pair = codes.view("<u2")
        wide = (pair >> 4) | pair
    else:
        four = codes.view("<u4")
        wide = (four >> 18) | (four >> 12) | (four >> 6) | four
    packed: ByteArray = wide.astype(np.uint8)
    return packed


def _unpack(packed: ByteArray, bits: int, k: int) -> ByteArray:
    """Return the uint8 codes [R, k] of `packed`."""
    per_byte = 8 // bits
    if per_byte == 1:
        return packed
    codes = np.empty((len(packed), packed.shape[1], per_byte), np.uint8)
    for i in range(per_byte):
        np.right_shift(packed, i * bits, out=codes[..., i])
    codes &= (1 << bits) - 1
    return codes.reshape(len(packed), -1)[:, :k]


def _largest_magnitude(weight: FloatArray) -> float:
    """Return max |weight| (NaN where there is one) without a temporary of its size."""
    if weight.size == 0:
        return 0.0
    return max(float(weight.max()), -float(weight.min()))


def _check_parts(expected: tuple[Part, ...], parts: Mapping[str, npt.NDArray[Any]]) -> None:
    """Raise EdgepackError unless `parts` holds exactly the arrays that `expected` lists."""
    for part in expected:
        array = parts.get(part.name)
        if array is None:
            raise EdgepackError(
                f"quantized part {shown(part.name)} is missing; got: {', '.join(sorted(parts)) or 'none'}"
            )
        if array.shape != part.shape or array.dtype != part.dtype:
            raise EdgepackError(
                f"quantized part {shown(part.name)}: expected {part.dtype} {part.shape}, "
                f"got {array.dtype} {array.shape}"
            )
