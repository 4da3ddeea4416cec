"""The bytes of a calibration file: what its header says and where each statistic stands (docs/calibration.md).

One safetensors file. Of every input with K columns it has `rms`, float32 [K], and `second`, float16
[K * (K + 1) / 2]: the upper triangle, row by row, of the second moments divided by rms_i * rms_j.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from edgepack.calibration.inputs import ProductInput
from edgepack.model.spec import ModelSpec
from edgepack.text.overlap import Sketch
from edgepack.values import Frozen

FORMAT, VERSION = "edgepack-calibration", "1"
RMS, SECOND = "rms", "second"
F16_BYTES, F32_BYTES = 2, 4
_LENGTH_BYTES = 8
# Names in the checkpoint and what belongs to texts: they change no number of the decoder.
_WITHOUT_EFFECT = {"names", "model_type", "max_context_tokens", "bos_token_id", "eos_token_ids"}


class Header(Frozen):
    """What a calibration file says of itself.

    Attributes:
        family: `ModelSpec.family`.
        spec_sha256: see `spec_sha256`.
        checkpoint_sha256: see `edgepack.checkpoint.fingerprint`.
        text: ``builtin``, or the name of the file.
        text_sha256: of its content.
        sketch: of what the text says, to find it in the texts of a validation.
        tokens: of all sequences, start tokens included.
        sequence_tokens: of each sequence.
        first_weight: as many others the first position of a sequence counts as.
        inputs: the name of what it is multiplied with, by canonical name of every matrix.
    """

    family: str
    spec_sha256: str
    checkpoint_sha256: str
    text: str
    text_sha256: str
    sketch: Sketch
    tokens: int
    sequence_tokens: int
    first_weight: int
    inputs: dict[str, str]


def spec_sha256(spec: ModelSpec) -> str:
    """A sha256 of what decides the numbers of a decoder besides its weights."""
    content = json.dumps(spec.model_dump(mode="json", exclude=_WITHOUT_EFFECT), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def packed_values(columns: int) -> int:
    """How many values an upper triangle has, diagonal included."""
    return columns * (columns + 1) // 2


def packed_row(row: int, columns: int) -> int:
    """Where row `row` of an upper triangle begins, in values: row r has columns r to K - 1."""
    return row * columns - row * (row - 1) // 2


@dataclass(frozen=True, slots=True)
class Placed:
    """One tensor of the file; `offset_bytes` counts from the start of the file."""

    dtype: str
    shape: tuple[int]
    offset_bytes: int


@dataclass(frozen=True, slots=True)
class FileLayout:
    """A whole file before its statistics are known.

    Attributes:
        head: the length field and the header.
        tensors: by name.
        size_bytes: of the file.
    """

    head: bytes
    tensors: dict[str, Placed]
    size_bytes: int


def lay_out(header: Header, inputs: Iterable[ProductInput]) -> FileLayout:
    """Where everything stands: first all float32, so that each is aligned, then all float16."""
    columns = {read.name: read.columns for read in inputs}
    entries = [(f"{name}.{RMS}", "F32", k, k * F32_BYTES) for name, k in columns.items()]
    entries += [
        (f"{name}.{SECOND}", "F16", packed_values(k), packed_values(k) * F16_BYTES) for name, k in columns.items()
    ]
    metadata = {"format": FORMAT, "version": VERSION, "header": header.model_dump_json()}
    described: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, dtype, values, size in entries:
        described[name] = {"dtype": dtype, "shape": [values], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    head = len(text).to_bytes(_LENGTH_BYTES, "little") + text
    tensors, at = {}, len(head)
    for name, dtype, values, size in entries:
        tensors[name] = Placed(dtype, (values,), at)
        at += size
    return FileLayout(head, tensors, at)
