"""A TensorFlow Lite model under construction: subgraphs, operators, tensors, and where the bytes of weights stand.

Weights are not inside the flatbuffer, whose own offsets end at 2 GB, but behind it (`Buffer.offset`), where a
`WeightFile` places them. All subgraphs share them. Source: LiteRT's `schema.fbs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from edgepack.errors import EdgepackError
from edgepack.package.interface import Interface, TensorType
from edgepack.quant.layout import Part
from edgepack_converters.weights import PAGE_BYTES, Encode, Placement, StoredTensor, WeightFile, as_it_is

Op = schema.BuiltinOperator
FILE_IDENTIFIER = b"TFL3"
SCHEMA_VERSION = 3
TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "float16": schema.TensorType.FLOAT16,
    "int32": schema.TensorType.INT32,
    "uint8": schema.TensorType.UINT8,
    "int8": schema.TensorType.INT8,
    "int4": schema.TensorType.INT4,
    "int2": schema.TensorType.INT2,
    "bool": schema.TensorType.BOOL,
}


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of one subgraph: its index there, static shape and element type."""

    index: int
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class Outside:
    """Bytes that stand behind the flatbuffer: a part of a stored tensor, and how it is encoded there."""

    part: Part
    tensor: StoredTensor
    encode: Encode = as_it_is


class ModelFile:
    """Buffers, operator codes and subgraphs of one `.tflite` model."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.subgraphs: list[Subgraph] = []
        self._codes: dict[tuple[int, int], int] = {}
        self._buffers: list[Any] = [schema.BufferT()]
        self._outside: dict[int, Outside] = {}
        self._shared: dict[object, int] = {}

    def subgraph(self, name: str, interface: Interface) -> Subgraph:
        """Append a subgraph that has inputs and nothing else; it becomes the signature `name`."""
        graph = Subgraph(name, self, interface)
        for key, kind in interface.inputs.items():
            graph.inputs[key] = graph.tensor(f"{name}_{key}", kind.sizes, kind.dtype)
        self.subgraphs.append(graph)
        return graph

    def operator_code(self, code: int, version: int) -> int:
        """Index of an operator type, registered when first used."""
        return self._codes.setdefault((code, version), len(self._codes))

    def inline_buffer(self, array: npt.NDArray[Any]) -> int:
        """Index of a buffer inside the flatbuffer with the bytes of `array`; equal ones are one buffer."""
        return self._buffer(array.tobytes(), data=np.frombuffer(array.tobytes(), np.uint8))

    def outside_buffer(self, content: Outside) -> int:
        """Index of the buffer whose bytes stand behind the flatbuffer; equal ones are one buffer."""
        index = self._buffer(content)
        self._outside[index] = content
        return index

    def _buffer(self, key: object, **fields: Any) -> int:
        if key not in self._shared:
            self._shared[key] = len(self._buffers)
            self._buffers.append(schema.BufferT(**fields))
        return self._shared[key]

    def pack(self) -> tuple[bytes, list[Placement], int]:
        """The flatbuffer padded to whole pages, where weights go in the file that begins with it, and that file's size.

        Weights that no operator reads are left out.
        """
        model = schema.ModelT()
        model.version, model.description = SCHEMA_VERSION, self.description
        model.subgraphs = [graph.finish() for graph in self.subgraphs]
        model.signatureDefs = [graph.signature(i) for i, graph in enumerate(self.subgraphs)]
        model.operatorCodes = [_operator_code(code, version) for code, version in self._codes]
        model.buffers = self._buffers
        used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
        weights, placed = WeightFile("weights"), {}
        for index, content in self._outside.items():
            if index in used:
                placed[index] = weights.append(content.part, content.tensor, encode=content.encode)
                self._buffers[index].offset, self._buffers[index].size = 1, content.part.nbytes
        # Offsets have a fixed width: a first packing with any numbers tells where the flatbuffer ends.
        base = -(-len(_serialize(model)) // PAGE_BYTES) * PAGE_BYTES
        for index, placement in placed.items():
            self._buffers[index].offset = base + placement.offset
        packed = _serialize(model).ljust(base, b"\0")
        placements = [replace(place, offset=base + place.offset) for place in placed.values()]
        return packed, placements + _row_scales(packed, self.subgraphs), base + weights.size_bytes


@dataclass(eq=False, slots=True)
class Subgraph:
    """Tensors and operators of one signature. Operators whose results nobody needs are dropped at the end."""

    name: str
    model: ModelFile
    interface: Interface
    inputs: dict[str, Value] = field(default_factory=dict)
    outputs: dict[str, Value] = field(default_factory=dict)
    operators: list[Any] = field(default_factory=list)
    row_scales: dict[int, StoredTensor] = field(default_factory=dict)
    _tensors: list[Any] = field(default_factory=list)
    _constants: dict[object, Value] = field(default_factory=dict)

    def tensor(self, name: str, shape: Sequence[int], dtype: str = "float32", buffer: int = 0) -> Value:
        """Append a tensor; buffer 0 is the empty one, of values computed at run time."""
        item = schema.TensorT()
        item.name, item.shape, item.type, item.buffer = name, list(shape), TYPES[dtype], buffer
        item.hasRank = True
        self._tensors.append(item)
        return Value(len(self._tensors) - 1, tuple(shape), dtype)

    def give(self, results: Mapping[str, Value]) -> None:
        """Make those of `results` that the interface names the outputs of the signature.

        Raises:
            EdgepackError: one is missing or has another shape or type: a fault of the converter.
        """
        self.outputs = {name: results[name] for name in self.interface.outputs if name in results}
        found = {name: TensorType(value.dtype, value.shape) for name, value in self.outputs.items()}
        other = self.interface.difference(Interface(self.interface.inputs, found))
        if other is not None:
            raise EdgepackError(f"{self.model.description}, signature {self.name}: {other}: a fault of edgepack")

    def op(
        self,
        code: int,
        inputs: Sequence[Value],
        *shapes: Sequence[int],
        dtype: str = "float32",
        options: Any = None,
        version: int = 1,
    ) -> tuple[Value, ...]:
        """Append an operator with one output per shape and return them; input None is an optional one left out."""
        outputs = tuple(self.tensor(f"t{len(self._tensors)}", shape, dtype) for shape in shapes)
        item = schema.OperatorT()
        item.opcodeIndex = self.model.operator_code(code, version)
        item.inputs = [value.index for value in inputs]
        item.outputs = [value.index for value in outputs]
        if options is not None:
            item.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
            item.builtinOptions = options
        self.operators.append(item)
        return outputs

    def literal(self, values: Any, dtype: str) -> Value:
        """A small constant inside the flatbuffer; equal ones are one tensor."""
        array = np.asarray(values, dtype=dtype)
        key = (dtype, array.shape, array.tobytes())
        if key not in self._constants:
            buffer = self.model.inline_buffer(array)
            self._constants[key] = self.tensor(f"c{len(self._tensors)}", array.shape, dtype, buffer)
        return self._constants[key]

    def stored(self, name: str, shape: Sequence[int], dtype: str, content: Outside) -> Value:
        """A constant whose bytes stand behind the flatbuffer."""
        if content not in self._constants:  # not by name: one matrix may be stacked or folded in two ways
            self._constants[content] = self.tensor(name, shape, dtype, self.model.outside_buffer(content))
        return self._constants[content]

    def quantize_blocks(self, value: Value, scales: Value, block: int) -> None:
        """Give a constant [N, K] one scale for every `block` columns: `scales` float16 [N, K / block]."""
        details = schema.BlockwiseQuantizationT()
        details.scales, details.zeroPoints, details.blockSize = scales.index, -1, block
        parameters = schema.QuantizationParametersT()
        parameters.detailsType = schema.QuantizationDetails.BlockwiseQuantization
        parameters.details = details
        self._tensors[value.index].quantization = parameters

    def quantize_rows(self, value: Value, tensor: StoredTensor) -> None:
        """Give a constant [N, K] one scale a row; they are filled in when `tensor` is quantized."""
        parameters = schema.QuantizationParametersT()
        parameters.scale = np.ones(value.shape[0], np.float32)
        parameters.zeroPoint = np.zeros(value.shape[0], np.int64)
        self._tensors[value.index].quantization = parameters
        self.row_scales[value.index] = tensor

    def finish(self) -> Any:
        """The subgraph of the schema, with nothing in it that its outputs do not need."""
        alive, kept = {value.index for value in self.outputs.values()}, []
        for operator in reversed(self.operators):
            if alive.intersection(operator.outputs):
                kept.append(operator)
                alive.update(operator.inputs, operator.outputs)
        alive.update(value.index for value in self.inputs.values())
        scales = {i: index for i in alive if (index := _scales_index(self._tensors[i])) is not None}
        alive.update(scales.values())
        order = sorted(alive)
        new = {old: i for i, old in enumerate(order)}
        for operator in kept:
            operator.inputs = [new[i] for i in operator.inputs]
            operator.outputs = [new[i] for i in operator.outputs]
        for old, index in scales.items():
            self._tensors[old].quantization.details.scales = new[index]
        self.row_scales = {new[old]: tensor for old, tensor in self.row_scales.items() if old in new}
        graph = schema.SubGraphT()
        graph.name = self.name
        graph.tensors = [self._tensors[old] for old in order]
        graph.operators = kept[::-1]
        self.inputs = {name: Value(new[v.index], v.shape, v.dtype) for name, v in self.inputs.items()}
        self.outputs = {name: Value(new[v.index], v.shape, v.dtype) for name, v in self.outputs.items()}
        graph.inputs = [value.index for value in self.inputs.values()]
        graph.outputs = [value.index for value in self.outputs.values()]
        return graph

    def signature(self, index: int) -> Any:
        """The signature of the finished subgraph, which is number `index`."""
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = self.name, index
        signature.inputs = [_tensor_map(name, value) for name, value in self.inputs.items()]
        signature.outputs = [_tensor_map(name, value) for name, value in self.outputs.items()]
        return signature


def _row_scales(packed: bytes, subgraphs: Sequence[Subgraph]) -> list[Placement]:
    """Where the scales of tensors with one a row go: they alone stand inside the flatbuffer, in every subgraph anew."""
    start = np.frombuffer(packed, np.uint8).__array_interface__["data"][0]
    model, found = schema.Model.GetRootAs(packed), []
    for i, graph in enumerate(subgraphs):
        for index, tensor in graph.row_scales.items():
            vector = model.Subgraphs(i).Tensors(index).Quantization().ScaleAsNumpy()
            part = next(part for part in tensor.scheme.parts(tensor.shape) if part.name == "scales")
            found.append(Placement(part, vector.__array_interface__["data"][0] - start, tensor))
    return found


def _scales_index(tensor: Any) -> int | None:
    """Index of the tensor with the scales of a block-wise quantized one."""
    quantization = tensor.quantization
    blockwise = (
        quantization is not None and quantization.detailsType == schema.QuantizationDetails.BlockwiseQuantization
    )
    return quantization.details.scales if blockwise else None


def _tensor_map(name: str, value: Value) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, value.index
    return entry


def _operator_code(code: int, version: int) -> Any:
    item = schema.OperatorCodeT()
    item.builtinCode, item.version = code, version
    # The old field of one byte ends before the newer codes.
    item.deprecatedBuiltinCode = min(code, Op.PLACEHOLDER_FOR_GREATER_OP_CODES)
    return item


def _serialize(model: Any) -> bytes:
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=FILE_IDENTIFIER)
    return bytes(builder.Output())
