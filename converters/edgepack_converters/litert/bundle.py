"""What stands where in one `.litertlm` file, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgepack.model.families import family_of
from edgepack.model.spec import ModelSpec
from edgepack.package.interface import DECODER, EMBED
from edgepack.package.interface_litert import (
    LOOKUP,
    MODEL_TYPES,
    PER_LAYER_EMBED,
    ROW,
    TOKEN_IDS,
    decoder_interface,
    decoder_signatures,
    row_shapes,
    table_interface,
)
from edgepack.planning.plan import Plan, TensorPlan
from edgepack_converters.litert.attention import AttentionOps
from edgepack_converters.litert.builder import TableOps
from edgepack_converters.litert.container import Container, Kind, Section, arrange, compressed
from edgepack_converters.litert.flatbuffer import ModelFile
from edgepack_converters.litert.metadata import TextFacts, llm_metadata
from edgepack_converters.litert.tokenizer.choice import Choice
from edgepack_converters.litert.tokenizer.process import choose_apart

FOLDER, BUNDLE = "litert", "model.litertlm"


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
    for role in row_shapes(plan.spec):
        sections[role] = _table(plan.spec, tensors, role)
    sections[DECODER] = _decoder(plan, tensors)
    return Emission(sections, arrange(list(sections.values())), reason)


def _tokenizer(choice: Choice, tokenizer: bytes) -> Section:
    if choice.model is not None:
        return Section(Kind.SP_Tokenizer, choice.model)
    return Section(Kind.HF_Tokenizer_Zlib, compressed(tokenizer))


def _decoder(plan: Plan, tensors: Mapping[str, TensorPlan]) -> Section:
    spec, model = plan.spec, ModelFile("edgepack decoder")
    for name, positions in decoder_signatures(plan).items():
        graph = model.subgraph(name, decoder_interface(spec, name, positions, plan.context_tokens))
        ops = AttentionOps(graph, tensors, spec, positions, plan.context_tokens)
        graph.give(ops.results(family_of(spec).decode(ops, spec, ops.embeds, ops.per_layer)))
    return _section(model, DECODER)


def _table(spec: ModelSpec, tensors: Mapping[str, TensorPlan], role: str) -> Section:
    """One of the two models that turn a token id into a row: LiteRT-LM runs them one token at a time."""
    model = ModelFile(f"edgepack {role}")
    graph = model.subgraph(LOOKUP, table_interface(spec, role))
    embeds, per_layer = family_of(spec).embed(TableOps(graph, tensors), spec, graph.inputs[TOKEN_IDS])
    row = {EMBED: embeds, PER_LAYER_EMBED: per_layer}[role]
    graph.give({ROW: row} if row is not None else {})
    return _section(model, role)


def _section(model: ModelFile, role: str) -> Section:
    content, placements, size_bytes = model.pack()
    return Section(Kind.TFLiteModel, content, {"model_type": MODEL_TYPES[role]}, placements, size_bytes)
