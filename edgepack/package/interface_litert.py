"""The models in the bundle of a LiteRT package, and their signatures, as LiteRT-LM looks for them. Batch is 1."""

from __future__ import annotations

from collections.abc import Mapping

from edgepack.model.spec import ModelSpec
from edgepack.package.interface import DECODER, EMBED, Interface, TensorType, cache_type
from edgepack.planning.plan import Plan

PER_LAYER_EMBED = "per_layer_embed"
# LiteRT-LM's names for the models of the bundle.
MODEL_TYPES = {
    DECODER: "tf_lite_prefill_decode",
    EMBED: "tf_lite_embedder",
    PER_LAYER_EMBED: "tf_lite_per_layer_embedder",
}
# Signatures: the one of a table, and the decoder's for one token.
LOOKUP, DECODE = "embed", "decode"
TOKEN_IDS, ROW = "token_ids", "embeddings"
# The decoder's inputs for the rows of each table.
ROWS = {EMBED: "embeddings", PER_LAYER_EMBED: "per_layer_embeddings"}
INPUT_POS, MASK, LOGITS = "input_pos", "mask", "logits"


def cache_names(i: int) -> tuple[str, str]:
    """Keys and values of the owner number `i`: each is input and output at once."""
    return f"kv_cache_k_{i}", f"kv_cache_v_{i}"


def prefill_name(tokens: int) -> str:
    """The decoder's signature for `tokens` tokens of a prompt."""
    return f"prefill_{tokens}"


def decoder_signatures(plan: Plan) -> dict[str, int]:
    """New tokens S of every signature of the decoder. The longest first: LiteRT-LM creates its buffers from it."""
    return {prefill_name(n): n for n in sorted(plan.prefill_tokens, reverse=True)} | {DECODE: 1}


def row_shapes(spec: ModelSpec) -> Mapping[str, tuple[int, ...]]:
    """Shape of a row of each table that the model has, by role."""
    shapes: dict[str, tuple[int, ...]] = {EMBED: (spec.hidden_size,)}
    if spec.ple is not None:
        shapes[PER_LAYER_EMBED] = (len(spec.layers), spec.ple.dim)
    return shapes


def table_interface(spec: ModelSpec, role: str) -> Interface:
    """A model that looks one token up."""
    row = TensorType("float32", (1, 1, *row_shapes(spec)[role]))
    return Interface({TOKEN_IDS: TensorType("int32", (1, 1))}, {ROW: row})


def decoder_interface(spec: ModelSpec, name: str, positions: int, context_tokens: int) -> Interface:
    """The signature `name` of the decoder, for `positions` new tokens S; only one for decoding has logits."""
    rows = {ROWS[role]: TensorType("float32", (1, positions, *row)) for role, row in row_shapes(spec).items()}
    lengths = {
        INPUT_POS: TensorType("int32", (positions,)),
        MASK: TensorType("float32", (1, 1, positions, context_tokens)),
    }
    caches: dict[str, TensorType] = {}
    for i, owner in enumerate(spec.kv_owners):
        attention = spec.attention_of(owner)
        caches |= dict.fromkeys(cache_names(i), cache_type(attention, attention.seen(context_tokens)))
    logits = {LOGITS: TensorType("float32", (1, 1, spec.vocab_size))} if name == DECODE else {}
    return Interface(rows | lengths | caches, caches | logits)
