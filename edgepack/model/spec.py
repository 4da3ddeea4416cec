"""What a checkpoint is, in the words of the planner. `config.json` dies here.

Letter legend of all shapes in the project: B batch, S sequence, T total (past and new), L layers, H query heads,
K key/value heads, D head dim, M hidden size, F feed-forward width, V vocabulary, P per-layer dim, A AltUp inputs.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

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
AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class RopeSpec(Frozen):
    """Rotary embedding of one attention kind: base frequency and linear position scaling."""

    theta: AboveZero
    linear_factor: AboveZero = 1.0


class AttentionSpec(Frozen):
    """The attention of all layers of one kind.

    Attributes:
        num_heads: H.
        num_kv_heads: K.
        head_dim: D.
        scale: factor on the scores.
        window: number of positions that a query sees, its own one included; None where it sees all before it.
        rope: rotary embedding of queries and keys.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: AboveZero
    window: int | None
    rope: RopeSpec

    @property
    def query_width(self) -> int:
        """H * D."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """K * D."""
        return self.num_kv_heads * self.head_dim

    @property
    def groups(self) -> int:
        """Query heads that share a key/value head, G = H / K."""
        return self.num_heads // self.num_kv_heads

    def seen(self, tokens: int) -> int:
        """How many of `tokens` positions the last one sees."""
        return tokens if self.window is None else min(self.window, tokens)


class LayerSpec(Frozen):
    """One decoder layer.

    Attributes:
        kind: attention kind, a key of `ModelSpec.attention`.
        kv_owner: index of the layer whose keys and values this layer attends to, one of its kind; its own index when it
            owns them.
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


class TensorNames(Frozen):
    """How a checkpoint names the tensors of the text model.

    Attributes:
        prefix: what stands before the canonical names.
        others: names, by canonical name, that are not that prefix and the canonical name.
    """

    prefix: str
    others: dict[str, str] = Field(default_factory=dict)


class ModelSpec(Frozen):
    """Everything that planning and emitting need to know about a text decoder.

    Attributes:
        tied_head: the embedding is the head as well.
        attention: geometry by kind, for the kinds that `layers` have.
    """

    family: str
    model_type: str
    names: TensorNames
    vocab_size: int
    hidden_size: int
    max_context_tokens: int
    rms_norm_eps: float
    final_logit_softcap: float | None
    tied_head: bool
    attention: dict[AttentionKind, AttentionSpec]
    layers: tuple[LayerSpec, ...]
    ple: PleSpec | None = None
    altup: AltUpSpec | None = None
    laurel_rank: int | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _require_attention_of_all_layers(self) -> Self:
        kinds = {layer.kind for layer in self.layers}
        if self.attention.keys() != kinds:
            raise ValueError(f"attention is given for {sorted(self.attention)}, the layers are {sorted(kinds)}")
        return self

    def attention_of(self, layer: int) -> AttentionSpec:
        """The attention of one layer."""
        return self.attention[self.layers[layer].kind]

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
