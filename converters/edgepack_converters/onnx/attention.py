"""Attention as ONNX nodes: caches, rotation and masks, with ONNX Runtime's fused operators where it has them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgepack.model.ops import AttentionWeights, Weight
from edgepack.model.spec import AttentionKind, ModelSpec
from edgepack.package.interface import DECODER
from edgepack.package.interface_onnx import (
    ATTENTION_MASK,
    LOGITS,
    POSITION_IDS,
    past_names,
    present_names,
    window_tokens,
)
from edgepack.planning.plan import TensorPlan
from edgepack_converters.onnx.builder import MS
from edgepack_converters.onnx.decoder import DecoderOps
from edgepack_converters.onnx.layout import Layout
from edgepack_converters.weights import WeightFile

# Added to a masked score: large enough to vanish in a softmax, small enough that adding a score cannot overflow.
MASKED = -1e9


class AttentionOps(DecoderOps):
    """Builds the decoder graph: `edgepack.model.ops.Ops` on graph edges.

    Args:
        spec, tensors, layout, weights, accuracy_level: see `DecoderOps`.
        context_tokens: positions that the rotary tables cover.

    Attributes:
        past, present: keys and values [B, K, T, D] of every owner before and after the step; `present` is filled as the
            owners are emitted.
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
        super().__init__(spec, tensors, layout, weights, accuracy_level)
        self.context_tokens = context_tokens
        self.attention_mask, self.position_ids = self.inputs[ATTENTION_MASK], self.inputs[POSITION_IDS]
        self.past = {owner: [self.inputs[name] for name in past_names(i)] for i, owner in enumerate(spec.kv_owners)}
        self.present: dict[int, tuple[ir.Value, ir.Value]] = {}

    def finished(self, logits: ir.Value, opset: int) -> ir.Graph:
        """The decoder's graph."""
        outputs = {LOGITS: logits}
        for i, owner in enumerate(self.spec.kv_owners):
            outputs |= zip(present_names(i), self.present[owner], strict=True)
        return self.graph(DECODER, self.interface, self.inputs, outputs, opset)

    def attend(self, layer: int, x: ir.Value, weights: AttentionWeights) -> ir.Value:
        if weights.key is None or weights.value is None or weights.key_norm is None:
            return self._attend_to_owner(layer, self._query(layer, x, weights))
        attention = self.spec.attention_of(layer)
        out, present_key, present_value = self.node(
            "GroupQueryAttention",
            *self._query_key_value(layer, x, weights.key, weights.value, weights.key_norm, weights),
            *self.past[layer],
            *self._lengths(),
            *self._rope_tables(self.spec.layers[layer].kind),
            self.position_ids,
            domain=MS,
            outputs=3,
            num_heads=attention.num_heads,
            kv_num_heads=attention.num_kv_heads,
            do_rotary=1,
            scale=attention.scale,
            local_window_size=window_tokens(self.spec, layer),
        )
        self.present[layer] = (present_key, present_value)
        return out

    def _query(self, layer: int, x: ir.Value, weights: AttentionWeights) -> ir.Value:
        """Normed query heads [B, S, H * D]."""
        attention = self.spec.attention_of(layer)
        heads = self.reshape(self.linear(x, weights.query), attention.num_heads, attention.head_dim)
        return self.reshape(self.rms_norm(heads, weights.query_norm, weights.eps), attention.query_width)

    def _query_key_value(
        self, layer: int, x: ir.Value, key: Weight, value: Weight, key_norm: Weight, weights: AttentionWeights
    ) -> tuple[ir.Value | None, ...]:
        """Normed heads as GroupQueryAttention takes them: packed in one value, or in three."""
        attention, eps = self.spec.attention_of(layer), weights.eps
        h, k, d = attention.num_heads, attention.num_kv_heads, attention.head_dim
        if not weights.norm_value:
            heads = self.reshape(self.linear(x, key), k, d)
            keys = self.reshape(self.rms_norm(heads, key_norm, eps), k * d)
            return self._query(layer, x, weights), keys, self.linear(x, value)
        # All heads are normed, so one product, one norm and one multiplication do for the three of them.
        ones = self.literal(np.ones(d), "float32")
        heads = self.reshape(self.packed_product(x, weights.query, key, value), h + 2 * k, d)
        scales = self.one(  # made of constants: the runtime folds it when it loads the graph
            "Concat",
            self.one("Expand", self.vector(weights.query_norm), self.integers(h, d)),
            self.one("Expand", self.vector(key_norm), self.integers(k, d)),
            self.one("Expand", ones, self.integers(k, d)),
            axis=0,
        )
        packed = self.one("Mul", self.normed(heads, ones, eps), scales)
        return self.reshape(packed, (h + 2 * k) * d), None, None

    def _attend_to_owner(self, layer: int, query: ir.Value) -> ir.Value:
        """Attention over the owner's cache after its update, query heads folded into the sequence axis.

        GroupQueryAttention would append keys of its own, so the cache goes to MultiHeadAttention as it stands.
        """
        kind, attention = self.spec.layers[layer].kind, self.spec.attention_of(layer)
        k, d, groups = attention.num_kv_heads, attention.head_dim, attention.groups
        positions = self.memo("wanted positions", lambda: self.wanted(self.position_ids))
        rotated = self.one("RotaryEmbedding", query, positions, *self._rope_tables(kind), domain=MS)
        # [B, S', K, G, D] -> [B, S' * G, K * D]: the G query heads of a kv head become rows of that head.
        swapped = self.one("Transpose", self.reshape(rotated, k, groups, d), perm=[0, 1, 3, 2, 4])
        folded = self.one("Reshape", swapped, self.integers(0, -1, k * d))
        keys, values = self.present[self.spec.layers[layer].kv_owner]
        bias = self.memo(("mask", kind), lambda: self._mask(kind, keys, positions))
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
            scale=attention.scale,
        )
        unfolded = self.one("Reshape", out, self.integers(0, -1, groups, k, d))
        return self.reshape(self.one("Transpose", unfolded, perm=[0, 1, 3, 2, 4]), attention.query_width)

    def _rope_tables(self, kind: AttentionKind) -> tuple[ir.Value, ir.Value]:
        """Cosine and sine of every position of the planned context, [context, D / 2], in the weight file."""
        rope, half = self.spec.attention[kind].rope, self.spec.attention[kind].head_dim // 2

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

    def _mask(self, kind: AttentionKind, keys: ir.Value, positions: ir.Value) -> ir.Value:
        """Additive mask [B, 1, S' * G, C] for the C rows of a cache, whatever its capacity.

        Row r of a cache holds position ``r + dropped``. A full-length cache has dropped nothing. A window-sized one
        (attribute `sliding_window_cache` of GroupQueryAttention, set by a runtime) has dropped
        ``g * ceil(max(T - C, 0) / g)`` positions with ``g = C - window + 1``: the operator's documented contract.
        """
        # Constants are numbered as they come: the windows of all kinds come first, whichever mask does.
        kinds = self.spec.attention.items()
        windows = {name: self.integers(other.window) for name, other in kinds if other.window is not None}
        window, capacity = windows.get(kind), self._size(keys, 2)
        first, one = self.literal(0, "int64"), self.integers(1)
        rows = self.one("Range", first, self.one("Squeeze", capacity, self.integers(0)), self.literal(1, "int64"))
        if window is not None:
            step = self.one("Max", self.one("Add", self.one("Sub", capacity, window), one), one)
            over = self.one("Max", self.one("Sub", self._size(self.attention_mask, 1), capacity), self.integers(0))
            steps = self.one("Div", self.one("Sub", self.one("Add", over, step), one), step)
            rows = self.one("Add", rows, self.one("Mul", steps, step))
        # [B, S'] -> [B, 1, S' * G, 1]
        spread = self.one("Unsqueeze", positions, self.integers(2))
        spread = self.one("Expand", spread, self.integers(1, 1, self.spec.attention[kind].groups))
        spread = self.one("Reshape", spread, self.integers(0, 1, -1, 1))
        visible = self.one("LessOrEqual", rows, spread)
        if window is not None:
            visible = self.one("And", visible, self.one("Greater", rows, self.one("Sub", spread, window)))
        return self.one("Where", visible, self.literal(0.0, "float32"), self.literal(MASKED, "float32"))
