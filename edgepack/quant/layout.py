"""Quantization schemes: how the codes of a matrix [N, K] are laid out in named byte arrays, and what they stand for.

A scheme owns its bytes; which codes a weight gets is the matter of `rounding`. `nbytes` is the only size arithmetic of
the project; the planner, the writers and the tests call it. The byte layout is that of ONNX Runtime's MatMulNBits and
GatherBlockQuantized operators:

    value = scale * (code - zero_point)

with unsigned codes packed little end first (4 bits: element 0 in the low nibble), one scale per `block` consecutive
elements of a row, and zero points packed along the blocks of a row the same way, each row padded to whole bytes.
Without zero points the implicit one is 2 ** (bits - 1).

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
from edgepack.values import FloatArray, Frozen

ByteArray = npt.NDArray[np.uint8]
PartDtype = Literal["uint8", "float32", "float16"]

# Elements of one piece: float32 work buffers of this size stay in the second-level cache of phone and server cores.
_PIECE_ELEMENTS = 1 << 17


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
        scale_dtype: type of the scales in the file. ``float16`` scales keep 8 significant bits, those that bfloat16
            has too: LiteRT stores them as the one and its kernels compute with the other.
    """

    kind: Literal["int"] = "int"
    bits: Literal[2, 4, 8]
    block: int | None
    zero_point: bool = False
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

    def pack(self, codes: FloatArray, scale: FloatArray, zero: FloatArray) -> dict[str, npt.NDArray[Any]]:
        """Return the parts of some rows by name.

        Args:
            codes: whole numbers [R, B, block] from 0 to `levels`.
            scale: [R, B, 1], numbers that `scale_dtype` can hold.
            zero: whole numbers [R, B, 1] from 0 to `levels`; without zero points all of them `middle`, and not stored.
        """
        rows = len(codes)
        parts = {
            "codes": _pack(codes.astype(np.uint8).reshape(rows, -1), self.bits),
            "scales": scale[..., 0].astype(self.scale_dtype),
        }
        if self.zero_point:
            parts["zero_points"] = _pack(zero[..., 0].astype(np.uint8), self.bits)
        return parts

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
        for rows in pieces(n, k):
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


Scheme = Annotated[FloatScheme | IntScheme, Field(discriminator="kind")]


def pieces(n: int, k: int) -> Iterator[slice]:
    """Yield slices of rows that hold about `_PIECE_ELEMENTS` elements each."""
    rows = max(1, _PIECE_ELEMENTS // max(k, 1))
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


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
