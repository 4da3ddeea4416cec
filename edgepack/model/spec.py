"""What a checkpoint is, in the words of the planner. `config.json` dies here.

Letter legend of all shapes in the project: B batch, S sequence, T total (past and new), L layers, H query heads,
K key/value heads, D head dim, M hidden size, F feed-forward width, V vocabulary, P per-layer dim, A AltUp inputs.
"""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from edgepack.values import Frozen

AttentionKind = Literal["sliding", "full"]
# The groups of tensors that a recipe speaks about.
Component = Literal[
    "ffn",
    "attention",
    "attention_value",
    "embedding",
    "head",
    "ple",
    "per_layer",
    "altup_projection",
    "altup",
    "laurel",
    "norm",
]
COMPONENTS: tuple[Component, ...] = get_args(Component)


class RopeSpec(Frozen):
    """Rotary embedding of one attention kind: base frequency and linear position scaling."""

    theta: float
    linear_factor: float = 1.0


class LayerSpec(Frozen):
    """One decoder layer.

    Attributes:
        kind: attention kind; a sliding layer sees the last `ModelSpec.sliding_window` positions only.
        kv_owner: index of the layer whose keys and values this layer attends to; its own index when it owns them.
        ffn_width: F of this layer (MatFormer slices mix widths).
        activation_sparsity: share of gate activations that the gaussian top-k cuts off; 0 switches it off.
    """

    kind: AttentionKind
    kv_owner: int
    ffn_width: int
    activation_sparsity: float = 0.0


class PleSpec(Frozen):
    """Per-layer embeddings: a table of shape [vocab_size, L * dim], one row read per token."""

    vocab_size: int
    dim: int


class AltUpSpec(Frozen):
    """Alternating updates (Baykal et al., 2023): A residual streams, one of them active."""

    num_inputs: int
    active_index: int
    correct_scale: bool


class ModelSpec(Frozen):
    """Everything that planning and emitting need to know about a text decoder.

    Attributes:
        tensor_prefix: what stands before the canonical names in the checkpoint.
        tensor_names: names in the checkpoint, by canonical name, that are not that prefix and the canonical name.
        tied_head: the embedding is the head as well.
    """

    family: Literal["gemma3n", "gemma3"]
    model_type: str
    tensor_prefix: str
    tensor_names: dict[str, str] = Field(default_factory=dict)
    vocab_size: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    attention_scale: float
    sliding_window: int
    max_context_tokens: int
    rms_norm_eps: float
    final_logit_softcap: float | None
    tied_head: bool
    rope: dict[AttentionKind, RopeSpec]
    layers: tuple[LayerSpec, ...]
    ple: PleSpec | None = None
    altup: AltUpSpec | None = None
    laurel_rank: int | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def kv_owners(self) -> tuple[int, ...]:
        """Indices of the layers that own keys and values, in order: the order of the cache inputs of a graph."""
        return tuple(i for i, layer in enumerate(self.layers) if layer.kv_owner == i)

    @property
    def first_shared_layer(self) -> int:
        """Index of the first layer that owns no keys and values; L where every layer owns its own."""
        return next((i for i, layer in enumerate(self.layers) if layer.kv_owner != i), len(self.layers))

    @property
    def last_owner(self) -> int:
        """Index of the last layer that owns keys and values: behind its attention only wanted positions matter."""
        return self.kv_owners[-1]
