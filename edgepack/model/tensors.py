"""Which tensor of a checkpoint is which of the model: prefixes, the head, and tensors that nobody reads.

Source: `tie_weights` and the renaming of old names in Transformers 5 (Apache-2.0), read as the specification.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from edgepack.errors import CheckpointError
from edgepack.model.spec import Component, ModelSpec, TensorNames
from edgepack.shown import shown
from edgepack.values import Frozen

if TYPE_CHECKING:
    from edgepack.checkpoint.folder import Checkpoint


class TensorSpec(Frozen):
    """A tensor that the decoder needs.

    Attributes:
        name: canonical name: as in a text-only checkpoint, without the leading ``model.``.
        shape: [N, K] of a matrix or embedding, [N] of a vector.
        component: the group that a recipe speaks about.
        gathered: rows are looked up by token id (an embedding), possibly besides being multiplied with.
    """

    name: str
    shape: tuple[int, ...]
    component: Component
    gathered: bool = False


PREFIXES = ("model.language_model.", "language_model.model.", "model.", "")
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
# Where Transformers looks for a head: it stands beside the model, or beside the text model in old multimodal names.
HEAD_NAMES = (HEAD, f"language_model.{HEAD}")
# Encoders of images and sound, and what fits their output to the text model.
TOWERS = ("vision_tower.", "audio_tower.", "embed_vision.", "embed_audio.", "multi_modal_projector.")
# Computed from the config, though old releases saved it.
COMPUTED = (".rotary_emb.inv_freq",)
# What wrappers put before every name, and how to save without it.
WRAPPERS = {
    "_orig_mod.": "torch.compile: save model._orig_mod instead",
    "base_model.model.": "PEFT: merge the adapter (merge_and_unload) and save the result",
    "module.": "DataParallel or DeepSpeed: save model.module instead",
    "_fsdp_wrapped_module.": "FSDP: save a full state dict",
}
# Words in the name of a tensor that is not of a language model, and what such a checkpoint is.
FOREIGN = {
    ".lora_": "an adapter that was not merged: merge it (peft: merge_and_unload) and save the result",
    ".base_layer.": "an adapter that was not merged: merge it (peft: merge_and_unload) and save the result",
    ".score.": "the head of a classifier, which a text generator has no place for",
    ".classifier.": "the head of a classifier, which a text generator has no place for",
    ".v_head.": "the value head of a reward model, which a text generator has no place for",
    ".absmax": "a quantized checkpoint: start from the weights before quantization",
    ".quant_": "a quantized checkpoint: start from the weights before quantization",
    ".SCB": "a quantized checkpoint: start from the weights before quantization",
    ".qweight": "a quantized checkpoint: start from the weights before quantization",
    ".scales": "a quantized checkpoint: start from the weights before quantization",
    "weight_scale": "a quantized checkpoint: start from the weights before quantization",
    ".bias": "a bias, which this model has none of",
}


def find_names(checkpoint: Checkpoint, tied_by_config: bool) -> tuple[TensorNames, bool]:
    """How `checkpoint` names the tensors of its text model, and whether the embedding is the head as well.

    A config that ties both is overruled by a file that holds two different tensors, and a tied tensor may stand under
    either name: this is what Transformers computes with.

    Raises:
        CheckpointError: there is no embedding, or a head cannot be read.
    """
    heads = [name for name in HEAD_NAMES if name in checkpoint.tensors]
    prefix = _prefix(checkpoint, EMBEDDING)
    if prefix is None:
        prefix = _prefix(checkpoint, "layers.0.input_layernorm.weight")
        if prefix is None or not heads or not tied_by_config:
            raise CheckpointError(_why_no_embedding(checkpoint))
        if not all(checkpoint.same_values(name, heads[0]) for name in heads[1:]):
            raise CheckpointError(
                f"{checkpoint.path}: tensors {' and '.join(map(shown, heads))} differ, and there is no embedding "
                "beside them: which is the head cannot be told"
            )
        return TensorNames(prefix=prefix, others={EMBEDDING: heads[0]}), True
    if tied_by_config and all(checkpoint.same_values(name, prefix + EMBEDDING) for name in heads):
        return TensorNames(prefix=prefix), True
    beside = HEAD_NAMES[prefix == "language_model.model."]
    return TensorNames(prefix=prefix, others={HEAD: heads[0] if heads else beside}), False


def _prefix(checkpoint: Checkpoint, name: str) -> str | None:
    return next((prefix for prefix in PREFIXES if prefix + name in checkpoint.tensors), None)


def _why_no_embedding(checkpoint: Checkpoint) -> str:
    start = f"{checkpoint.path}: tensor '{EMBEDDING}' is missing under all known prefixes {list(PREFIXES)}"
    for wrapper, way_out in WRAPPERS.items():
        wrapped = next((name for name in checkpoint.tensors if name.startswith(wrapper)), None)
        if wrapped is not None:
            return f"{start}, and {shown(wrapped)} is named by a wrapper: {way_out}, or take '{wrapper}' off all names"
    return f"{start}; is this a complete Gemma checkpoint?"


def head_doubt(checkpoint: Checkpoint, spec: ModelSpec) -> str | None:
    """What config.json says of the head and the file does not bear out, in one line; None where both agree.

    A multimodal config and a text-only one have the key in the same place.
    """
    if spec.tied_head or not checkpoint.config.get("tie_word_embeddings", True):
        return None
    return (
        f"config.json ties the head to the embedding, and {spec.names.others.get(HEAD, HEAD)} holds other values: it "
        "is used, as in Transformers 5, and stored besides; tie_word_embeddings should say false"
    )


def checkpoint_name(spec: ModelSpec, name: str) -> str:
    """The name in the checkpoint of the tensor with the canonical `name`."""
    return spec.names.others.get(name, spec.names.prefix + name)


def compare_tensors(
    checkpoint: Checkpoint, spec: ModelSpec, table: Iterable[TensorSpec], unneeded: Iterable[str]
) -> None:
    """Check that every tensor of `table` is there and has its shape, and that none is there that nothing reads.

    Args:
        unneeded: canonical names of what a checkpoint of this family may hold and the model has no use for.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or would be ignored without a word; it is named.
    """
    names = {checkpoint_name(spec, tensor.name): tensor.shape for tensor in table}
    for name, shape in names.items():
        checkpoint.require(name, shape)
    allowed = {checkpoint_name(spec, name) for name in unneeded}
    if spec.tied_head:
        allowed.update(HEAD_NAMES)
    present: Mapping[str, object] = {**checkpoint.tensors, **checkpoint.skipped}
    unread = [
        name for name in present if name not in names and name not in allowed and not _is_known_not_to_matter(name)
    ]
    if unread:
        raise CheckpointError(_why_unread(checkpoint, spec, unread))


def _is_known_not_to_matter(name: str) -> bool:
    return name.removeprefix("model.").startswith(TOWERS) or name.endswith(COMPUTED)


def _foreign(name: str) -> str | None:
    """What a checkpoint with a tensor of this name is, where the name says so."""
    return next((what for word, what in FOREIGN.items() if word in f".{name}"), None)


def _why_unread(checkpoint: Checkpoint, spec: ModelSpec, unread: list[str]) -> str:
    first = min(unread, key=lambda name: (_foreign(name) is None, name))
    others = f" and {len(unread) - 1:,} others" if len(unread) > 1 else ""
    start = f"{checkpoint.path}: tensor {shown(first)}{others} would be read by nothing"
    if what := _foreign(first):
        return f"{start}: it belongs to {what}"
    if first.startswith(f"{spec.names.prefix}layers."):
        return f"{start}; config.json describes {len(spec.layers)} layers without it: does it belong to these weights?"
    return f"{start}; remove it from the checkpoint if the model does not need it"
