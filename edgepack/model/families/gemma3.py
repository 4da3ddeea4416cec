"""Gemma 3, text: sliding and full attention in a fixed pattern, norms that multiply by ``1 + weight``.

Source: the Gemma 3 model card and Transformers' `modeling_gemma3.py` (Apache-2.0), read as the specification.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, TypeVar

from edgepack.errors import UnsupportedError
from edgepack.model.config import MOST_LAYERS, ConfigReader, layer_kinds, open_config, token_ids
from edgepack.model.families.base import DecoderState, Family
from edgepack.model.families.layers import attention_specs, build_layers, ffn_and_norms
from edgepack.model.ops import AttentionWeights, Ops, TableOps, Weight
from edgepack.model.shared_config_keys import outer_keys, text_keys
from edgepack.model.spec import ModelSpec
from edgepack.model.tensors import TensorSpec, find_names

if TYPE_CHECKING:
    from edgepack.checkpoint.folder import Checkpoint

T = TypeVar("T")
LAYER_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


TEXT_KEYS = text_keys(
    read=frozenset({"query_pre_attn_scalar", "sliding_window_pattern"}),
    only={"attn_logit_softcapping": ()},
    without_effect=frozenset({"hidden_act"}),
)
OUTER_KEYS = outer_keys(
    TEXT_KEYS,
    frozenset(
        [
            "boi_token_id",
            "boi_token_index",
            "eoi_token_id",
            "eoi_token_index",
            "image_token_id",
            "image_token_index",
            "mm_tokens_per_image",
            "vision_config",
        ]
    ),
)


def read_spec(checkpoint: Checkpoint) -> ModelSpec:
    """Read a `gemma3` (multimodal) or `gemma3_text` config."""
    outer, config = open_config(checkpoint, "gemma3", TEXT_KEYS, OUTER_KEYS)
    count = config.positive("num_hidden_layers", most=MOST_LAYERS)
    kinds = layer_kinds(config, count, period=config.positive("sliding_window_pattern", 6))
    heads, scale = config.heads(query=8, key=4), config.above_zero("query_pre_attn_scalar", 256) ** -0.5
    names, tied = find_names(checkpoint, outer.flag("tie_word_embeddings", True))
    return ModelSpec(
        family="gemma3",
        model_type=str(checkpoint.config["model_type"]),
        names=names,
        vocab_size=config.positive("vocab_size", 262_208),
        hidden_size=config.positive("hidden_size"),
        max_context_tokens=config.positive("max_position_embeddings", 131_072),
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        final_logit_softcap=_read_softcap(config, multimodal=outer is not config),
        tied_head=tied,
        attention=attention_specs(config, kinds, heads=heads, scale=scale, window=4096),
        layers=build_layers(kinds, list(range(count)), config.widths("intermediate_size", count), [0.0] * count),
        bos_token_id=next(iter(token_ids(config, outer, "bos_token_id", 2)), None),
        eos_token_ids=token_ids(config, outer, "eos_token_id", 1),
    )


def _read_softcap(config: ConfigReader, *, multimodal: bool) -> float | None:
    cap = config.optional_above_zero("final_logit_softcapping")
    if multimodal and cap is not None:
        raise UnsupportedError(
            f"{config.key('final_logit_softcapping')} is {cap}: Transformers applies it in Gemma3ForCausalLM and "
            "not in Gemma3ForConditionalGeneration; save the text model alone, or set it to null"
        )
    return cap


def tensor_table(spec: ModelSpec) -> tuple[TensorSpec, ...]:
    """Every tensor of the text model."""
    shape = (spec.vocab_size, spec.hidden_size)
    table = [TensorSpec(name="embed_tokens.weight", shape=shape, component="embedding", gathered=True)]
    for i in range(len(spec.layers)):
        table += ffn_and_norms(spec, i, LAYER_NORMS)
    table.append(TensorSpec(name="norm.weight", shape=(spec.hidden_size,), component="norm"))
    if not spec.tied_head:
        table.append(TensorSpec(name="lm_head.weight", shape=shape, component="head"))
    return tuple(table)


def embed(ops: TableOps[T], spec: ModelSpec, ids: T) -> tuple[T, None]:
    """Token ids [B, S] to scaled embeddings [B, S, M]."""
    return ops.mul(ops.embedding(ids, Weight("embed_tokens.weight")), sqrt(spec.hidden_size)), None


def begin(ops: Ops[T], spec: ModelSpec, embeds: T, ple_rows: T | None) -> DecoderState[T]:
    """Embeddings [B, S, M] are what the first layer reads."""
    return DecoderState(embeds)


def finish(ops: Ops[T], spec: ModelSpec, state: DecoderState[T]) -> T:
    """The final norm, [B, S', M]."""
    return norm(ops, spec, state.hidden, "norm")


def norm(ops: Ops[T], spec: ModelSpec, x: T, name: str) -> T:
    """RMS norm of this family: the stored weight is an offset from one."""
    return ops.rms_norm(x, Weight(f"{name}.weight", plus=1.0), spec.rms_norm_eps)


def layer(ops: Ops[T], spec: ModelSpec, i: int, state: DecoderState[T]) -> DecoderState[T]:
    """One decoder layer, [B, S, M] to [B, S, M], with norms before and after both halves."""
    at, x = f"layers.{i}.", state.hidden
    heads = attention(ops, spec, i, norm(ops, spec, x, f"{at}input_layernorm"))
    if i == spec.last_owner:
        x, heads = ops.wanted(x), ops.wanted(heads)
    attended = ops.linear(heads, Weight(f"{at}self_attn.o_proj.weight"))
    x = ops.add(x, norm(ops, spec, attended, f"{at}post_attention_layernorm"))
    normed = norm(ops, spec, x, f"{at}pre_feedforward_layernorm")
    gate, up = ops.linears(normed, [Weight(f"{at}mlp.gate_proj.weight"), Weight(f"{at}mlp.up_proj.weight")])
    fed = ops.linear(ops.mul(ops.gelu(gate), up), Weight(f"{at}mlp.down_proj.weight"))
    return DecoderState(ops.add(x, norm(ops, spec, fed, f"{at}post_feedforward_layernorm")))


def attention(ops: Ops[T], spec: ModelSpec, i: int, x: T) -> T:
    """Heads [B, S, H * D] of grouped-query attention with per-head norms on q and k."""
    at = f"layers.{i}.self_attn."
    weights = AttentionWeights(
        query=Weight(f"{at}q_proj.weight"),
        query_norm=Weight(f"{at}q_norm.weight", plus=1.0),
        key=Weight(f"{at}k_proj.weight"),
        key_norm=Weight(f"{at}k_norm.weight", plus=1.0),
        value=Weight(f"{at}v_proj.weight"),
        norm_value=False,
        eps=spec.rms_norm_eps,
    )
    return ops.attend(i, x, weights)


GEMMA3 = Family(
    name="gemma3",
    prefixes={"gemma3": "language_model.model.", "gemma3_text": "model."},
    unit_norm=0.0,
    litert_lm_type="gemma3",
    turn=("<start_of_turn>", "<end_of_turn>\n"),
    read_spec=read_spec,
    tensor_table=tensor_table,
    unneeded=lambda spec: {},
    text_keys=TEXT_KEYS,
    outer_keys=OUTER_KEYS,
    embed=embed,
    begin=begin,
    layer=layer,
    finish=finish,
)
