"""What a model family provides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from edgepack.model.config import ConfigKeys
from edgepack.model.families.layers import softcap
from edgepack.model.ops import Ops, TableOps, Weight
from edgepack.model.spec import ModelSpec
from edgepack.model.tensors import EMBEDDING, HEAD, TensorSpec

if TYPE_CHECKING:
    from edgepack.checkpoint.folder import Checkpoint

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DecoderState(Generic[T]):
    """What one layer leaves to the next, besides the keys and values that `Ops` caches.

    Attributes:
        hidden: [B, S, M]; of Gemma 3n the A streams, [B, S, A, M].
        per_layer: per-layer inputs of all layers, [B, S, L, P]; None where the family has none.
        parts: the same apart, one [B, S, P] a layer; empty where nobody has taken them apart yet.
    """

    hidden: T
    per_layer: T | None = None
    parts: Sequence[T] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """One model family: how to read it, which tensors it has, and its decoder written against `Ops`.

    Attributes:
        name: `ModelSpec.family` of its models.
        prefixes: what stands before the canonical names in an official checkpoint, by the `model_type` of config.json.
        unit_norm: the stored weight of a norm that changes nothing: 1, or 0 where norms multiply by ``1 + weight``.
        litert_lm_type: the `llm_model_type` by which LiteRT-LM knows it.
        turn: what stands before the role and after the text of a turn, as the model was trained.
        read_spec: config and tensor names to a `ModelSpec`.
        tensor_table: every tensor of the text model, once, in the order of computation.
        unneeded: canonical names and shapes of tensors that official checkpoints hold and the model has no use for.
        text_keys: the keys of a text model's config.
        outer_keys: the keys of a multimodal config around it.
        embed: token ids [B, S] to input embeddings [B, S, M] and, where the family has them, per-layer
            embeddings [B, S, L, P].
        begin: these two to what the first layer starts from.
        layer: one decoder layer. The last one with keys and values of its own (`ModelSpec.last_owner`) narrows S to the
            wanted positions once it has attended.
        finish: what the last layer leaves to the hidden states [B, S', M] that the head multiplies.
    """

    name: str
    prefixes: Mapping[str, str]
    unit_norm: float
    litert_lm_type: str
    turn: tuple[str, str]
    read_spec: Callable[[Checkpoint], ModelSpec]
    tensor_table: Callable[[ModelSpec], tuple[TensorSpec, ...]]
    unneeded: Callable[[ModelSpec], Mapping[str, tuple[int, ...]]]
    text_keys: ConfigKeys
    outer_keys: ConfigKeys
    embed: Callable[[TableOps[Any], ModelSpec, Any], tuple[Any, Any | None]]
    begin: Callable[[Ops[Any], ModelSpec, Any, Any | None], DecoderState[Any]]
    layer: Callable[[Ops[Any], ModelSpec, int, DecoderState[Any]], DecoderState[Any]]
    finish: Callable[[Ops[Any], ModelSpec, DecoderState[Any]], Any]

    def decode(self, ops: Ops[T], spec: ModelSpec, embeds: T, ple_rows: T | None) -> T:
        """What `embed` gives to the logits [B, S', V] of the wanted positions."""
        state: DecoderState[T] = self.begin(ops, spec, embeds, ple_rows)
        for i in range(len(spec.layers)):
            state = self.layer(ops, spec, i, state)
        logits = ops.linear(self.finish(ops, spec, state), Weight(head_name(spec)))
        return softcap(ops, logits, spec.final_logit_softcap)


def head_name(spec: ModelSpec) -> str:
    """Canonical name of the matrix [V, M] that makes logits of hidden states."""
    return EMBEDDING if spec.tied_head else HEAD
