"""The operations that a decoder is made of. A backend implements them; a family is written once against them.

Every value has the shape [B, S, ...]: batch and sequence lead, and an operation acts on the axes behind them.
What differs between backends (cache handling, fused attention, quantized products) is inside one method each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Weight:
    """A checkpoint tensor as the decoder uses it: ``times * tensor + plus``, folded in before quantization.

    Attributes:
        name: canonical name, without the checkpoint's prefix.
        times: factor on every element.
        plus: offset on every element, applied after the factor (Gemma 3 norms multiply by ``1 + weight``).
    """

    name: str
    times: float = 1.0
    plus: float = 0.0


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """Projections and per-head norms of one attention layer.

    Attributes:
        query: matrix [H * D, M].
        key, value: matrices [K * D, M]; None where the layer attends to another layer's keys and values.
        query_norm, key_norm: RMS norm weights [D] of every query and key head.
        norm_value: whether value heads get an RMS norm too, one without weight.
        eps: of all these norms.
    """

    query: Weight
    query_norm: Weight
    key: Weight | None
    key_norm: Weight | None
    value: Weight | None
    norm_value: bool
    eps: float


class TableOps(Protocol[T]):
    """What turning token ids into embeddings takes. `T` is a backend's handle on a value: a graph edge, or a tensor."""

    def embedding(self, ids: T, table: Weight) -> T:
        """Rows of `table` [V, N] at `ids` [B, S]: [B, S, N]."""

    def ids_below(self, ids: T, vocab_size: int) -> T:
        """`ids` [B, S] where they are below `vocab_size`, 0 elsewhere."""

    def mul(self, a: T, b: T | float | Weight) -> T:
        """Product with broadcasting over trailing axes; a `Weight` is a vector over the last axis."""

    def reshape(self, x: T, *tail: int) -> T:
        """The same elements as [B, S, *tail]."""


class Ops(TableOps[T], Protocol[T]):
    """One backend's way to compute a decoder."""

    def linear(self, x: T, matrix: Weight) -> T:
        """``x @ matrix.T`` over the last axis: [..., K] and [N, K] give [..., N]."""

    def linears(self, x: T, matrices: Sequence[Weight]) -> Sequence[T]:
        """`linear` of one value with each of several matrices; a backend may store them as one."""

    def rms_norm(self, x: T, weight: Weight, eps: float) -> T:
        """``weight * x / sqrt(mean(x^2) + eps)`` over the last axis."""

    def add_norm(self, a: T, b: T, weight: Weight, eps: float) -> tuple[T, T]:
        """The sum of two values [B, S, M] and its RMS norm, in one go: a residual and what reads it."""

    def rms(self, x: T, floor: float) -> T:
        """``sqrt(max(mean(x^2), floor))`` over the last axis, which is kept with length 1."""

    def add(self, a: T, b: T | float) -> T:
        """Sum with broadcasting over trailing axes."""

    def sub(self, a: T, b: T) -> T:
        """Difference with broadcasting over trailing axes."""

    def div(self, a: T, b: T) -> T:
        """Quotient with broadcasting over trailing axes."""

    def matmul(self, a: T, b: T) -> T:
        """Batched matrix product over the last two axes."""

    def tanh(self, x: T) -> T:
        """Hyperbolic tangent."""

    def gelu(self, x: T) -> T:
        """Gaussian error linear unit, tanh approximation."""

    def gaussian_topk(self, x: T, deviations: float) -> T:
        """``relu(x - (mean + deviations * std))``, population statistics over the last axis."""

    def constant(self, values: Sequence[float], *tail: int) -> T:
        """Literal numbers as a value of shape `tail`, for broadcasting."""

    def stack(self, parts: Sequence[T]) -> T:
        """A values [B, S, M] as one [B, S, A, M]."""

    def take(self, x: T, index: int) -> T:
        """Element `index` of axis 2: [B, S, A, M] gives [B, S, M]."""

    def unstack(self, x: T, count: int, width: int) -> Sequence[T]:
        """The `count` elements of axis 2: [B, S, count, width] gives `count` values [B, S, width]."""

    def mean(self, x: T) -> T:
        """Mean over axis 2: [B, S, A, M] gives [B, S, M]."""

    def wanted(self, x: T) -> T:
        """The last positions, whose logits are asked for: [B, S, ...] gives [B, S', ...].

        What is asked for may be nothing at all (S' = 0). All keys and values must have been computed before.
        """

    def attend(self, layer: int, x: T, weights: AttentionWeights) -> T:
        """Causal attention of one layer over everything cached so far and the new positions, before the output matrix.

        `x` [B, S, M] is projected to heads, which are normed and rotated; the result is [B, S, H * D]. A layer without
        key and value of its own attends to what its `kv_owner` has cached, new positions included.
        """
