"""What stands where in one `.litertlm` file, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgepack.model.families import family_of
from edgepack.model.spec import ModelSpec
from edgepack.planning.planner import Plan, TensorPlan
from edgepack_converters.litert.attention import AttentionOps
from edgepack_converters.litert.builder import TableOps
from edgepack_converters.litert.container import Container, Kind, Section, arrange, compressed
from edgepack_converters.litert.flatbuffer import ModelFile
from edgepack_converters.litert.metadata import TextFacts, llm_metadata
from edgepack_converters.litert.tokenizer.choice import Choice
from edgepack_converters.litert.tokenizer.process import choose_apart

FOLDER, BUNDLE = "litert", "model.litertlm"
# The roles that a runtime asks for, and the names that LiteRT-LM has for them.
DECODER, EMBED, PER_LAYER = "decoder", "embed", "per_layer_embed"
MODEL_TYPES = {
    DECODER: "tf_lite_prefill_decode",
    EMBED: "tf_lite_embedder",
    PER_LAYER: "tf_lite_per_layer_embedder",
}


@dataclass(frozen=True, slots=True)
class Emission:
    """A bundle before any weight is read.

    Attributes:
        sections: by role.
        container: where all of it stands.
        tokenizer_reason: why the tokenizer is a tokenizer.json, which costs more memory; None where it is not.
    """

    sections: Mapping[str, Section]
    container: Container
    tokenizer_reason: str | None = None

    def spans(self) -> dict[str, tuple[int, int]]:
        """Offset and size in bytes of every model in the bundle, by role."""
        places = zip(self.sections.items(), self.container.offsets, strict=True)
        return {role: (offset, section.length) for (role, section), offset in places if role in MODEL_TYPES}


def build(plan: Plan, text: TextFacts, choice: Choice | None = None) -> Emission:
    """Emit all models of `plan` and decide where every byte stands.

    Args:
        choice: the tokenizer for the bundle; None where it is not chosen yet.

    Raises:
        CheckpointError: tokenizer.json is no tokenizer.
    """
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    metadata = llm_metadata(plan.spec, plan.context_tokens, text)
    sections = {"metadata": Section(Kind.LlmMetadataProto, metadata)}
    reason = None
    if text.tokenizer is not None:
        choice = choice or choose_apart(text.tokenizer, text.tokenizer_model)
        sections["tokenizer"], reason = _tokenizer(choice, text.tokenizer), choice.reason
    sections[EMBED] = _table(plan.spec, tensors, EMBED)
    if plan.spec.ple:
        sections[PER_LAYER] = _table(plan.spec, tensors, PER_LAYER)
    sections[DECODER] = _decoder(plan, tensors)
    return Emission(sections, arrange(list(sections.values())), reason)


def _tokenizer(choice: Choice, tokenizer: bytes) -> Section:
    if choice.model is not None:
        return Section(Kind.SP_Tokenizer, choice.model)
    return Section(Kind.HF_Tokenizer_Zlib, compressed(tokenizer))


def _decoder(plan: Plan, tensors: Mapping[str, TensorPlan]) -> Section:
    spec, model = plan.spec, ModelFile("edgepack decoder")
    # The longest first: LiteRT-LM creates its buffers from the first one.
    lengths = {f"prefill_{n}": n for n in sorted(plan.prefill_tokens, reverse=True)} | {"decode": 1}
    for name, positions in lengths.items():
        graph = model.subgraph(name)
        ops = AttentionOps(graph, tensors, spec, positions, plan.context_tokens)
        logits = family_of(spec).decode(ops, spec, ops.embeds, ops.per_layer)
        for i, owner in enumerate(spec.kv_owners):
            graph.outputs[f"kv_cache_k_{i}"], graph.outputs[f"kv_cache_v_{i}"] = ops.present[owner]
        if name == "decode":
            graph.outputs["logits"] = logits
    return _section(model, DECODER)


def _table(spec: ModelSpec, tensors: Mapping[str, TensorPlan], role: str) -> Section:
    """One of the two models that turn a token id into a row: LiteRT-LM runs them one token at a time."""
    model = ModelFile(f"edgepack {role}")
    graph = model.subgraph("embed")
    embeds, per_layer = family_of(spec).embed(TableOps(graph, tensors), spec, graph.input("token_ids", [1, 1], "int32"))
    for name, value in ((EMBED, embeds), (PER_LAYER, per_layer)):
        if name == role and value is not None:
            graph.outputs["embeddings"] = value
    return _section(model, role)


def _section(model: ModelFile, role: str) -> Section:
    content, placements, size_bytes = model.pack()
    return Section(Kind.TFLiteModel, content, {"model_type": MODEL_TYPES[role]}, placements, size_bytes)
