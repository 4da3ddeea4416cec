"""Graphs of `.tflite` models: shapes, constants, arithmetic, and the weights that stand behind the flatbuffer.

Batch is 1 and every shape is static. XNNPACK runs what is built here; operators that it does not take would cut a graph
in pieces (docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from edgepack.model.ops import Weight
from edgepack.planning.plan import TensorPlan
from edgepack.quant.layout import FloatScheme
from edgepack_converters.litert.flatbuffer import Op, Outside, Subgraph, Value
from edgepack_converters.weights import Encode, StoredTensor


def _flip(bits: int) -> Encode:
    def encode(codes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        flipped: npt.NDArray[Any] = codes ^ np.uint8(bits)
        return flipped

    return encode


M = TypeVar("M")
# Turn unsigned codes with the middle as zero into the two's complement that the flatbuffer's integer types have.
SIGNED = {bits: _flip(mask) for bits, mask in {2: 0xAA, 4: 0x88, 8: 0x80}.items()}


class GraphBuilder:
    """Appends operators to one subgraph; every helper returns its result.

    Args:
        graph: the subgraph.
        tensors: planned storage of every tensor, by canonical name.
    """

    def __init__(self, graph: Subgraph, tensors: Mapping[str, TensorPlan]) -> None:
        self.graph, self.tensors = graph, tensors
        self._memo: dict[object, Any] = {}

    def one(self, code: int, inputs: Sequence[Value], shape: Sequence[int], **more: Any) -> Value:
        """Append an operator with one result."""
        return self.graph.op(code, inputs, shape, **more)[0]

    def memo(self, key: object, make: Callable[[], M]) -> M:
        """What was made once under `key`; later calls share it."""
        if key not in self._memo:
            self._memo[key] = make()
        made: M = self._memo[key]
        return made

    def stacked(self, *weights: Weight) -> StoredTensor:
        """`weights` as one tensor, stacked along the rows."""
        return StoredTensor(tuple((self.tensors[weight.name], weight) for weight in weights))

    def part(self, tensor: StoredTensor, name: str) -> Value:
        """One part of a stored tensor as a constant, as its scheme makes it."""
        part = next(part for part in tensor.scheme.parts(tensor.shape) if part.name == name)
        return self.graph.stored(f"{tensor.name}.{name}", part.shape, part.dtype, Outside(part, tensor))

    def vector(self, weight: Weight) -> Value:
        """A vector parameter, which every plan has in float32."""
        return self.part(self.stacked(weight), "values")

    def operand(self, b: Value | float | Weight) -> Value:
        """The second operand of arithmetic: a value, a number or a vector parameter."""
        if isinstance(b, Weight):
            return self.vector(b)
        return b if isinstance(b, Value) else self.graph.literal(float(b), "float32")

    # -- arithmetic

    def add(self, a: Value, b: Value | float) -> Value:
        return self._binary(Op.ADD, a, self.operand(b), schema.AddOptionsT())

    def sub(self, a: Value, b: Value) -> Value:
        return self._binary(Op.SUB, a, b, schema.SubOptionsT())

    def div(self, a: Value, b: Value) -> Value:
        return self._binary(Op.DIV, a, b, schema.DivOptionsT())

    def mul(self, a: Value, b: Value | float | Weight) -> Value:
        return self._binary(Op.MUL, a, self.operand(b), schema.MulOptionsT())

    def _binary(self, code: int, a: Value, b: Value, options: Any) -> Value:
        return self.one(code, [a, b], np.broadcast_shapes(a.shape, b.shape), options=options)

    def unary(self, code: int, x: Value, options: Any = None) -> Value:
        """An element-wise operator."""
        return self.one(code, [x], x.shape, options=options)

    def mean_of(self, x: Value, axis: int) -> Value:
        """Mean over one axis, which stays with length 1."""
        options = schema.ReducerOptionsT()
        options.keepDims = True
        shape = [1 if i == axis % len(x.shape) else size for i, size in enumerate(x.shape)]
        return self.one(Op.MEAN, [x, self.graph.literal([axis % len(x.shape)], "int32")], shape, options=options)

    # -- shapes

    def shaped(self, x: Value, *shape: int) -> Value:
        """The same elements in another shape; -1 is what remains."""
        full = tuple(prod(x.shape) // -prod(shape) if size == -1 else size for size in shape)
        if full == x.shape:
            return x
        options = schema.ReshapeOptionsT()
        options.newShape = list(full)
        return self.one(Op.RESHAPE, [x, self.graph.literal(full, "int32")], full, dtype=x.dtype, options=options)

    def reshape(self, x: Value, *tail: int) -> Value:
        return self.shaped(x, *x.shape[:2], *tail)

    def transpose(self, x: Value, *order: int) -> Value:
        """Axes in another order; only a reshape where no axis longer than 1 moves."""
        shape = [x.shape[axis] for axis in order]
        long_axes = [axis for axis in order if x.shape[axis] > 1]
        if long_axes == sorted(long_axes):
            return self.shaped(x, *shape)
        options = schema.TransposeOptionsT()
        return self.one(Op.TRANSPOSE, [x, self.graph.literal(order, "int32")], shape, options=options)

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        """Parts one after another along `axis`."""
        options = schema.ConcatenationOptionsT()
        options.axis = axis % len(parts[0].shape)
        shape = list(parts[0].shape)
        shape[options.axis] = sum(part.shape[options.axis] for part in parts)
        return self.one(Op.CONCATENATION, parts, shape, dtype=parts[0].dtype, options=options)

    def piece(self, x: Value, axis: int, start: int, length: int) -> Value:
        """`length` elements of one axis from `start` on."""
        axis %= len(x.shape)
        begin = [start if i == axis else 0 for i in range(len(x.shape))]
        size = [length if i == axis else full for i, full in enumerate(x.shape)]
        inputs = [x, self.graph.literal(begin, "int32"), self.graph.literal(size, "int32")]
        return self.one(Op.SLICE, inputs, size, dtype=x.dtype, options=schema.SliceOptionsT())

    def cast(self, x: Value, dtype: str) -> Value:
        """Elements as another type."""
        return self.one(Op.CAST, [x], x.shape, dtype=dtype, options=schema.CastOptionsT())


class TableOps(GraphBuilder):
    """The operations of an embedding graph (`edgepack.model.ops.TableOps`); ids are int32 [1, S]."""

    def embedding(self, ids: Value, table: Weight) -> Value:
        scheme = self.tensors[table.name].scheme
        tensor = self.stacked(table)

        def rows(name: str) -> Value:
            stored = self.part(tensor, name)
            shape = (*ids.shape, stored.shape[1])
            return self.one(Op.GATHER, [stored, ids], shape, dtype=stored.dtype, options=schema.GatherOptionsT())

        if isinstance(scheme, FloatScheme):
            values = rows("values")
            return values if values.dtype == "float32" else self.cast(values, "float32")
        # No operator looks up block-wise codes, so bytes are looked up and taken apart: a few operators on one row.
        blocks = tensor.shape[1] // scheme.block_of(tensor.shape)
        codes = self._unpacked(rows("codes"), scheme.bits, tensor.shape[1])
        codes = self.shaped(codes, *ids.shape, blocks, -1)
        if scheme.zero_point:
            zeros = self._unpacked(rows("zero_points"), scheme.bits, blocks)
            centred = self.sub(codes, self.shaped(zeros, *ids.shape, blocks, 1))
        else:
            centred = self.add(codes, -float(scheme.middle))
        scales = rows("scales")
        scales = scales if scales.dtype == "float32" else self.cast(scales, "float32")
        return self.shaped(self.mul(centred, self.shaped(scales, *ids.shape, blocks, 1)), *ids.shape, tensor.shape[1])

    def _unpacked(self, packed: Value, bits: int, count: int) -> Value:
        """The `count` codes [1, S, count] in bytes [1, S, N], as float32, first code in the lowest bits."""
        rest = self.cast(packed, "float32")
        digits = []
        for _ in range(8 // bits - 1):
            higher = self.unary(Op.FLOOR, self.mul(rest, 0.5**bits))
            digits.append(self.sub(rest, self.mul(higher, 2.0**bits)))
            rest = higher
        if not digits:
            return rest
        lead = packed.shape
        apart = self.concat([self.shaped(digit, *lead, 1) for digit in [*digits, rest]], -1)
        flat = self.shaped(apart, *lead[:2], -1)
        return flat if flat.shape[2] == count else self.piece(flat, 2, 0, count)

    def ids_below(self, ids: Value, vocab_size: int) -> Value:
        inside = self.one(
            Op.LESS,
            [ids, self.graph.literal(vocab_size, "int32")],
            ids.shape,
            dtype="bool",
            options=schema.LessOptionsT(),
        )
        zeros = self.graph.literal(np.zeros(ids.shape), "int32")
        return self.one(Op.SELECT_V2, [inside, ids, zeros], ids.shape, dtype="int32", options=schema.SelectV2OptionsT())
