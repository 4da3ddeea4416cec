"""Attention as LiteRT operators: caches that are written in place, rings of one window, rotation and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgepack.model.ops import AttentionWeights
from edgepack.model.spec import AttentionKind, AttentionSpec, ModelSpec
from edgepack.package.interface_litert import INPUT_POS, LOGITS, MASK, cache_names
from edgepack.planning.plan import TensorPlan
from edgepack_converters.litert.decoder import DecoderOps
from edgepack_converters.litert.flatbuffer import Op, Subgraph, Value

# Added to a masked score: large enough to vanish in a softmax, small enough that adding a score cannot overflow.
MASKED = -1e9


class AttentionOps(DecoderOps):
    """Builds one signature of the decoder: `edgepack.model.ops.Ops` on the values of a subgraph, S positions at a time.

    Args:
        graph, tensors, spec, positions: see `DecoderOps`.
        context_tokens: T, capacity of full-length caches; the others are rings of one window.

    Attributes:
        past, present: caches [1, K, C, D] of every owner before and after the step; `present` is filled as the owners
            are emitted.
    """

    def __init__(
        self,
        graph: Subgraph,
        tensors: Mapping[str, TensorPlan],
        spec: ModelSpec,
        positions: int,
        context_tokens: int,
    ) -> None:
        super().__init__(graph, tensors, spec, positions)
        self.context_tokens = context_tokens
        self.input_pos, self.mask = graph.inputs[INPUT_POS], graph.inputs[MASK]
        self.past = {owner: [graph.inputs[name] for name in cache_names(i)] for i, owner in enumerate(spec.kv_owners)}
        self.present: dict[int, tuple[Value, Value]] = {}
        self._attended: dict[int, tuple[Value, Value]] = {}

    def results(self, logits: Value) -> dict[str, Value]:
        """All that the signature may give."""
        values = {LOGITS: logits}
        for i, owner in enumerate(self.spec.kv_owners):
            values |= zip(cache_names(i), self.present[owner], strict=True)
        return values

    def attend(self, layer: int, x: Value, weights: AttentionWeights) -> Value:
        kind, attention, s = self.spec.layers[layer].kind, self.spec.attention_of(layer), self.positions
        h, k, d = attention.num_heads, attention.num_kv_heads, attention.head_dim
        query = self.rms_norm(self.shaped(self.linear(x, weights.query), 1, s, h, d), weights.query_norm, weights.eps)
        query = self._rotated(query, kind)
        if weights.key is not None and weights.value is not None and weights.key_norm is not None:
            key = self.rms_norm(self.shaped(self.linear(x, weights.key), 1, s, k, d), weights.key_norm, weights.eps)
            key = self._rotated(key, kind)
            value = self.shaped(self.linear(x, weights.value), 1, s, k, d)
            value = self.normed(value, weights.eps) if weights.norm_value else value
            self._cache(layer, key, value)
        keys, values = self._attended[self.spec.layers[layer].kv_owner]
        if attention.scale != 1.0:
            query = self.mul(query, attention.scale)
        # [1, S, K * G, D] -> [1, K, G * S, D]: the G query heads of a kv head become rows of that head.
        grouped = self.shaped(self.transpose(query, 0, 2, 1, 3), 1, k, attention.groups * s, d)
        scores = self.add(
            self.batched(grouped, keys, transposed=True), self.memo(("mask", kind), lambda: self._mask(attention))
        )
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        heads = self.batched(self.unary(Op.SOFTMAX, scores, options), values, transposed=False)
        return self.shaped(self.transpose(self.shaped(heads, 1, h, s, d), 0, 2, 1, 3), 1, s, h * d)

    def _cache(self, layer: int, *rows: Value) -> None:
        """Write new keys and values [1, S, K, D] into the caches, and note what is attended to."""
        new = [self.transpose(part, 0, 2, 1, 3) for part in rows]
        capacity = self.spec.attention_of(layer).seen(self.context_tokens)
        if capacity == self.context_tokens:
            write = self._written_within if self.positions > 1 else self._written
            pairs = [(full := write(past, part, self._first()), full) for past, part in self._pairs(layer, new)]
        elif self.positions == 1:
            slot = self.memo(("slot", capacity), lambda: self._modulo(self._first(), capacity))
            pairs = [(ring := self._written(past, part, slot), ring) for past, part in self._pairs(layer, new)]
        else:
            joined = [self.concat([past, part], 2) for past, part in self._pairs(layer, new)]
            kept = self.memo(("kept", capacity), lambda: self._kept(capacity))
            pairs = [(both, self._gathered_rows(both, kept)) for both in joined]
        self._attended[layer] = (pairs[0][0], pairs[1][0])
        self.present[layer] = (pairs[0][1], pairs[1][1])

    def _pairs(self, layer: int, new: Sequence[Value]) -> Sequence[tuple[Value, Value]]:
        return list(zip(self.past[layer], new, strict=True))

    def _written(self, past: Value, rows: Value, row: Value) -> Value:
        """`past` [1, K, T, D] with `rows` [1, K, S, D] from `row` int32 [1] on."""
        zeros, zero = self.graph.literal([0, 0], "int32"), self.graph.literal([0], "int32")
        start = self.memo(("start", row), lambda: self.concat([zeros, row, zero], 0))
        options = schema.DynamicUpdateSliceOptionsT()
        return self.one(Op.DYNAMIC_UPDATE_SLICE, [past, rows, start], past.shape, options=options)

    def _written_within(self, past: Value, rows: Value, row: Value) -> Value:
        """As `_written`; what would stand behind the last row of `past` is left out.

        The operator itself would move the whole block back, over older tokens: an engine fills the last chunk of a
        prompt up with padding, wherever the cache ends.
        """
        s = self.positions

        def start() -> Value:
            latest = self.graph.literal([past.shape[2] - s], "int32")
            return self._int_binary(Op.MINIMUM, row, latest, schema.MaximumMinimumOptionsT())

        def order() -> tuple[Value, Value]:
            """The old rows that the block covers, and the rows of [old, new] that it then consists of."""
            count = self.graph.literal(np.arange(s), "int32")
            shift = self._int_binary(Op.SUB, row, begin, schema.SubOptionsT())
            behind = self._int_binary(Op.ADD, count, self.graph.literal([s], "int32"), schema.AddOptionsT())
            moved = self._int_binary(Op.SUB, behind, shift, schema.SubOptionsT())
            is_old = self._int_binary(Op.LESS, count, shift, schema.LessOptionsT(), "bool")
            options = schema.SelectV2OptionsT()
            chosen = self.one(Op.SELECT_V2, [is_old, count, moved], (s,), dtype="int32", options=options)
            return self._int_binary(Op.ADD, count, begin, schema.AddOptionsT()), chosen

        begin = self.memo("begin", start)
        covered, chosen = self.memo("block", order)
        block = self._gathered_rows(self.concat([self._gathered_rows(past, covered), rows], 2), chosen)
        return self._written(past, block, begin)

    def _gathered_rows(self, x: Value, rows: Value) -> Value:
        """Rows of axis 2 at `rows` int32 [N]."""
        options = schema.GatherOptionsT()
        options.axis = 2
        shape = (*x.shape[:2], rows.shape[0], x.shape[3])
        return self.one(Op.GATHER, [x, rows], shape, options=options)

    def _first(self) -> Value:
        """Position of the first new token, int32 [1]."""
        return self.memo("first", lambda: self.piece(self.input_pos, 0, 0, 1))

    def _modulo(self, x: Value, size: int) -> Value:
        options = schema.FloorModOptionsT()
        divisor = self.graph.literal(np.full(x.shape, size), "int32")
        return self.one(Op.FLOOR_MOD, [x, divisor], x.shape, dtype="int32", options=options)

    def _last(self) -> Value:
        """Position of the last new token, int32 [1]: an engine gives the padding behind it the position 0."""
        options = schema.ReducerOptionsT()
        options.keepDims = True
        axis = self.graph.literal([0], "int32")
        return self.memo(
            "last", lambda: self.one(Op.REDUCE_MAX, [self.input_pos, axis], [1], dtype="int32", options=options)
        )

    def _int_binary(self, code: int, a: Value, b: Value, options: Any, dtype: str = "int32") -> Value:
        return self.one(code, [a, b], np.broadcast_shapes(a.shape, b.shape), dtype=dtype, options=options)

    def _kept(self, size: int) -> Value:
        """For each slot of a ring of `size` C, the row of [ring, new rows] that it holds afterwards, int32 [C].

        Slot r holds the newest position that is r modulo C; where that is older than the new tokens, what it held.
        """
        slots = self.graph.literal(np.arange(size), "int32")
        back = self._modulo(self._int_binary(Op.SUB, self._last(), slots, schema.SubOptionsT()), size)
        held = self._int_binary(Op.SUB, self._last(), back, schema.SubOptionsT())
        ahead = self._int_binary(Op.SUB, held, self._first(), schema.SubOptionsT())  # row among the new ones, if there
        zero = self.graph.literal([0], "int32")
        is_new = self._int_binary(Op.GREATER_EQUAL, ahead, zero, schema.GreaterEqualOptionsT(), "bool")
        behind = self._int_binary(Op.ADD, ahead, self.graph.literal([size], "int32"), schema.AddOptionsT())
        return self.one(
            Op.SELECT_V2, [is_new, behind, slots], slots.shape, dtype="int32", options=schema.SelectV2OptionsT()
        )

    def _rotated(self, x: Value, kind: AttentionKind) -> Value:
        """Rotary embedding of heads [1, S, N, D]: halves swapped, the first one's sign in the sine."""
        cos, sin = self.memo(("rope", kind), lambda: self._rope(kind))
        half = x.shape[-1] // 2
        swapped = self.concat([self.piece(x, -1, half, half), self.piece(x, -1, 0, half)], -1)
        return self.add(self.mul(x, cos), self.mul(swapped, sin))

    def _positions(self) -> Value:
        """Positions of the new tokens, float32 [1, 1, S, 1]."""
        return self.memo("positions", lambda: self.shaped(self.cast(self.input_pos, "float32"), 1, 1, -1, 1))

    def _rope(self, kind: AttentionKind) -> tuple[Value, Value]:
        """Cosine and signed sine of the new positions, [1, S, 1, D]."""
        rope, half = self.spec.attention[kind].rope, self.spec.attention[kind].head_dim // 2
        frequencies = rope.theta ** (-np.arange(half, dtype=np.float64) / half) / rope.linear_factor
        positions = self.shaped(self._positions(), 1, -1, 1, 1)
        angles = self.mul(positions, self.graph.literal(np.tile(frequencies, 2), "float32"))
        signs = self.graph.literal(np.repeat([-1.0, 1.0], half), "float32")
        return self.unary(Op.COS, angles), self.mul(self.unary(Op.SIN, angles), signs)

    def _mask(self, attention: AttentionSpec) -> Value:
        """Additive mask [1, 1, G * S, N] over what a layer of this kind attends to."""
        capacity = attention.seen(self.context_tokens)
        mask = self.mask if capacity == self.context_tokens else self._ring_mask(capacity)
        return self.concat([mask] * attention.groups, 2) if attention.groups > 1 else mask

    def _ring_mask(self, size: int) -> Value:
        """Additive mask [1, 1, S, N] of a ring of `size` C: after a decode step it alone, else it and the new rows."""
        positions = self._positions()
        slots = self.graph.literal(np.arange(size).reshape(1, 1, 1, size), "float32")
        if self.positions == 1:
            # How far back each slot's token is; with the window as capacity, only what is before position 0 is hidden.
            return self._hidden(self.sub(self._behind(positions, slots), positions))
        first = self.shaped(self.cast(self._first(), "float32"), 1, 1, 1, 1)
        before = self.add(first, -1.0)
        back = self._behind(before, slots)  # behind the last token of the ring
        held = self.sub(before, back)  # its position; negative where the slot is still empty
        far = self.add(self.sub(positions, held), 1.0 - size)  # above 0: outside the window
        ring = self.add(self._hidden(far), self._hidden(self.mul(held, -1.0)))
        new = self.add(first, self.graph.literal(np.arange(self.positions).reshape(1, 1, 1, -1), "float32"))
        ahead = self.sub(new, positions)
        far = self.add(self.mul(ahead, -1.0), 1.0 - size)
        return self.concat([ring, self.add(self._hidden(ahead), self._hidden(far))], 3)

    def _behind(self, last: Value, slots: Value) -> Value:
        """``(last - slots) mod C`` in float32, exact for whole numbers."""
        size = float(slots.shape[-1])
        distance = self.sub(last, slots)
        rounds = self.unary(Op.FLOOR, self.mul(self.add(distance, 0.5), 1 / size))
        return self.sub(distance, self.mul(rounds, size))

    def _hidden(self, excess: Value) -> Value:
        """A large negative number where `excess`, a whole number, is above 0; else 0."""
        options = schema.MulOptionsT()
        return self._binary(Op.MUL, self.unary(Op.RELU, excess), self.operand(MASKED), options)
