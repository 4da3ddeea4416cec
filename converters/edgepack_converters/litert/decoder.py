"""The decoder's operations as LiteRT operators, chosen so that XNNPACK takes the whole graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgepack.model.ops import Weight
from edgepack.model.spec import ModelSpec
from edgepack.package.interface import EMBED
from edgepack.package.interface_litert import PER_LAYER_EMBED, ROWS
from edgepack.planning.plan import TensorPlan
from edgepack.quant.layout import FloatScheme
from edgepack_converters.litert.builder import SIGNED, TableOps
from edgepack_converters.litert.flatbuffer import Op, Outside, Subgraph, Value
from edgepack_converters.weights import stackable


class DecoderOps(TableOps):
    """The operations of a decoder on the values of a subgraph (`edgepack.model.ops.Ops`), attention aside.

    Args:
        graph: it has the inputs of the signature already.
        tensors: see `GraphBuilder`.
        spec: the model.
        positions: S.
    """

    def __init__(self, graph: Subgraph, tensors: Mapping[str, TensorPlan], spec: ModelSpec, positions: int) -> None:
        super().__init__(graph, tensors)
        self.spec, self.positions = spec, positions
        self.embeds, self.per_layer = graph.inputs[ROWS[EMBED]], graph.inputs.get(ROWS[PER_LAYER_EMBED])

    # -- products and norms

    def linear(self, x: Value, matrix: Weight) -> Value:
        return self._product(x, matrix)

    def linears(self, x: Value, matrices: Sequence[Weight]) -> Sequence[Value]:
        outputs: list[Value] = []
        for group in stackable(matrices, self.tensors):
            outputs += self.split(self._product(x, *group), [self.tensors[matrix.name].shape[0] for matrix in group])
        return outputs

    def split(self, x: Value, sizes: Sequence[int]) -> Sequence[Value]:
        """Pieces of the last axis."""
        if len(sizes) == 1:
            return [x]
        parts, start = [], 0
        for size in sizes:
            parts.append(self.piece(x, -1, start, size))
            start += size
        return parts

    def _product(self, x: Value, *matrices: Weight) -> Value:
        tensor = self.stacked(*matrices)
        scheme, (rows, _) = tensor.scheme, tensor.shape
        if isinstance(scheme, FloatScheme):
            weight = self.part(tensor, "values")
        else:
            codes = next(part for part in scheme.parts(tensor.shape) if part.name == "codes")
            content = Outside(codes, tensor, SIGNED[scheme.bits])
            weight = self.graph.stored(tensor.name, tensor.shape, f"int{scheme.bits}", content)
            if scheme.block is None:
                self.graph.quantize_rows(weight, tensor)
            else:
                self.graph.quantize_blocks(weight, self.part(tensor, "scales"), scheme.block)
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        options.asymmetricQuantizeInputs = not isinstance(scheme, FloatScheme)
        return self.one(Op.FULLY_CONNECTED, [x, weight], (*x.shape[:-1], rows), options=options)

    def rms_norm(self, x: Value, weight: Weight, eps: float) -> Value:
        return self.mul(self.normed(x, eps), weight)

    def normed(self, x: Value, eps: float) -> Value:
        """``x / sqrt(mean(x^2) + eps)`` over the last axis."""
        power = self.add(self.mean_of(self.mul(x, x), -1), eps)
        return self.mul(x, self.unary(Op.RSQRT, power))

    def add_norm(self, a: Value, b: Value, weight: Weight, eps: float) -> tuple[Value, Value]:
        total = self.add(a, b)
        return total, self.rms_norm(total, weight, eps)

    def rms(self, x: Value, floor: float) -> Value:
        power = self.mean_of(self.mul(x, x), -1)
        if floor:
            power = self._binary(Op.MAXIMUM, power, self.operand(floor), schema.MaximumMinimumOptionsT())
        return self.unary(Op.SQRT, power)

    def gaussian_topk(self, x: Value, deviations: float) -> Value:
        centred = self.sub(x, self.mean_of(x, -1))
        spread = self.unary(Op.SQRT, self.mean_of(self.mul(centred, centred), -1))
        options = schema.SubOptionsT()
        options.fusedActivationFunction = schema.ActivationFunctionType.RELU
        return self._binary(Op.SUB, centred, self.mul(spread, deviations), options)

    # -- arithmetic

    def matmul(self, a: Value, b: Value) -> Value:
        return self.batched(a, b, transposed=False)

    def batched(self, a: Value, b: Value, *, transposed: bool) -> Value:
        """Matrix product over the last two axes; `transposed` swaps those of `b`."""
        options = schema.BatchMatMulOptionsT()
        options.adjY = transposed
        shape = (*a.shape[:-1], b.shape[-2 if transposed else -1])
        return self.one(Op.BATCH_MATMUL, [a, b], shape, options=options)

    def tanh(self, x: Value) -> Value:
        return self.unary(Op.TANH, x)

    def gelu(self, x: Value) -> Value:
        options = schema.GeluOptionsT()
        options.approximate = True
        return self.unary(Op.GELU, x, options)

    def constant(self, values: Sequence[float], *tail: int) -> Value:
        return self.graph.literal(np.asarray(values).reshape(tail), "float32")

    # -- shapes

    def stack(self, parts: Sequence[Value]) -> Value:
        return self.concat([self.shaped(part, *part.shape[:2], 1, part.shape[2]) for part in parts], 2)

    def take(self, x: Value, index: int) -> Value:
        return self.shaped(self.piece(x, 2, index, 1), *x.shape[:2], x.shape[3])

    def unstack(self, x: Value, count: int, width: int) -> Sequence[Value]:
        parts = [self.piece(x, 2, i, 1) for i in range(count)] if len(x.shape) == 4 else []
        return [self.shaped(part, *x.shape[:2], width) for part in parts]

    def mean(self, x: Value) -> Value:
        return self.shaped(self.mean_of(x, 2), *x.shape[:2], x.shape[3])

    def wanted(self, x: Value) -> Value:
        # A prefill signature has no logits, so that nothing behind this point is kept; decode has one position.
        return x
