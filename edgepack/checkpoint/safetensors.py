"""One safetensors shard: its header read and checked before any weight, its values read as float32.

The file is read with `preadv` into caller or per-thread memory and never mapped: mapped pages count as resident memory
of the process, and an export that promises a peak has to be able to keep it.
Format: https://huggingface.co/docs/safetensors (8-byte little-endian header length, JSON header, data section).
"""

from __future__ import annotations

import math
import os
import stat
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import CheckpointError
from edgepack.reading import loads_strict
from edgepack.shown import printable, shown

READABLE_DTYPES = {"BF16": 2, "F16": 2, "F32": 4}
# Step counters, position ids and masks that some towers carry: never weights, so they are passed over.
_BOOKKEEPING_DTYPES = {"I64": 8, "BOOL": 1}
# Highest bit pattern that is still finite, for positive and for negative numbers, plus one.
_NOT_FINITE = {"BF16": (0x7F80, 0xFF80), "F16": (0x7C00, 0xFC00), "F32": (0x7F80_0000, 0xFF80_0000)}
# Of bytes and of values; products of some of these stay numbers that can be printed.
_MOST_COUNT = 1 << 64
_MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
# 256 Ki values keep the raw piece and its float32 result inside the second-level cache of current cores; smaller
# pieces pay numpy's call overhead, larger ones go out to memory twice.
_PIECE_VALUES = 1 << 18
_LFS_MARK = b"version https://git-lfs"

_F16_FIELDS = np.int32(-0x7000_2000)  # 0x8FFFE000: clears the copies of the sign bit
_F16_BIAS = np.float32(2.0**112)

_per_thread = threading.local()


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: `offset_bytes` counts from the start of the file `shard`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: Path
    offset_bytes: int
    size_bytes: int


class SafetensorsFile:
    """An open shard. `tensors` holds what can be read, `skipped` the dtype of every bookkeeping tensor.

    `metadata` is what stands in the header under ``__metadata__``, as it is.
    """

    def __init__(self, path: Path, *, location: Path | None = None) -> None:
        """Open `path` (read through `location` where that is the resolved file) and check its whole header.

        Raises:
            CheckpointError: the file cannot be read, or header and file contradict each other.
        """
        self.path = path
        try:
            # Checked before the open: opening a named pipe would wait for its writer.
            if not stat.S_ISREG(os.stat(location or path).st_mode):
                raise CheckpointError(f"{path}: not a regular file, expected a safetensors file")
            self._file = open(location or path, "rb", buffering=0)  # noqa: SIM115 (closed by close())
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
        try:
            header, data_start, file_bytes = self._read_header()
            self.metadata: Any = header.get("__metadata__")
            self.tensors, self.skipped = _check_header(header, self.path, data_start, file_bytes)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file descriptor; reading afterwards raises CheckpointError."""
        self._file.close()

    def read_values(self, info: TensorInfo, first_value: int, out: NDArray[np.float32]) -> None:
        """Fill the flat, contiguous `out` with the values of `info` from number `first_value` on.

        Safe to call from several threads at once.

        Raises:
            CheckpointError: the file ends early, cannot be read or is closed, or a value is not finite.
        """
        width = READABLE_DTYPES[info.dtype]
        for start in range(0, out.size, _PIECE_VALUES):
            piece = out[start : start + _PIECE_VALUES]
            position = info.offset_bytes + (first_value + start) * width
            if info.dtype == "F32":
                bits: NDArray[Any] = piece.view(np.uint32)
                self._read_exactly(bits.data.cast("B"), position, info.name)
            else:
                bits = _thread_buffer()[: piece.size]
                self._read_exactly(bits.data.cast("B"), position, info.name)
                _widen(bits, info.dtype, piece)
            if not _all_finite(bits, info.dtype):
                self._refuse_not_finite(info, first_value + start, bits)

    def _read_header(self) -> tuple[dict[str, Any], int, int]:
        """The header, where the data section begins, and the size of the file."""
        file_bytes = os.fstat(self._file.fileno()).st_size
        if file_bytes < 8:
            raise CheckpointError(f"{self.path}: {file_bytes} bytes are no safetensors file; download it again")
        prefix = bytearray(min(file_bytes, len(_LFS_MARK)))
        self._read_exactly(memoryview(prefix), 0, None)
        if prefix == _LFS_MARK:
            raise CheckpointError(f"{self.path}: a git-lfs pointer, not the weights; run `git lfs pull` in that folder")
        header_bytes = int.from_bytes(prefix[:8], "little")
        if header_bytes > min(file_bytes - 8, _MAX_HEADER_BYTES):
            raise CheckpointError(
                f"{self.path}: the header claims {header_bytes:,} bytes, the file has {file_bytes - 8:,} after its "
                f"length field (limit {_MAX_HEADER_BYTES:,}); truncated, or not a safetensors file"
            )
        raw = bytearray(header_bytes)
        self._read_exactly(memoryview(raw), 8, None)
        try:
            header = loads_strict(bytes(raw))
        except ValueError as error:
            raise CheckpointError(f"{self.path}: the header is not valid JSON: {error}") from error
        if not isinstance(header, dict):
            raise CheckpointError(f"{self.path}: the header is a JSON {type(header).__name__}, expected an object")
        return header, 8 + header_bytes, file_bytes

    def _read_exactly(self, buffer: memoryview, position: int, tensor: str | None) -> None:
        """Fill `buffer` from byte `position`; a call may return less than asked for, so it is repeated."""
        what = f"tensor {shown(tensor)}" if tensor is not None else "the header"
        done = 0
        try:
            while done < len(buffer):
                got = os.preadv(self._file.fileno(), [buffer[done:]], position + done)
                if got == 0:
                    raise CheckpointError(
                        f"{self.path}: {what} ends at byte {position + done:,}, expected {position + len(buffer):,}; "
                        "the file was truncated while in use"
                    )
                done += got
        except OSError as error:
            raise CheckpointError(f"{self.path}: {what} cannot be read: {error.strerror or error}") from error
        except ValueError as error:  # fileno() of a closed file
            raise CheckpointError(f"{self.path}: {what} cannot be read: the checkpoint is closed") from error

    def _refuse_not_finite(self, info: TensorInfo, first_value: int, bits: NDArray[Any]) -> NoReturn:
        positive, negative = _NOT_FINITE[info.dtype]
        index = int(np.argmax((bits >= negative) | ((bits >= positive) & (bits <= np.iinfo(bits.dtype).max // 2))))
        row = (first_value + index) // math.prod(info.shape[1:])
        raise CheckpointError(
            f"{self.path}: tensor {shown(info.name)} holds nan or inf in row {row}; every weight must be finite, "
            "download or save the checkpoint again"
        )


def _thread_buffer() -> NDArray[np.uint16]:
    """Return this thread's piece of raw 16-bit values: reused, so reading allocates nothing."""
    buffer: NDArray[np.uint16] | None = getattr(_per_thread, "buffer", None)
    if buffer is None:
        buffer = _per_thread.buffer = np.empty(_PIECE_VALUES, np.uint16)
    return buffer


def _widen(bits: NDArray[np.uint16], dtype: str, out: NDArray[np.float32]) -> None:
    """Write the 16-bit floats `bits` as float32: exact if finite, no temporaries."""
    if dtype == "BF16":  # the upper half of a float32
        out_bits = out.view(np.uint32)
        np.copyto(out_bits, bits)
        np.left_shift(out_bits, 16, out=out_bits)
        return
    # Sign-extended and shifted, sign, exponent and mantissa of an fp16 stand where a float32 has them; the exponent
    # bias differs by 112, also for subnormals. Five times as fast as numpy's cast (10 against 2 GB/s of float32).
    signed = out.view(np.int32)
    np.copyto(signed, bits.view(np.int16))
    np.left_shift(signed, 13, out=signed)
    np.bitwise_and(signed, _F16_FIELDS, out=signed)
    np.multiply(out, _F16_BIAS, out=out)


def _all_finite(bits: NDArray[Any], dtype: str) -> bool:
    """Tell whether no value is nan or inf, without a temporary.

    As signed numbers the positive floats come out on top, as unsigned numbers the negative ones, and nan and inf lie
    above all finite floats of their sign.
    """
    if bits.size == 0:
        return True
    positive, negative = _NOT_FINITE[dtype]
    signed = bits.view(np.int32 if dtype == "F32" else np.int16)
    return int(signed.max()) < positive and int(bits.max()) < negative


def _check_header(
    header: Mapping[str, Any], path: Path, data_start: int, file_bytes: int
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Return the readable tensors, and the dtype of the bookkeeping ones, of a header that fits its file."""
    tensors: dict[str, TensorInfo] = {}
    skipped: dict[str, str] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        where = f"{path}: tensor {shown(name)}"
        dtype, shape, begin, end = _check_entry(entry, where)
        if data_start + end > file_bytes:
            raise CheckpointError(
                f"{where} ends at byte {data_start + end:,}, the file has {file_bytes:,}; truncated, download it again"
            )
        spans.append((begin, end, name))
        if dtype in READABLE_DTYPES:
            tensors[name] = TensorInfo(name, dtype, shape, path, data_start + begin, end - begin)
        else:
            skipped[name] = dtype
    _refuse_overlap(spans, path)
    return tensors, skipped


def _check_entry(entry: object, where: str) -> tuple[str, tuple[int, ...], int, int]:
    """Return dtype, shape and the byte span in the data section of one header entry."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(f"{where}: expected an object with dtype, shape and data_offsets in the header")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    width = (READABLE_DTYPES | _BOOKKEEPING_DTYPES).get(dtype) if isinstance(dtype, str) else None
    if width is None:
        raise CheckpointError(
            f"{where} has dtype {printable(str(dtype), 40)}, expected {', '.join(READABLE_DTYPES)}; "
            "edgepack quantizes by itself, start from the unquantized checkpoint"
        )
    if not _is_counts(shape):
        raise CheckpointError(f"{where} has shape {shown(shape)}, expected a list of numbers of 0 or more")
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(
            f"{where} has data_offsets {shown(offsets)}, expected [begin, end] with 0 <= begin <= end"
        )
    begin, end = offsets
    expected = math.prod(shape) * width
    if end - begin != expected:
        raise CheckpointError(
            f"{where} has {end - begin:,} bytes, expected {expected:,} for shape {shown(shape)} in {dtype}"
        )
    return dtype, tuple(shape), begin, end


def _is_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < _MOST_COUNT for item in value)


def _refuse_overlap(spans: Iterable[tuple[int, int, str]], path: Path) -> None:
    ordered = sorted(span for span in spans if span[0] < span[1])
    for (_, end, name), (begin, _, next_name) in pairwise(ordered):
        if begin < end:
            raise CheckpointError(
                f"{path}: tensors {shown(name)} and {shown(next_name)} overlap in the file (byte {begin:,} belongs to "
                "both); download or save the checkpoint again"
            )
