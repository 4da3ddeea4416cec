"""The decoder's operations as ONNX nodes, with ONNX Runtime's fused operators where it has them.

Operators of the domain ``com.microsoft`` are documented in ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import sqrt

import numpy as np
import onnx_ir as ir

from edgepack.model.ops import Weight
from edgepack.model.spec import ModelSpec
from edgepack.package.interface_onnx import (
    INPUTS_EMBEDS,
    NUM_LOGITS_TO_KEEP,
    PER_LAYER_INPUTS,
    decoder_interface,
)
from edgepack.planning.plan import TensorPlan
from edgepack.planning.runtime_costs import LARGEST_PRODUCT_BYTES
from edgepack.quant.layout import FloatScheme, IntScheme
from edgepack_converters.onnx.builder import MS, TableOps, declared_inputs
from edgepack_converters.onnx.layout import Layout, some_rows
from edgepack_converters.weights import WeightFile, stackable

INT64_MAX = 2**63 - 1
# Below every variance that a gate can have, so that LayerNormalization divides by the plain standard deviation.
NO_EPSILON = 1e-30


class DecoderOps(TableOps):
    """The operations of a decoder on graph edges (`edgepack.model.ops.Ops`), attention aside.

    Args:
        spec: the model.
        tensors, layout, weights: see `GraphBuilder`.
        accuracy_level: MatMulNBits compute type; 4 quantizes activations to int8, 0 leaves the choice to the runtime.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tensors: Mapping[str, TensorPlan],
        layout: Layout,
        weights: WeightFile,
        accuracy_level: int,
    ) -> None:
        super().__init__(tensors, layout, weights)
        self.spec, self.accuracy_level = spec, accuracy_level
        self._widths: dict[ir.Value, int] = {}
        self.interface = decoder_interface(spec)
        self.inputs = declared_inputs(self.interface)
        self.embeds, self.per_layer = self.inputs[INPUTS_EMBEDS], self.inputs.get(PER_LAYER_INPUTS)

    # -- products and norms

    def linear(self, x: ir.Value, matrix: Weight) -> ir.Value:
        return self._product(x, matrix)

    def linears(self, x: ir.Value, matrices: Sequence[Weight]) -> Sequence[ir.Value]:
        return [out for group in stackable(matrices, self.tensors) for out in self._split_product(x, *group)]

    def _split_product(self, x: ir.Value, *matrices: Weight) -> Sequence[ir.Value]:
        """The products one by one, of matrices that are stored as one."""
        # One wide product waits for its threads once. Measured on E2B's feed-forward: 13 % less time a decode step on a
        # busy machine, 1 % more in prefill for the split.
        packed = self._product(x, *matrices)
        if len(matrices) == 1:
            return [packed]
        rows = [self.tensors[matrix.name].shape[0] for matrix in matrices]
        parts = self.node("Split", packed, self.integers(*rows), outputs=len(rows), axis=-1)
        self._widths.update(zip(parts, rows, strict=True))
        return parts

    def packed_product(self, x: ir.Value, *matrices: Weight) -> ir.Value:
        """The products side by side."""
        products = [self._product(x, *group) for group in stackable(matrices, self.tensors)]
        return products[0] if len(products) == 1 else self.one("Concat", *products, axis=-1)

    def _product(self, x: ir.Value, *matrices: Weight) -> ir.Value:
        """Product with one matrix, or with several that are stored as one."""
        plans = [self.tensors[matrix.name] for matrix in matrices]
        rows, columns = sum(plan.shape[0] for plan in plans), plans[0].shape[1]
        scheme, parts = plans[0].scheme, self.parts(*matrices)
        if isinstance(scheme, FloatScheme):
            out = self.one("FusedMatMul", x, parts["values"], domain=MS, transB=1)
        else:
            count = -(-rows * columns * scheme.bits // (8 * LARGEST_PRODUCT_BYTES))
            bounds = [rows * i // count for i in range(count + 1)]
            slices = [self._quantized_product(x, parts, scheme, columns, *span) for span in pairwise(bounds)]
            out = slices[0] if count == 1 else self.one("Concat", *slices, axis=-1)
        self._widths[out] = rows
        return out

    def _quantized_product(
        self, x: ir.Value, parts: Mapping[str, ir.Value], scheme: IntScheme, columns: int, start: int, stop: int
    ) -> ir.Value:
        """Product with the rows `start` to `stop` of a quantized matrix."""
        chosen = {}
        for name in ("codes", "scales", "zero_points"):
            whole = parts[name].const_value if name in parts else None
            if not isinstance(whole, ir.ExternalTensor):
                continue
            complete = whole.shape[0] == stop - start
            chosen[name] = parts[name] if complete else self.initializer(some_rows(whole, start, stop))
        return self.one(
            "MatMulNBits",
            x,
            chosen["codes"],
            chosen["scales"],
            chosen.get("zero_points"),
            domain=MS,
            K=columns,
            N=stop - start,
            bits=scheme.bits,
            block_size=scheme.block_of((stop - start, columns)),
            accuracy_level=self.accuracy_level,
        )

    def rms_norm(self, x: ir.Value, weight: Weight, eps: float) -> ir.Value:
        return self.normed(x, self.vector(weight), eps)

    def normed(self, x: ir.Value, scale: ir.Value, eps: float) -> ir.Value:
        """``scale * x / sqrt(mean(x^2) + eps)`` over the last axis."""
        return self.one("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=eps, stash_type=1)

    def add_norm(self, a: ir.Value, b: ir.Value, weight: Weight, eps: float) -> tuple[ir.Value, ir.Value]:
        normed, _, _, total = self.node(
            "SkipSimplifiedLayerNormalization",
            a,
            b,
            self.vector(weight),
            domain=MS,
            outputs=4,
            skipped=(1, 2),
            epsilon=eps,
        )
        return total, normed

    def rms(self, x: ir.Value, floor: float) -> ir.Value:
        length = self.one("ReduceL2", x, self.integers(-1), keepdims=1)
        if floor:
            length = self.one("Max", length, self.literal(sqrt(floor * self.spec.hidden_size), "float32"))
        return self.one("Mul", length, self.literal(1 / sqrt(self.spec.hidden_size), "float32"))

    def gaussian_topk(self, x: ir.Value, deviations: float) -> ir.Value:
        # relu(x - mean - c std) = std * relu((x - mean) / std - c): LayerNormalization does the inside in one pass.
        width = self._widths[x]
        ones = self.literal(np.ones(width), "float32")
        cut = self.literal(np.full(width, -deviations), "float32")
        normed, _, inverse_std = self.node(
            "LayerNormalization", x, ones, cut, outputs=3, skipped=(1,), axis=-1, epsilon=NO_EPSILON, stash_type=1
        )
        return self.one("Div", self.one("Relu", normed), inverse_std)

    # -- arithmetic

    def add(self, a: ir.Value, b: ir.Value | float) -> ir.Value:
        return self.one("Add", a, self.operand(b))

    def sub(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.one("Sub", a, b)

    def div(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.one("Div", a, b)

    def matmul(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.one("MatMul", a, b)

    def tanh(self, x: ir.Value) -> ir.Value:
        return self.one("Tanh", x)

    def gelu(self, x: ir.Value) -> ir.Value:
        return self.one("FastGelu", x, domain=MS)

    def constant(self, values: Sequence[float], *tail: int) -> ir.Value:
        return self.literal(np.asarray(values).reshape(tail), "float32")

    # -- shapes

    def stack(self, parts: Sequence[ir.Value]) -> ir.Value:
        return self.one("Concat", *[self.one("Unsqueeze", part, self.integers(2)) for part in parts], axis=2)

    def take(self, x: ir.Value, index: int) -> ir.Value:
        return self.one("Gather", x, self.literal(index, "int64"), axis=2)

    def unstack(self, x: ir.Value, count: int, width: int) -> Sequence[ir.Value]:
        return self.node("Split", self.reshape(x, count * width), outputs=count, axis=2, num_outputs=count)

    def mean(self, x: ir.Value) -> ir.Value:
        return self.one("ReduceMean", x, self.integers(2), keepdims=0)

    def wanted(self, x: ir.Value) -> ir.Value:
        # num_logits_to_keep = 0 starts the slice at -0, the first position: all of them.
        count = self.inputs[NUM_LOGITS_TO_KEEP]
        start = self.memo("wanted", lambda: self.one("Reshape", self.one("Neg", count), self.integers(1)))
        return self.one("Slice", x, start, self.integers(INT64_MAX), self.integers(1))
