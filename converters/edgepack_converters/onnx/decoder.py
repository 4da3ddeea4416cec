"""The decoder's operations as ONNX nodes, with ONNX Runtime's fused operators where it has them.

Operators of the domain ``com.microsoft`` are documented in ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import sqrt

import numpy as np
import onnx_ir as ir

from edgepack.model.ops import AttentionWeights, Weight
from edgepack.model.spec import AttentionKind, ModelSpec
from edgepack.package.interface import DECODER
from edgepack.package.interface_onnx import (
    ATTENTION_MASK,
    INPUTS_EMBEDS,
    LOGITS,
    NUM_LOGITS_TO_KEEP,
    PER_LAYER_INPUTS,
    POSITION_IDS,
    decoder_interface,
    past_names,
    present_names,
    window_tokens,
)
from edgepack.planning.costs import LARGEST_PRODUCT_BYTES
from edgepack.planning.plan import TensorPlan
from edgepack.quant.layout import FloatScheme, IntScheme
from edgepack_converters.onnx.builder import MS, TableOps, declared_inputs
from edgepack_converters.onnx.layout import Layout, some_rows
from edgepack_converters.weights import WeightFile, stackable

INT64_MAX = 2**63 - 1
# Added to a masked score: large enough to vanish in a softmax, small enough that adding a score cannot overflow.
MASKED = -1e9
# Below every variance that a gate can have, so that LayerNormalization divides by the plain standard deviation.
NO_EPSILON = 1e-30


class DecoderOps(TableOps):
    """Builds the decoder graph: `edgepack.model.ops.Ops` on graph edges.

    Args:
        spec: the model.
        tensors, layout, weights: see `GraphBuilder`.
        accuracy_level: MatMulNBits compute type; 4 quantizes activations to int8, 0 leaves the choice to the runtime.
        context_tokens: positions that the rotary tables cover.

    Attributes:
        present: keys and values [B, K, T, D] of every owner after the step, filled as the owners are emitted.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tensors: Mapping[str, TensorPlan],
        layout: Layout,
        weights: WeightFile,
        accuracy_level: int,
        context_tokens: int,
    ) -> None:
        super().__init__(tensors, layout, weights)
        self.spec, self.accuracy_level, self.context_tokens = spec, accuracy_level, context_tokens
        self.present: dict[int, tuple[ir.Value, ir.Value]] = {}
        self._widths: dict[ir.Value, int] = {}
        self.interface = decoder_interface(spec)
        self.inputs = declared_inputs(self.interface)
        self.embeds, self.per_layer = self.inputs[INPUTS_EMBEDS], self.inputs.get(PER_LAYER_INPUTS)
        self.attention_mask, self.position_ids = self.inputs[ATTENTION_MASK], self.inputs[POSITION_IDS]
        self.past = {owner: [self.inputs[name] for name in past_names(i)] for i, owner in enumerate(spec.kv_owners)}

    def finished(self, logits: ir.Value, opset: int) -> ir.Graph:
        """The decoder's graph."""
        outputs = {LOGITS: logits}
        for i, owner in enumerate(self.spec.kv_owners):
            outputs |= zip(present_names(i), self.present[owner], strict=True)
        return self.graph(DECODER, self.interface, self.inputs, outputs, opset)

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

    def _packed_product(self, x: ir.Value, *matrices: Weight) -> ir.Value:
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
        return self._normed(x, self.vector(weight), eps)

    def _normed(self, x: ir.Value, scale: ir.Value, eps: float) -> ir.Value:
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

    # -- attention

    def attend(self, layer: int, x: ir.Value, weights: AttentionWeights) -> ir.Value:
        if weights.key is None or weights.value is None or weights.key_norm is None:
            return self._attend_to_owner(layer, self._head_norm(self.linear(x, weights.query), weights))
        spec, kind = self.spec, self.spec.layers[layer].kind
        out, present_key, present_value = self.node(
            "GroupQueryAttention",
            *self._query_key_value(x, weights.key, weights.value, weights.key_norm, weights),
            *self.past[layer],
            *self._lengths(),
            *self._rope_tables(kind),
            self.position_ids,
            domain=MS,
            outputs=3,
            num_heads=spec.num_heads,
            kv_num_heads=spec.num_kv_heads,
            do_rotary=1,
            scale=spec.attention_scale,
            local_window_size=window_tokens(spec, layer),
        )
        self.present[layer] = (present_key, present_value)
        return out

    def _head_norm(self, query: ir.Value, weights: AttentionWeights) -> ir.Value:
        h, d = self.spec.num_heads, self.spec.head_dim
        return self.reshape(self.rms_norm(self.reshape(query, h, d), weights.query_norm, weights.eps), h * d)

    def _query_key_value(
        self, x: ir.Value, key: Weight, value: Weight, key_norm: Weight, weights: AttentionWeights
    ) -> tuple[ir.Value | None, ...]:
        """Normed heads as GroupQueryAttention takes them: packed in one value, or in three."""
        h, k, d, eps = self.spec.num_heads, self.spec.num_kv_heads, self.spec.head_dim, weights.eps
        if not weights.norm_value:
            heads = self.reshape(self.linear(x, key), k, d)
            keys = self.reshape(self.rms_norm(heads, key_norm, eps), k * d)
            return self._head_norm(self.linear(x, weights.query), weights), keys, self.linear(x, value)
        # All heads are normed, so one product, one norm and one multiplication do for the three of them.
        ones = self.literal(np.ones(d), "float32")
        heads = self.reshape(self._packed_product(x, weights.query, key, value), h + 2 * k, d)
        scales = self.one(  # made of constants: the runtime folds it when it loads the graph
            "Concat",
            self.one("Expand", self.vector(weights.query_norm), self.integers(h, d)),
            self.one("Expand", self.vector(key_norm), self.integers(k, d)),
            self.one("Expand", ones, self.integers(k, d)),
            axis=0,
        )
        packed = self.one("Mul", self._normed(heads, ones, eps), scales)
        return self.reshape(packed, (h + 2 * k) * d), None, None

    def _attend_to_owner(self, layer: int, query: ir.Value) -> ir.Value:
        """Attention over the owner's cache after its update, query heads folded into the sequence axis.

        GroupQueryAttention would append keys of its own, so the cache goes to MultiHeadAttention as it stands.
        """
        spec, kind = self.spec, self.spec.layers[layer].kind
        k, d, groups = spec.num_kv_heads, spec.head_dim, spec.num_heads // spec.num_kv_heads
        positions = self.memo("wanted positions", lambda: self.wanted(self.position_ids))
        rotated = self.one("RotaryEmbedding", query, positions, *self._rope_tables(kind), domain=MS)
        # [B, S', K, G, D] -> [B, S' * G, K * D]: the G query heads of a kv head become rows of that head.
        swapped = self.one("Transpose", self.reshape(rotated, k, groups, d), perm=[0, 1, 3, 2, 4])
        folded = self.one("Reshape", swapped, self.integers(0, -1, k * d))
        keys, values = self.present[spec.layers[layer].kv_owner]
        bias = self.memo(("mask", kind), lambda: self._mask(kind, keys, positions, groups))
        out = self.one(
            "MultiHeadAttention",
            folded,
            keys,
            values,
            None,
            None,
            bias,
            domain=MS,
            num_heads=k,
            scale=spec.attention_scale,
        )
        unfolded = self.one("Reshape", out, self.integers(0, -1, groups, k, d))
        return self.reshape(self.one("Transpose", unfolded, perm=[0, 1, 3, 2, 4]), spec.num_heads * d)

    def _rope_tables(self, kind: AttentionKind) -> tuple[ir.Value, ir.Value]:
        """Cosine and sine of every position of the planned context, [context, D / 2], in the weight file."""
        rope, half = self.spec.rope[kind], self.spec.head_dim // 2

        def make(name: str, function: np.ufunc) -> ir.Value:
            frequencies = rope.theta ** (-np.arange(half, dtype=np.float64) / half) / rope.linear_factor
            angles = np.arange(self.context_tokens, dtype=np.float64)[:, None] * frequencies
            table = function(angles).astype(np.float32)
            return self.initializer(self.layout.place_array(name, table, self.weights))

        cos, sin = f"rope.{kind}.cos", f"rope.{kind}.sin"
        return self.memo(cos, lambda: make(cos, np.cos)), self.memo(sin, lambda: make(sin, np.sin))

    def _lengths(self) -> tuple[ir.Value, ir.Value]:
        """``seqlens_k`` int32 [B] and ``total_sequence_length`` int32 scalar, from the attention mask."""

        def seqlens() -> ir.Value:
            count = self.one("ReduceSum", self.attention_mask, self.integers(1), keepdims=0)
            return self.one("Cast", self.one("Sub", count, self.integers(1)), to=ir.DataType.INT32.value)

        def total() -> ir.Value:
            length = self.one("Squeeze", self._size(self.attention_mask, 1), self.integers(0))
            return self.one("Cast", length, to=ir.DataType.INT32.value)

        return self.memo("seqlens", seqlens), self.memo("total", total)

    def _size(self, x: ir.Value, axis: int) -> ir.Value:
        """Length of one axis, int64 [1]."""
        return self.one("Shape", x, start=axis, end=axis + 1)

    def _mask(self, kind: AttentionKind, keys: ir.Value, positions: ir.Value, groups: int) -> ir.Value:
        """Additive mask [B, 1, S' * G, C] for the C rows of a cache, whatever its capacity.

        Row r of a cache holds position ``r + dropped``. A full-length cache has dropped nothing. A window-sized one
        (attribute `sliding_window_cache` of GroupQueryAttention, set by a runtime) has dropped
        ``g * ceil(max(T - C, 0) / g)`` positions with ``g = C - window + 1``: the operator's documented contract.
        """
        window, capacity = self.integers(self.spec.sliding_window), self._size(keys, 2)
        first, one = self.literal(0, "int64"), self.integers(1)
        rows = self.one("Range", first, self.one("Squeeze", capacity, self.integers(0)), self.literal(1, "int64"))
        if kind == "sliding":
            step = self.one("Max", self.one("Add", self.one("Sub", capacity, window), one), one)
            over = self.one("Max", self.one("Sub", self._size(self.attention_mask, 1), capacity), self.integers(0))
            steps = self.one("Div", self.one("Sub", self.one("Add", over, step), one), step)
            rows = self.one("Add", rows, self.one("Mul", steps, step))
        # [B, S'] -> [B, 1, S' * G, 1]
        spread = self.one("Unsqueeze", positions, self.integers(2))
        spread = self.one("Expand", spread, self.integers(1, 1, groups))
        spread = self.one("Reshape", spread, self.integers(0, 1, -1, 1))
        visible = self.one("LessOrEqual", rows, spread)
        if kind == "sliding":
            visible = self.one("And", visible, self.one("Greater", rows, self.one("Sub", spread, window)))
        return self.one("Where", visible, self.literal(0.0, "float32"), self.literal(MASKED, "float32"))
