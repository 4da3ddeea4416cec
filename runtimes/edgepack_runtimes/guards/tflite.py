"""The structure of one LiteRT model: every offset, index and size, before the native library follows them.

Slots are those of LiteRT's `schema.fbs`. What operators make of their inputs is LiteRT's to check.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgepack.package.interface import Interface, TensorType
from edgepack_runtimes.guards.flatbuffer import FlatBuffer, FlatBufferError, Positions, Tables, Vectors, article

# The operators of our converters: number in the schema, and how many inputs (0: any number). None of them runs another
# subgraph, opens a file or keeps state, and LiteRT crashes on some that lack an input.
OPERATORS = {
    "ADD": (0, 2),
    "CONCATENATION": (2, 0),
    "FLOOR": (8, 1),
    "FULLY_CONNECTED": (9, 2),
    "MUL": (18, 2),
    "RELU": (19, 1),
    "RESHAPE": (22, 2),
    "SOFTMAX": (25, 1),
    "TANH": (28, 1),
    "GATHER": (36, 2),
    "TRANSPOSE": (39, 2),
    "MEAN": (40, 2),
    "SUB": (41, 2),
    "DIV": (42, 2),
    "CAST": (53, 1),
    "MAXIMUM": (55, 2),
    "MINIMUM": (57, 2),
    "LESS": (58, 2),
    "GREATER_EQUAL": (62, 2),
    "SLICE": (65, 3),
    "SIN": (66, 1),
    "SQRT": (75, 1),
    "RSQRT": (76, 1),
    "REDUCE_MAX": (82, 2),
    "FLOOR_MOD": (95, 2),
    "COS": (108, 1),
    "SELECT_V2": (123, 3),
    "BATCH_MATMUL": (126, 2),
    "GELU": (150, 1),
    "DYNAMIC_UPDATE_SLICE": (151, 3),
}
# Options that hold a vector, by their number in the union: the slot, and the width of an element.
OPTION_VECTORS = {8: (5, 1), 17: (0, 4)}
FLOAT16 = 1
# float32, float16, int32, uint8, int64, bool, int8, int4, int2
TYPE_BITS = {0: 32, 1: 16, 2: 32, 3: 8, 4: 64, 6: 8, 9: 8, 17: 4, 19: 2}
SCHEMA_VERSION = 3
MOST_DIMENSIONS = 8
BLOCKWISE = 2
TYPE_NAMES = {0: "float32", 2: "int32"}


@dataclass(frozen=True, slots=True)
class Tensors:
    """Tensors of all subgraphs, those of the first one first.

    Attributes:
        starts: index of the first tensor of every subgraph, and behind the last one.
        shapes: sizes, filled up with ones.
        ranks: number of dimensions.
        types: element types of the schema.
    """

    starts: Positions
    shapes: Positions
    ranks: Positions
    types: Positions

    def index(self, subgraphs: Positions, numbers: Positions, what: str) -> Positions:
        """Indices here of tensors by their numbers in `subgraphs`."""
        counts = np.diff(self.starts)[subgraphs]
        wrong = (numbers < 0) | (numbers >= counts)
        if wrong.any():
            raise FlatBufferError(f"{what} names tensor {numbers[wrong][0]} of {counts[wrong][0]}")
        return self.starts[subgraphs] + numbers

    def kind(self, index: int) -> TensorType:
        """Element type and shape of one tensor."""
        number = int(self.types[index])
        return TensorType(
            TYPE_NAMES.get(number, f"type {number}"), tuple(self.shapes[index, : self.ranks[index]].tolist())
        )


def check_model(data: npt.NDArray[np.uint8], largest_bytes: int) -> dict[str, Interface]:
    """Check a model and return inputs and outputs of its signatures.

    Args:
        data: the model with the weights behind it, mapped.
        largest_bytes: what a tensor that is computed may have.

    Raises:
        FlatBufferError: something is outside, too large or of a kind that our models never have.
    """
    buffer = FlatBuffer(data)
    model = buffer.root(b"TFL3")
    if (version := model.scalars(0, "<u4")[0]) != SCHEMA_VERSION:
        raise FlatBufferError(f"it has schema version {version}, expected {SCHEMA_VERSION}")
    _refuse(model, "model", {8: "external buffers", 9: "external buffers"})
    model.strings(3)
    model.vectors(5, 4)
    codes = _check_codes(model.tables(1, "operator code")[0])
    sizes = _check_buffers(model.tables(4, "buffer")[0], len(data))
    metadata = model.tables(6, "metadata")[0]
    metadata.strings(0)
    _below(metadata.scalars(1, "<u4"), len(sizes), "metadata", "buffer")
    graphs = model.tables(2, "subgraph")[0]
    graphs.strings(4)
    tensors = _check_tensors(graphs, sizes, largest_bytes)
    for slot, what in ((1, "input"), (2, "output")):
        values = graphs.vectors(slot, 4)
        tensors.index(values.owners(), _numbers(buffer, values), f"an {what} of a subgraph")
    _check_operators(graphs, tensors, codes)
    return _signatures(model.tables(7, "signature")[0], len(graphs), tensors)


def _refuse(tables: Tables, what: str, slots: dict[int, str]) -> None:
    for slot, name in slots.items():
        if len(tables.has(slot)):
            raise FlatBufferError(f"{article(what)} has {name}, which our models never have")


def _below(numbers: Positions, count: int, what: str, of: str) -> None:
    wrong = (numbers < 0) | (numbers >= count)
    if wrong.any():
        raise FlatBufferError(f"{article(what)} names {of} {numbers[wrong][0]} of {count}")


def _numbers(buffer: FlatBuffer, vectors: Vectors) -> Positions:
    """All elements of vectors of int32."""
    return buffer.read(vectors.elements(4), "<i4")


def _check_codes(codes: Tables) -> Positions:
    _refuse(codes, "operator code", {1: "an operator of its own"})
    found = np.maximum(codes.scalars(0, "i1"), codes.scalars(3, "<i4"))
    unknown = found[~np.isin(found, [code for code, _ in OPERATORS.values()])]
    if len(unknown):
        raise FlatBufferError(f"operator {unknown[0]} of LiteRT is none that our models have")
    return found


def _check_buffers(buffers: Tables, size: int) -> Positions:
    """Bytes of every buffer."""
    inline, offsets, sizes = buffers.vectors(0, 1).lengths, buffers.scalars(1, "<u8"), buffers.scalars(2, "<u8")
    wrong = (offsets < 0) | (sizes < 0) | (offsets > size) | (sizes > size) | (offsets + sizes > size)
    wrong |= ((offsets > 1) != (sizes > 0)) | ((sizes > 0) & (inline > 0))
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise FlatBufferError(
            f"buffer {at} has {int(sizes[at]) % 2**64} bytes at {int(offsets[at]) % 2**64}, the model has {size} in all"
        )
    return inline + sizes


def _check_tensors(graphs: Tables, buffer_sizes: Positions, largest_bytes: int) -> Tensors:
    tables, owners = graphs.tables(0, "tensor")
    names = {6: "sparsity", 7: "a shape signature", 9: "variants", 10: "an external buffer"}
    _refuse(tables, "tensor", names)
    tables.strings(3)
    starts = np.searchsorted(owners, np.arange(len(graphs) + 1))
    vectors = tables.vectors(0, 4)
    if (vectors.lengths > MOST_DIMENSIONS).any():
        raise FlatBufferError(f"a tensor has {vectors.lengths.max()} dimensions, expected at most {MOST_DIMENSIONS}")
    shapes = np.ones((len(tables), MOST_DIMENSIONS), np.int64)
    shapes[np.arange(MOST_DIMENSIONS) < vectors.lengths[:, None]] = _numbers(graphs.buffer, vectors)
    tensors = Tensors(starts, shapes, vectors.lengths, tables.scalars(1, "i1"))
    if not np.isin(tensors.types, list(TYPE_BITS)).all():
        raise FlatBufferError("a tensor has an element type that our models never have")
    bits = np.array([TYPE_BITS.get(kind, 0) for kind in range(max(TYPE_BITS) + 1)])[tensors.types]
    needed = np.ceil(shapes.astype(float).prod(1) * bits / 8)  # float64 is exact below 2 ** 53, far above any limit
    numbers = tables.scalars(2, "<u4")
    _below(numbers, len(buffer_sizes), "tensor", "buffer")
    given = buffer_sizes[numbers]
    wrong = (shapes < 1).any(1) | np.where(given > 0, needed != given, needed > largest_bytes)
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        shape, limit = shapes[at, : vectors.lengths[at]].tolist(), f"its buffer has {given[at]}"
        if not given[at]:
            limit = f"the manifest's model needs at most {largest_bytes} for one that is computed"
        raise FlatBufferError(f"a tensor has the shape {shape}, {needed[at]:.0f} bytes, but {limit}")
    _check_quantization(tables, owners, tensors)
    return tensors


def _check_quantization(tables: Tables, graphs: Positions, tensors: Tensors) -> None:
    found, owners = tables.children(4, "quantization")
    for slot in (0, 1):
        found.vectors(slot, 4)
    scales, zeros = found.vectors(2, 4).lengths, found.vectors(3, 8).lengths
    axes = found.scalars(6, "<i4")
    _below(axes, MOST_DIMENSIONS, "quantization", "dimension")
    wrong = (scales > 1) & (scales != tensors.shapes[owners, axes])
    if wrong.any() or ((zeros != scales) & (zeros != 0)).any():
        raise FlatBufferError("a tensor has another number of scales or zero points than rows")
    details, of = found.children(5, "block quantization")
    kinds = found.scalars(4, "u1")
    if not np.array_equal(np.flatnonzero(kinds), of) or (kinds[of] != BLOCKWISE).any():
        raise FlatBufferError("a tensor has a quantization that our models never have")
    _refuse(details, "block quantization", {3: "a block shape"})
    blocks, zero_points = details.scalars(2, "<i4"), details.scalars(1, "<i4")
    codes = owners[of]
    values = tensors.index(graphs[codes], details.scalars(0, "<i4"), "a block quantization")
    expected = tensors.shapes[codes].copy()
    if (blocks < 1).any() or (zero_points != -1).any() or (tensors.ranks[codes] != 2).any():
        raise FlatBufferError("a block quantization has no blocks, zero points, or no matrix")
    odd = expected[:, 1] % blocks != 0
    expected[:, 1] //= blocks
    if odd.any() or (tensors.shapes[values] != expected).any() or (tensors.types[values] != FLOAT16).any():
        raise FlatBufferError("the scales of a block quantization do not fit its matrix")


def _check_operators(graphs: Tables, tensors: Tensors, codes: Positions) -> None:
    operators, owners = graphs.tables(3, "operator")
    names = {5: "options of its own", 7: "state", 8: "intermediates", 9: "options of its own", 12: "StableHLO options"}
    _refuse(operators, "operator", names)
    numbers = operators.scalars(0, "<u4")
    _below(numbers, len(codes), "operator", "operator code")
    inputs, outputs = operators.vectors(1, 4), operators.vectors(2, 4)
    for what, values in (("input", inputs), ("output", outputs)):
        tensors.index(owners[values.owners()], _numbers(graphs.buffer, values), f"an operator's {what}")
    wanted = dict(OPERATORS.values())
    counts = np.array([wanted[code] for code in codes.tolist()], np.int64)[numbers]
    counts = np.where(counts > 0, counts, np.maximum(inputs.lengths, 1))
    wrong = (inputs.lengths != counts) | (outputs.lengths != 1)
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise FlatBufferError(
            f"operator {codes[numbers[at]]} has {inputs.lengths[at]} inputs and {outputs.lengths[at]} outputs: "
            f"expected {counts[at]} and 1"
        )
    options, of = operators.children(4, "operator options")
    options.check_fields()
    kinds = operators.scalars(3, "u1")[of]
    for kind, (slot, width) in OPTION_VECTORS.items():
        Tables(graphs.buffer, options.positions[kinds == kind], "operator options").vectors(slot, width)


def _signatures(tables: Tables, graphs: int, tensors: Tensors) -> dict[str, Interface]:
    indices = tables.scalars(4, "<u4")
    _below(indices, graphs, "signature", "subgraph")
    keys = tables.texts(2)
    if len(set(keys)) != len(keys):
        raise FlatBufferError("two signatures have the same name")
    both: list[list[dict[str, TensorType]]] = []
    for slot in (0, 1):
        maps, owners = tables.tables(slot, "tensor of a signature")
        at = tensors.index(indices[owners], maps.scalars(1, "<u4"), "a signature")
        named: list[dict[str, TensorType]] = [{} for _ in keys]
        for owner, name, i in zip(owners.tolist(), maps.texts(0), at.tolist(), strict=True):
            if name in named[owner]:
                raise FlatBufferError("two tensors of a signature have the same name")
            named[owner][name] = tensors.kind(i)
        both.append(named)
    return {key: Interface(*sides) for key, *sides in zip(keys, *both, strict=True)}
