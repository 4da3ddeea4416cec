"""The decoder's operations computed at once on numpy arrays, in float32 as Transformers does in eager mode.

No framework is needed, so this is what a family's decoder is compared with, and where activations are read from. It is
written to be read: nothing is fused, and every cache holds all positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import pi, prod, sqrt
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgepack.errors import EdgepackError
from edgepack.model.families import family_of
from edgepack.model.ops import AttentionWeights, Weight
from edgepack.model.spec import ModelSpec, RopeSpec
from edgepack.model.tensors import checkpoint_name
from edgepack.values import FloatArray

# The most that is read of a matrix, or computed of attention scores, at once, 64 MB: the head of E2B would be 2 GB, and
# so are the scores of 8,192 tokens.
PIECE_ELEMENTS = 1 << 24


class WeightSource(Protocol):
    """Where weights come from: an open `Checkpoint`, or what stands in its place."""

    def read_rows(self, name: str, start: int, stop: int) -> FloatArray:
        """Rows `start` to `stop` of the tensor that the checkpoint calls `name`, [stop - start, ...]."""


class NumpyOps:
    """`Ops` on arrays. It keeps the keys and values of one text, or of a batch of texts of one length.

    Weights are read where they are used and never kept, a piece of one matrix at a time. Every product with a matrix
    goes through `linear`: a subclass that overrides it sees the input of each.

    Args:
        spec: the model.
        weights: holds every tensor of the model's table (`require_tensors`).
        keep: number of last positions that `wanted` leaves; None leaves all.

    Attributes:
        cached: keys, rotated, and values of every owner as [2, B, T, K, D], by layer.
    """

    def __init__(self, spec: ModelSpec, weights: WeightSource, keep: int | None = None) -> None:
        self.spec, self.weights, self.keep = spec, weights, keep
        self.cached: dict[int, FloatArray] = {}
        self._shapes = {tensor.name: tensor.shape for tensor in family_of(spec).tensor_table(spec)}

    # -- weights

    def _read(self, weight: Weight, start: int, stop: int) -> FloatArray:
        """Rows of a weight with its factor and offset; the source's own array is left as it is."""
        values = self.weights.read_rows(checkpoint_name(self.spec, weight.name), start, stop)
        if weight.times != 1.0:
            values = values * weight.times
        return values if weight.plus == 0.0 else values + weight.plus

    def _vector(self, weight: Weight) -> FloatArray:
        return self._read(weight, 0, self._shapes[weight.name][0])

    def _spans(self, matrix: Weight) -> Iterator[tuple[int, int]]:
        """First and last row, exclusive, of every piece that is read of `matrix`."""
        rows, *rest = self._shapes[matrix.name]
        step = max(1, PIECE_ELEMENTS // prod(rest))
        return ((start, min(start + step, rows)) for start in range(0, rows, step))

    # -- tables

    def embedding(self, ids: npt.NDArray[Any], table: Weight) -> FloatArray:
        found, places = np.unique(ids, return_inverse=True)
        rows = np.concatenate([self._read(table, row, row + 1) for row in found.tolist()])
        return rows[places]

    def ids_below(self, ids: npt.NDArray[Any], vocab_size: int) -> npt.NDArray[Any]:
        return np.where(ids < vocab_size, ids, 0)

    def mul(self, a: FloatArray, b: FloatArray | float | Weight) -> FloatArray:
        return a * (self._vector(b) if isinstance(b, Weight) else b)

    def reshape(self, x: FloatArray, *tail: int) -> FloatArray:
        return x.reshape(*x.shape[:2], *tail)

    # -- products and norms

    def linear(self, x: FloatArray, matrix: Weight) -> FloatArray:
        rows, columns = self._shapes[matrix.name]
        flat = x.reshape(-1, columns)
        out = np.empty((len(flat), rows), np.float32)
        for start, stop in self._spans(matrix):
            np.matmul(flat, self._read(matrix, start, stop).T, out=out[:, start:stop])
        return out.reshape(*x.shape[:-1], rows)

    def linears(self, x: FloatArray, matrices: Sequence[Weight]) -> Sequence[FloatArray]:
        return [self.linear(x, matrix) for matrix in matrices]

    def rms_norm(self, x: FloatArray, weight: Weight, eps: float) -> FloatArray:
        return self._normed(x, eps) * self._vector(weight)

    def _normed(self, x: FloatArray, eps: float) -> FloatArray:
        length: FloatArray = np.sqrt(_mean(x * x) + eps)
        return x / length

    def add_norm(self, a: FloatArray, b: FloatArray, weight: Weight, eps: float) -> tuple[FloatArray, FloatArray]:
        total = a + b
        return total, self.rms_norm(total, weight, eps)

    def rms(self, x: FloatArray, floor: float) -> FloatArray:
        return np.sqrt(np.maximum(_mean(x * x), floor))

    def gaussian_topk(self, x: FloatArray, deviations: float) -> FloatArray:
        centred = x - _mean(x)
        return np.maximum(centred - deviations * np.sqrt(_mean(centred * centred)), 0)

    # -- arithmetic

    def add(self, a: FloatArray, b: FloatArray | float) -> FloatArray:
        return a + b

    def sub(self, a: FloatArray, b: FloatArray) -> FloatArray:
        return a - b

    def div(self, a: FloatArray, b: FloatArray) -> FloatArray:
        return a / b

    def matmul(self, a: FloatArray, b: FloatArray) -> FloatArray:
        product: FloatArray = a @ b
        return product

    def tanh(self, x: FloatArray) -> FloatArray:
        return np.tanh(x)

    def gelu(self, x: FloatArray) -> FloatArray:
        inner = self.mul(x + self.mul(x * x * x, 0.044715), sqrt(2 / pi))
        return self.mul(x * (self.tanh(inner) + 1), 0.5)

    def constant(self, values: Sequence[float], *tail: int) -> FloatArray:
        return np.asarray(values, np.float32).reshape(tail)

    # -- shapes

    def stack(self, parts: Sequence[FloatArray]) -> FloatArray:
        return np.stack(parts, axis=2)

    def take(self, x: FloatArray, index: int) -> FloatArray:
        return x[:, :, index]

    def unstack(self, x: FloatArray, count: int, width: int) -> Sequence[FloatArray]:
        return [x[:, :, i] for i in range(count)]

    def mean(self, x: FloatArray) -> FloatArray:
        values: FloatArray = x.mean(2)
        return values

    def wanted(self, x: FloatArray) -> FloatArray:
        return x if self.keep is None else x[:, max(0, x.shape[1] - self.keep) :]

    # -- attention

    def attend(self, layer: int, x: FloatArray, weights: AttentionWeights) -> FloatArray:
        attention, (B, S, _) = self.spec.attention_of(layer), x.shape
        H, K, D = attention.num_heads, attention.num_kv_heads, attention.head_dim
        if weights.key is not None and weights.value is not None and weights.key_norm is not None:
            first = self.cached[layer].shape[2] if layer in self.cached else 0
            key = self.rms_norm(self.reshape(self.linear(x, weights.key), K, D), weights.key_norm, weights.eps)
            value = self.reshape(self.linear(x, weights.value), K, D)
            value = self._normed(value, weights.eps) if weights.norm_value else value
            new = np.stack([_rotated(key, np.arange(first, first + S), attention.rope), value])
            self.cached[layer] = np.concatenate([self.cached[layer], new], 2) if first else new
        keys, values = self.cached[self.spec.layers[layer].kv_owner]
        T = keys.shape[1]
        positions = np.arange(T - S, T)  # a layer behind `wanted` has the last ones alone
        query = self.rms_norm(self.reshape(self.linear(x, weights.query), H, D), weights.query_norm, weights.eps)
        query = _rotated(query, positions, attention.rope).reshape(B, S, K, H // K, D)
        heads, step = np.empty_like(query), max(1, PIECE_ELEMENTS // (B * H * T))
        for start in range(0, S, step):
            rows = slice(start, start + step)
            # [B, K, G, S, D] by [B, K, 1, D, T]: the G query heads of a key head share its keys.
            scores = query[:, rows].transpose(0, 2, 3, 1, 4) @ keys.transpose(0, 2, 3, 1)[:, :, None]
            visible = _visible(positions[rows], T, attention.window)
            shares = _softmax(np.where(visible, scores * attention.scale, -np.inf))
            heads[:, rows] = (shares @ values.transpose(0, 2, 1, 3)[:, :, None]).transpose(0, 3, 1, 2, 4)
        return heads.reshape(B, S, H * D)


def _rotated(x: FloatArray, positions: npt.NDArray[np.int64], rope: RopeSpec) -> FloatArray:
    """Rotary embedding of heads [B, S, N, D]: dimension i of the first half turns with i of the second."""
    half = x.shape[-1] // 2
    # In float64 as at export: an angle of some thousand radians has no exact float32.
    frequencies = rope.theta ** (-np.arange(half) / half) / rope.linear_factor
    angles = positions[:, None, None] * frequencies
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    one, two = x[..., :half], x[..., half:]
    return np.concatenate([one * cos - two * sin, two * cos + one * sin], -1)


def _visible(positions: npt.NDArray[np.int64], T: int, window: int | None) -> npt.NDArray[np.bool_]:
    """Which of T cached positions each of the S `positions` sees, [S, T]."""
    behind = positions[:, None] - np.arange(T)
    return (behind >= 0) & (behind < (T if window is None else window))


def _mean(x: FloatArray) -> FloatArray:
    values: FloatArray = x.mean(-1, keepdims=True)
    return values


def _softmax(scores: FloatArray) -> FloatArray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    shares: FloatArray = powers / powers.sum(-1, keepdims=True)
    return shares


def logits(ops: NumpyOps, ids: npt.ArrayLike) -> FloatArray:
    """Logits [B, S', V] of the wanted positions of token ids [B, S], which follow those of earlier calls with `ops`.

    Raises:
        EdgepackError: `ids` are no such array, have another B than before, or one is no id of the vocabulary.
        CheckpointError: a weight cannot be read. Some layers have cached the new positions then, and others have not.
    """
    given, spec = np.asarray(ids), ops.spec
    if given.ndim != 2 or not given.size or given.dtype.kind not in "iu":
        raise EdgepackError(
            f"ids: expected one or more whole numbers of shape [B, S], got {given.dtype} {list(given.shape)}"
        )
    if given.min() < 0 or given.max() >= spec.vocab_size:
        raise EdgepackError(
            f"ids: expected numbers from 0 to {spec.vocab_size - 1}, got {given.min()} to {given.max()}"
        )
    texts = {held.shape[1] for held in ops.cached.values()}
    if texts - {len(given)}:
        raise EdgepackError(f"ids: expected {texts.pop()} texts, as many as in earlier calls, got {len(given)}")
    family = family_of(spec)
    values: FloatArray = family.decode(ops, spec, *family.embed(ops, spec, given))
    return values
