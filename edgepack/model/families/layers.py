"""What both families have in their layers."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from edgepack.model.config import ConfigReader
from edgepack.model.ops import Ops
from edgepack.model.rope import rope_specs
from edgepack.model.spec import AttentionKind, AttentionSpec, Component, LayerSpec, ModelSpec
from edgepack.model.tensors import TensorSpec

T = TypeVar("T")


def ffn_and_norms(spec: ModelSpec, layer: int, norms: tuple[str, ...]) -> list[TensorSpec]:
    """Tensors that both families have in every layer: attention, feed-forward and norms over M."""
    at, m, attention = f"layers.{layer}.", spec.hidden_size, spec.attention_of(layer)
    queries, keys = attention.query_width, attention.kv_width
    table = [TensorSpec(name=f"{at}{norm}.weight", shape=(m,), component="norm") for norm in norms]
    projections: list[tuple[str, tuple[int, int], Component]] = [
        ("q", (queries, m), "attention"),
        ("o", (m, queries), "attention"),
    ]
    head_norms = ["q"]
    if spec.layers[layer].kv_owner == layer:
        projections += [("k", (keys, m), "attention"), ("v", (keys, m), "attention_value")]
        head_norms.append("k")
    table += [
        TensorSpec(name=f"{at}self_attn.{p}_proj.weight", shape=shape, component=component)
        for p, shape, component in projections
    ]
    table += [
        TensorSpec(name=f"{at}self_attn.{p}_norm.weight", shape=(attention.head_dim,), component="norm")
        for p in head_norms
    ]
    f = spec.layers[layer].ffn_width
    for name, shape in (("gate", (f, m)), ("up", (f, m)), ("down", (m, f))):
        table.append(TensorSpec(name=f"{at}mlp.{name}_proj.weight", shape=shape, component="ffn"))
    return table


def attention_specs(
    config: ConfigReader, kinds: Collection[AttentionKind], *, heads: tuple[int, int, int], scale: float, window: int
) -> dict[AttentionKind, AttentionSpec]:
    """One geometry for all kinds of layers that there are; they differ in window and rotary embedding.

    Args:
        heads: H, K and D.
        window: of sliding layers, where the config has none.
    """
    (h, k, d), ropes = heads, rope_specs(config)
    windows: dict[AttentionKind, int | None] = {"sliding": config.positive("sliding_window", window), "full": None}
    return {
        kind: AttentionSpec(num_heads=h, num_kv_heads=k, head_dim=d, scale=scale, window=windows[kind], rope=rope)
        for kind, rope in ropes.items()
        if kind in kinds
    }


def build_layers(
    kinds: list[AttentionKind], owners: list[int], widths: list[int], sparsity: list[float]
) -> tuple[LayerSpec, ...]:
    """One `LayerSpec` a layer from the parallel lists of a config."""
    return tuple(
        LayerSpec(kind=kind, kv_owner=owner, ffn_width=width, activation_sparsity=share)
        for kind, owner, width, share in zip(kinds, owners, widths, sparsity, strict=True)
    )


def softcap(ops: Ops[T], x: T, cap: float | None) -> T:
    """``cap * tanh(x / cap)``; greedy decoding does not notice its absence, probabilities do."""
    return x if cap is None else ops.mul(ops.tanh(ops.mul(x, 1 / cap)), cap)
