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

    def rms_norm(self, x: T, weight: Weight | None, eps: float) -> T:
        """``x / sqrt(mean(x^2) + eps)`` over the last axis, times `weight` if there is one."""

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

    def unstack(self, x: T, count: int) -> Sequence[T]:
        """The `count` elements of axis 2: [B, S, count, P] gives `count` values [B, S, P]."""

    def mean(self, x: T) -> T:
        """Mean over axis 2: [B, S, A, M] gives [B, S, M]."""

    def wanted(self, x: T) -> T:
        """The last positions, whose logits are asked for: [B, S, ...] gives [B, S', ...].

        From here on only these positions are computed. Layers that own keys and values must come before.
        """

    def attend(self, layer: int, query: T, key: T | None = None, value: T | None = None) -> T:
        """Causal attention of one layer over everything cached so far and the new positions.

        Query [B, S, H, D], key and value [B, S, K, D], all before rotary embedding, give [B, S, H * D].
        Without `key` and `value` the layer attends to what its `kv_owner` has cached, new positions included.
        """
