"""The decoder's operations as LiteRT operators, chosen so that XNNPACK takes the whole graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgepack.model.ops import AttentionWeights, Weight
from edgepack.model.spec import AttentionKind, ModelSpec
from edgepack.package.interface import EMBED
from edgepack.package.interface_litert import (
    INPUT_POS,
    LOGITS,
    MASK,
    PER_LAYER_EMBED,
    ROWS,
    cache_names,
    cache_slots,
)
from edgepack.planning.plan import TensorPlan
from edgepack.quant.layout import FloatScheme
from edgepack_converters.litert.builder import SIGNED, TableOps
from edgepack_converters.litert.flatbuffer import Op, Outside, Subgraph, Value
from edgepack_converters.weights import stackable

# Added to a masked score: large enough to vanish in a softmax, small enough that adding a score cannot overflow.
MASKED = -1e9


class DecoderOps(TableOps):
    """Builds one signature of the decoder: `edgepack.model.ops.Ops` on the values of a subgraph, S positions at a time.

    Args:
        graph: it has the inputs of the signature already.
        tensors: see `GraphBuilder`.
        spec: the model.
        positions: S.
        context_tokens: T, capacity of full-length caches.
    """

    def __init__(
        self,
        graph: Subgraph,
        tensors: Mapping[str, TensorPlan],
        spec: ModelSpec,
        positions: int,
        context_tokens: int,
    ) -> None:
        super().__init__(graph, tensors)
        self.spec, self.positions, self.context_tokens = spec, positions, context_tokens
        inputs = graph.inputs
        self.embeds, self.per_layer = inputs[ROWS[EMBED]], inputs.get(ROWS[PER_LAYER_EMBED])
        self.input_pos, self.mask = inputs[INPUT_POS], inputs[MASK]
        self.past = {owner: [inputs[name] for name in cache_names(i)] for i, owner in enumerate(spec.kv_owners)}
        self.present: dict[int, tuple[Value, Value]] = {}
        self._attended: dict[int, tuple[Value, Value]] = {}

    def capacity(self, kind: AttentionKind) -> int:
        """Rows of the caches of this kind: full-length, or a ring of one window."""
        return cache_slots(self.spec, kind, self.context_tokens)

    def results(self, logits: Value) -> dict[str, Value]:
        """All that the signature may give."""
        values = {LOGITS: logits}
        for i, owner in enumerate(self.spec.kv_owners):
            values |= zip(cache_names(i), self.present[owner], strict=True)
        return values

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

    def _packed_product(self, x: Value, *matrices: Weight) -> Value:
        """The products side by side."""
        products = [self._product(x, *group) for group in stackable(matrices, self.tensors)]
        return products[0] if len(products) == 1 else self.concat(products, -1)

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
        return self._batched(a, b, transposed=False)

    def _batched(self, a: Value, b: Value, *, transposed: bool) -> Value:
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

    # -- attention

    def attend(self, layer: int, x: Value, weights: AttentionWeights) -> Value:
        spec, s = self.spec, self.positions
        h, k, d = spec.num_heads, spec.num_kv_heads, spec.head_dim
        kind, owner = spec.layers[layer].kind, spec.layers[layer].kv_owner
        query = self._rotated(self._heads(self.linear(x, weights.query), h, weights.query_norm, weights.eps), kind)
        if weights.key is not None and weights.value is not None and weights.key_norm is not None:
            key = self._rotated(self._heads(self.linear(x, weights.key), k, weights.key_norm, weights.eps), kind)
            value = self.shaped(self.linear(x, weights.value), 1, s, k, d)
            value = self.normed(value, weights.eps) if weights.norm_value else value
            self._cache(layer, kind, key, value)
        keys, values = self._attended[owner]
        if spec.attention_scale != 1.0:
            query = self.mul(query, spec.attention_scale)
        # [1, S, K * G, D] -> [1, K, G * S, D]: the G query heads of a kv head become rows of that head.
        grouped = self.shaped(self.transpose(query, 0, 2, 1, 3), 1, k, h // k * s, d)
        scores = self.add(
            self._batched(grouped, keys, transposed=True), self.memo(("mask", kind), lambda: self._mask(kind))
        )
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        heads = self._batched(self.unary(Op.SOFTMAX, scores, options), values, transposed=False)
        return self.shaped(self.transpose(self.shaped(heads, 1, h, s, d), 0, 2, 1, 3), 1, s, h * d)

    def _heads(self, x: Value, count: int, norm: Weight, eps: float) -> Value:
        return self.rms_norm(self.shaped(x, 1, self.positions, count, self.spec.head_dim), norm, eps)

    def _cache(self, layer: int, kind: AttentionKind, *rows: Value) -> None:
        """Write new keys and values [1, S, K, D] into the caches, and note what is attended to."""
        new = [self.transpose(part, 0, 2, 1, 3) for part in rows]
        if self.capacity(kind) == self.context_tokens:
            write = self._written_within if self.positions > 1 else self._written
            pairs = [(full := write(past, part, self._first()), full) for past, part in self._pairs(layer, new)]
        elif self.positions == 1:
            slot = self.memo("slot", lambda: self._modulo(self._first(), self.capacity(kind)))
            pairs = [(ring := self._written(past, part, slot), ring) for past, part in self._pairs(layer, new)]
        else:
            joined = [self.concat([past, part], 2) for past, part in self._pairs(layer, new)]
            kept = self.memo("kept", self._kept)
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

    def _kept(self) -> Value:
        """For each slot of a ring, the row of [ring, new rows] that it holds afterwards, int32 [C].

        Slot r holds the newest position that is r modulo C; where that is older than the new tokens, what it held.
        """
        size = self.capacity("sliding")
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
        rope, half = self.spec.rope[kind], self.spec.head_dim // 2
        frequencies = rope.theta ** (-np.arange(half, dtype=np.float64) / half) / rope.linear_factor
        positions = self.shaped(self._positions(), 1, -1, 1, 1)
        angles = self.mul(positions, self.graph.literal(np.tile(frequencies, 2), "float32"))
        signs = self.graph.literal(np.repeat([-1.0, 1.0], half), "float32")
        return self.unary(Op.COS, angles), self.mul(self.unary(Op.SIN, angles), signs)

    def _mask(self, kind: AttentionKind) -> Value:
        """Additive mask [1, 1, G * S, N] over what a layer of this kind attends to."""
        mask = self.mask if self.capacity(kind) == self.context_tokens else self._ring_mask()
        groups = self.spec.num_heads // self.spec.num_kv_heads
        return self.concat([mask] * groups, 2) if groups > 1 else mask

    def _ring_mask(self) -> Value:
        """Additive mask [1, 1, S, N] of sliding layers: one ring after a decode step, or a ring and the new rows."""
        size, positions = self.capacity("sliding"), self._positions()
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
