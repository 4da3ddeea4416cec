"""What a model family provides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.model.config import ConfigKeys
from edgepack.model.spec import ModelSpec
from edgepack.model.tensors import TensorSpec

if TYPE_CHECKING:
    from edgepack.checkpoint.folder import Checkpoint
    from edgepack.model.ops import Ops, TableOps


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
        decode: these two to the logits [B, S', V] of the wanted positions.
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
    decode: Callable[[Ops[Any], ModelSpec, Any, Any | None], Any]
