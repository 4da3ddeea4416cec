"""The `.litertlm` container: a header that lists sections, each on a block of its own.

Same layout as Google's `litert_lm_builder`, whose header schema is used here, but with the same bytes every time (it
stamps a random id and the time) and without a copy of every section on disk first.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import flatbuffers
import numpy as np
from litert_lm_builder import litertlm_core as core
from litert_lm_builder import litertlm_header_schema_py_generated as schema

from edgepack.quant.layout import Part
from edgepack_converters.weights import Placement

Kind = schema.AnySectionDataType


@dataclass(frozen=True, slots=True)
class Section:
    """One section: what it begins with, and the weights behind that, at offsets from its first byte.

    Attributes:
        kind: a value of `AnySectionDataType`.
        items: its entry in the header, a key and a text each.
        size_bytes: all of it.
    """

    kind: int
    content: bytes
    items: Mapping[str, str] = field(default_factory=dict)
    placements: Sequence[Placement] = ()
    size_bytes: int = 0

    @property
    def length(self) -> int:
        """Size of the whole section in bytes."""
        return max(self.size_bytes, len(self.content))


@dataclass(frozen=True, slots=True)
class Container:
    """All of a file: its size, where everything stands in it, and the first byte of every section."""

    size_bytes: int
    placements: tuple[Placement, ...]
    offsets: tuple[int, ...]


def arrange(sections: Sequence[Section]) -> Container:
    """Give every section its place and write the header."""
    first = _blocks(core.HEADER_BEGIN_BYTE_OFFSET + len(_header(sections, [1] * len(sections))))
    offsets, end = [], first
    for section in sections:
        offsets.append(end)
        end = _blocks(end + section.length)
    placements = [_bytes_at(0, _preamble(sections, offsets))]
    for section, offset in zip(sections, offsets, strict=True):
        placements.append(_bytes_at(offset, section.content))
        placements += [replace(placement, offset=offset + placement.offset) for placement in section.placements]
    return Container(offsets[-1] + sections[-1].length, tuple(placements), tuple(offsets))


def compressed(content: bytes) -> bytes:
    """A tokenizer as the container has it: its size, 8 bytes, and a zlib stream."""
    return len(content).to_bytes(8, "little") + zlib.compress(content, 9)


def _blocks(offset: int) -> int:
    block: int = core.BLOCK_SIZE
    return -(-offset // block) * block


def _bytes_at(offset: int, content: bytes) -> Placement:
    array = np.frombuffer(content, np.uint8)
    return Placement(Part(name="content", dtype="uint8", shape=array.shape), offset, content=array)


def _preamble(sections: Sequence[Section], offsets: Sequence[int]) -> bytes:
    header = _header(sections, offsets)
    versions = (core.LITERTLM_MAJOR_VERSION, core.LITERTLM_MINOR_VERSION, core.LITERTLM_PATCH_VERSION)
    start: bytes = core.HEADER_MAGIC_BYTES + b"".join(version.to_bytes(4, "little") for version in versions)
    start = start.ljust(core.HEADER_END_LOCATION_BYTE_OFFSET, b"\0")
    end: int = core.HEADER_BEGIN_BYTE_OFFSET + len(header)
    return start + end.to_bytes(8, "little") + header


def _header(sections: Sequence[Section], offsets: Sequence[int]) -> bytes:
    objects = []
    for section, offset in zip(sections, offsets, strict=True):
        entry = schema.SectionObjectT()
        entry.items = [_entry(key, value) for key, value in section.items.items()]
        entry.dataType, entry.beginOffset, entry.endOffset = section.kind, offset, offset + section.length
        objects.append(entry)
    metadata = schema.LiteRTLMMetaDataT()
    metadata.systemMetadata = schema.SystemMetadataT(entries=[_entry("Authors", "edgepack")])
    metadata.sectionMetadata = schema.SectionMetadataT(objects=objects)
    builder = flatbuffers.Builder(1 << 14)
    builder.Finish(metadata.Pack(builder))
    return bytes(builder.Output())


def _entry(key: str, value: str) -> Any:
    return schema.KeyValuePairT(key=key, value=schema.StringValueT(value), valueType=schema.VData.StringValue)
