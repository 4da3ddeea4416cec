"""The bundle of a LiteRT package, looked at before LiteRT or LiteRT-LM gets its path.

Refused is what reaches outside the file or a model, what has sizes that the file does not have, and what differs from
the manifest, by which prompts are cut. Layout: see `litert_lm_builder`, and its schema of the header.
The file is taken as it is now; later changes are not kept out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgepack.errors import PackageError
from edgepack.package.folder import Package
from edgepack.package.interface import DECODER, Interface
from edgepack.package.interface_litert import (
    LOOKUP,
    MODEL_TYPES,
    decoder_interface,
    decoder_signatures,
    row_shapes,
    table_interface,
)
from edgepack.planning.plan import Plan
from edgepack.shown import printable, shown
from edgepack.text.files import MOST_TOKENIZER_BYTES
from edgepack_runtimes.guards.flatbuffer import FlatBuffer, FlatBufferError, Positions, Tables
from edgepack_runtimes.guards.tflite import check_model

MAGIC, MAJOR_VERSION = b"LITERTLM", 1
END_AT, HEADER_AT, MOST_HEADER_BYTES = 24, 32, 1_000_000
MODEL, SENTENCEPIECE, METADATA, ZIPPED_TOKENIZER = 3, 4, 5, 6
# Most bytes of a section; Gemma's tokenizer.json has 33 MB.
MOST_BYTES = {METADATA: 4_000_000, SENTENCEPIECE: 100_000_000, ZIPPED_TOKENIZER: 100_000_000}
ROLES = {name: role for role, name in MODEL_TYPES.items()}
STRING_VALUE = 9
# Of `LlmMetadata`: start, stop, prompt templates, context, model type, chat template. Others would change the sampling.
METADATA_FIELDS, STOP_FIELD, CONTEXT_FIELD = frozenset({1, 2, 3, 5, 6, 7}), 2, 5
# Wire types of protocol buffers.
NUMBER, BYTES = 0, 2
# A computed value may be this many times the largest that the model's sizes suggest.
SLACK = 4


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the bundle: what it is, its bytes, and for a model its role."""

    kind: int
    begin: int
    end: int
    role: str = ""


def check_bundle(package: Package) -> None:
    """Check the header of the bundle, its sections, and the models in it.

    Raises:
        PackageError: it is damaged, or another bundle than the manifest says.
    """
    path, plan, spans = package.file(DECODER), package.manifest.plan, package.manifest.spans
    roles, files = {DECODER, *row_shapes(plan.spec)}, package.manifest.graphs
    if set(spans) != roles or set(files) != roles or len(set(files.values())) != 1:
        raise PackageError(
            f"{package.path}: the manifest's models are not {', '.join(sorted(roles))} of one file; "
            "export the package again"
        )
    try:
        data = np.asarray(np.memmap(path, np.uint8, "r"))
    except (OSError, ValueError) as error:
        raise PackageError(f"{path} cannot be read: {error}") from error
    where = ""
    signatures: dict[str, dict[str, Interface]] = {}
    try:
        sections = read_sections(data)
        found = {section.role: (section.begin, section.end - section.begin) for section in sections if section.role}
        if found != spans:
            raise FlatBufferError(f"it has its models at {found}, the manifest at {shown(dict(spans))}")
        for section in sections:
            _check_section(data, section, plan)
        for role, (offset, size) in spans.items():
            where = f" ({role})"
            signatures[role] = check_model(data[offset : offset + size], _largest_bytes(plan))
    except FlatBufferError as error:
        raise PackageError(f"{path}{where} is no bundle of edgepack: {error}; export the package again") from error
    _check_signatures(path, plan, signatures)


def read_sections(data: npt.NDArray[np.uint8]) -> list[Section]:
    """The sections that the header lists, which do not overlap.

    Raises:
        FlatBufferError: the header or a section is not inside the file, or of an unknown kind.
    """
    head = bytes(data[:HEADER_AT])
    if head[: len(MAGIC)] != MAGIC or int.from_bytes(head[8:12], "little") != MAJOR_VERSION:
        raise FlatBufferError(f"it does not begin as a bundle of version {MAJOR_VERSION}")
    end = int.from_bytes(head[END_AT:HEADER_AT], "little")
    if not HEADER_AT < end <= min(len(data), HEADER_AT + MOST_HEADER_BYTES):
        raise FlatBufferError(f"its header ends at byte {end}, the file has {len(data)}")
    root = FlatBuffer(data[HEADER_AT:end]).root()
    system = root.children(0, "system metadata")[0]
    _pairs(*system.tables(0, "entry"))
    objects = root.children(1, "list of sections")[0].tables(0, "section")[0]
    texts = _pairs(*objects.tables(0, "entry of a section"))
    kinds, begins, ends = objects.scalars(3, "u1"), objects.scalars(1, "<u8"), objects.scalars(2, "<u8")
    sections: list[Section] = []
    for i, (kind, begin, stop) in enumerate(zip(kinds.tolist(), begins.tolist(), ends.tolist(), strict=True)):
        if kind not in (MODEL, *MOST_BYTES):
            raise FlatBufferError(f"section {i} is of the kind {kind}, which our bundles never have")
        if not end <= begin < stop <= len(data):
            raise FlatBufferError(f"section {i} has bytes {begin} to {stop}, the file has {len(data)}")
        name = texts.get((i, "model_type"), "")
        if kind == MODEL and name not in ROLES:
            raise FlatBufferError(f"section {i} is a model of the unknown type '{printable(name)}'")
        sections.append(Section(kind, begin, stop, ROLES[name] if kind == MODEL else ""))
    _check_apart(sections)
    return sections


def _check_apart(sections: list[Section]) -> None:
    """Refuse sections that overlap, and a second one of any kind."""
    in_order = sorted(sections, key=lambda section: section.begin)
    for before, after in pairwise(in_order):
        if after.begin < before.end:
            raise FlatBufferError(f"two sections have byte {after.begin}")
    kinds = [(section.kind, section.role) for section in sections]
    if len(set(kinds)) != len(kinds):
        raise FlatBufferError("two sections are of the same kind")
    if sum(kind in (SENTENCEPIECE, ZIPPED_TOKENIZER) for kind, _ in kinds) > 1:
        raise FlatBufferError("it has two tokenizers")


def _pairs(entries: Tables, owners: Positions) -> dict[tuple[int, str], str]:
    """Texts of key-value entries, by the index of their owner and key."""
    keys = entries.texts(0)
    values, of = entries.children(2, "value of an entry")
    kinds = entries.scalars(1, "u1")
    if not np.array_equal(np.flatnonzero(kinds == STRING_VALUE), of) or len(of) != len(entries):
        raise FlatBufferError("the header has an entry that is no text")
    found = {(int(owner), key): text for owner, key, text in zip(owners, keys, values.texts(0), strict=True)}
    if len(found) != len(keys):
        raise FlatBufferError("the header has an entry twice")
    return found


def _check_section(data: npt.NDArray[np.uint8], section: Section, plan: Plan) -> None:
    size = section.end - section.begin
    if size > MOST_BYTES.get(section.kind, size):
        raise FlatBufferError(f"a section has {size} bytes, expected at most {MOST_BYTES[section.kind]}")
    if section.kind == ZIPPED_TOKENIZER:
        unpacked = int.from_bytes(bytes(data[section.begin : min(section.begin + 8, section.end)]), "little")
        if unpacked > MOST_TOKENIZER_BYTES:
            raise FlatBufferError(f"its tokenizer unpacks to {unpacked} bytes, expected at most {MOST_TOKENIZER_BYTES}")
    if section.kind == METADATA:
        _check_metadata(bytes(data[section.begin : section.end]), plan)


def _check_metadata(content: bytes, plan: Plan) -> None:
    """Check the fields of `LlmMetadata`, and that its context is the manifest's."""
    found: dict[int, int | None] = {}
    for number, value in _fields(content):
        if number not in METADATA_FIELDS:
            raise FlatBufferError(f"its metadata has field {number}, which our bundles never have")
        if number in found and number != STOP_FIELD:
            raise FlatBufferError(f"its metadata has field {number} twice")
        found[number] = value
    if (context := found.get(CONTEXT_FIELD)) != plan.context_tokens:
        raise FlatBufferError(f"context_tokens is {context} where the manifest says {plan.context_tokens}")


def _fields(content: bytes) -> Iterator[tuple[int, int | None]]:
    """Number and value of every field of a protocol buffer that has numbers and texts or messages (None) alone."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        value, at = _varint(content, at)
        kind, at = key & 7, at + (value if key & 7 == BYTES else 0)
        if kind not in (NUMBER, BYTES) or at > len(content):
            raise FlatBufferError(f"field {key >> 3} of its metadata is of another kind, or has no end")
        yield key >> 3, value if kind == NUMBER else None


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and what stands behind it."""
    for i, byte in enumerate(content[at : at + 10]):
        if byte < 128:
            return sum((part & 127) << 7 * j for j, part in enumerate(content[at : at + i + 1])), at + i + 1
    raise FlatBufferError("its metadata has a number without an end")


def _largest_bytes(plan: Plan) -> int:
    """What the largest computed value of the plan's model may need."""
    spec, n, total = plan.spec, plan.chunk_tokens, plan.context_tokens + plan.chunk_tokens
    streams = spec.altup.num_inputs if spec.altup else 1
    widest = max(max(layer.ffn_width for layer in spec.layers), streams * spec.hidden_size)
    widest = max(widest, len(spec.layers) * (spec.ple.dim if spec.ple else 0))
    heads = max(attention.num_heads * (total + attention.head_dim) for attention in spec.attention.values())
    cache = max(attention.kv_width * total for attention in spec.attention.values())
    return SLACK * 4 * max(n * max(widest, heads), spec.vocab_size, cache)


def _check_signatures(path: Path, plan: Plan, found: dict[str, dict[str, Interface]]) -> None:
    """Compare inputs and outputs of every signature with what the manifest's model has."""
    expected = {role: {LOOKUP: table_interface(plan.spec, role)} for role in row_shapes(plan.spec)}
    expected[DECODER] = {
        name: decoder_interface(plan.spec, name, n, plan.context_tokens) for name, n in decoder_signatures(plan).items()
    }
    for role, signatures in expected.items():
        for name in sorted(signatures.keys() ^ found[role].keys()):
            raise PackageError(
                f"{path}: signature {printable(name)} of {role} is in the file or in the manifest, not in both; "
                "export it again"
            )
        for name, interface in signatures.items():
            if other := interface.difference(found[role][name]):
                raise PackageError(f"{path}: {role} {name}: {other}; export the package again")
