"""What a checkpoint is, in the words of the planner. `config.json` dies here.

Letter legend of all shapes in the project: B batch, S sequence, T total (past and new), L layers, H query heads,
K key/value heads, D head dim, M hidden size, F feed-forward width, V vocabulary, P per-layer dim, A AltUp inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from edgepack.errors import CheckpointError, UnsupportedError
from edgepack.shown import shown

if TYPE_CHECKING:
    from edgepack.checkpoint.folder import Checkpoint

AttentionKind = Literal["sliding", "full"]
_GENERATORS = ("ForCausalLM", "ForConditionalGeneration")


class Frozen(BaseModel):
    """Base of every value that travels between stages: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
    tensor_names: dict[str, str] = {}
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


def read_spec(checkpoint: Checkpoint) -> ModelSpec:
    """Read the model that `checkpoint` describes.

    Raises:
        CheckpointError: a key of config.json is missing or has the wrong type; the file and key are named.
        UnsupportedError: the model type is none of the known families.
    """
    from edgepack.model.families import FAMILIES

    model_type = checkpoint.config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(
            f"{checkpoint.config_path}: key 'model_type' is missing; is this a Transformers checkpoint?"
        )
    family = FAMILIES.get(model_type)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedError(
            f"{checkpoint.config_path}: model_type {shown(model_type)} is not supported; known: {known}"
        )
    _require_generator(checkpoint)
    return family.read_spec(checkpoint)


def _require_generator(checkpoint: Checkpoint) -> None:
    """Refuse what was trained for something else, such as a classifier: its head would be lost without a word."""
    value = checkpoint.config.get("architectures")
    names = [] if value is None else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"{checkpoint.config_path}: key 'architectures': expected a list of names, got {shown(value)}"
        )
    if names and not any(name.endswith(_GENERATORS) for name in names):
        raise UnsupportedError(
            f"{checkpoint.config_path}: architectures is {shown(names)}, which does not generate text: expected a "
            f"class that ends in {' or '.join(_GENERATORS)}"
        )
