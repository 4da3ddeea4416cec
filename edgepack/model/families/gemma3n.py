"""Gemma 3n, text: AltUp streams, LAuReL, per-layer embeddings, KV sharing, sparse feed-forward.

Sources: the Gemma 3n model card and Transformers' `modeling_gemma3n.py` (Apache-2.0), read as the specification;
AltUp: Baykal et al., 2023; LAuReL: Menghani et al., 2024; MatFormer: Devvrit et al., 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, TypeVar

from edgepack.errors import CheckpointError
from edgepack.model.config import MOST_LAYERS, ConfigReader, kv_owners, layer_kinds, open_config, token_ids
from edgepack.model.families.base import DecoderState, Family
from edgepack.model.families.layers import attention_specs, build_layers, ffn_and_norms
from edgepack.model.ops import AttentionWeights, Ops, TableOps, Weight
from edgepack.model.shared_config_keys import outer_keys, text_keys
from edgepack.model.spec import AltUpSpec, ModelSpec, PleSpec
from edgepack.model.tensors import TensorSpec, find_names

if TYPE_CHECKING:
    from edgepack.checkpoint.folder import Checkpoint

T = TypeVar("T")
MAGNITUDE_FLOOR = 1e-5
LAYER_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
    "post_per_layer_input_norm",
)


TEXT_KEYS = text_keys(
    read=frozenset(
        [
            "activation_sparsity_pattern",
            "altup_active_idx",
            "altup_correct_scale",
            "altup_num_inputs",
            "hidden_size_per_layer_input",
            "laurel_rank",
            "num_kv_shared_layers",
            "vocab_size_per_layer_input",
        ]
    ),
    only={"attn_logit_softcapping": ()},
    # The first two are for training; the others stand in old configs, and the model never read them.
    without_effect=frozenset(
        {"altup_coef_clip", "altup_lr_multiplier", "hidden_act", "query_pre_attn_scalar", "sliding_window_pattern"}
    ),
)
OUTER_KEYS = outer_keys(
    TEXT_KEYS,
    frozenset(
        [
            "audio_config",
            "audio_soft_tokens_per_image",
            "audio_token_id",
            "boa_token_id",
            "boi_token_id",
            "eoa_token_id",
            "eoi_token_id",
            "image_token_id",
            "vision_config",
            "vision_soft_tokens_per_image",
        ]
    ),
)


def read_spec(checkpoint: Checkpoint) -> ModelSpec:
    """Read a `gemma3n` (multimodal) or `gemma3n_text` config."""
    outer, config = open_config(checkpoint, "gemma3n", TEXT_KEYS, OUTER_KEYS)
    count = config.positive("num_hidden_layers", most=MOST_LAYERS)
    kinds = layer_kinds(config, count, period=5)
    owners = kv_owners(config, kinds, config.integer("num_kv_shared_layers", 15))
    # A config without the key means the published model's cap; null switches it off.
    softcap = config.optional_above_zero("final_logit_softcapping")
    softcap = softcap if "final_logit_softcapping" in config.values else 30.0
    names, tied = find_names(checkpoint, outer.flag("tie_word_embeddings", True))
    return ModelSpec(
        family="gemma3n",
        model_type=str(checkpoint.config["model_type"]),
        names=names,
        vocab_size=config.positive("vocab_size"),
        hidden_size=config.positive("hidden_size"),
        max_context_tokens=config.positive("max_position_embeddings", 32768),
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        final_logit_softcap=softcap,
        tied_head=tied,
        attention=attention_specs(config, kinds, heads=config.heads(), scale=1.0, window=512),
        layers=build_layers(kinds, owners, config.widths("intermediate_size", count), _read_sparsity(config, count)),
        ple=PleSpec(
            vocab_size=config.positive("vocab_size_per_layer_input"),
            dim=config.positive("hidden_size_per_layer_input", 256),
        ),
        altup=_read_altup(config),
        laurel_rank=config.positive("laurel_rank", 64),
        bos_token_id=next(iter(token_ids(config, outer, "bos_token_id", 2)), None),
        eos_token_ids=token_ids(config, outer, "eos_token_id", 1),
    )


def _read_sparsity(config: ConfigReader, count: int) -> list[float]:
    sparse = 10 if count > 10 else 0
    sparsity = config.per_layer("activation_sparsity_pattern", count, [0.95] * sparse + [0.0] * (count - sparse))
    if any(not 0 <= share < 1 for share in sparsity):
        config.refuse("activation_sparsity_pattern", "values in [0, 1)")
    return sparsity


def _read_altup(config: ConfigReader) -> AltUpSpec:
    altup = AltUpSpec(
        num_inputs=config.positive("altup_num_inputs", 4),
        active_index=config.integer("altup_active_idx", 0),
        correct_scale=config.flag("altup_correct_scale", True),
    )
    if altup.active_index >= altup.num_inputs:
        raise CheckpointError(
            f"{config.key('altup_active_idx')}: expected less than altup_num_inputs={altup.num_inputs}, "
            f"got {altup.active_index}"
        )
    return altup


def _parts(spec: ModelSpec) -> tuple[PleSpec, AltUpSpec, int]:
    if spec.ple is None or spec.altup is None or spec.laurel_rank is None:
        raise CheckpointError(
            "a gemma3n spec needs ple, altup and laurel_rank; this one was not read from a checkpoint"
        )
    return spec.ple, spec.altup, spec.laurel_rank


def tensor_table(spec: ModelSpec) -> tuple[TensorSpec, ...]:
    """Every tensor of the text model. KV-sharing layers have no k/v tensors here, whatever the checkpoint carries."""
    ple, altup, rank = _parts(spec)
    m, a, count = spec.hidden_size, altup.num_inputs, len(spec.layers)
    table = [
        TensorSpec(name="embed_tokens.weight", shape=(spec.vocab_size, m), component="embedding", gathered=True),
        TensorSpec(
            name="embed_tokens_per_layer.weight",
            shape=(ple.vocab_size, count * ple.dim),
            component="ple",
            gathered=True,
        ),
        TensorSpec(name="per_layer_model_projection.weight", shape=(count * ple.dim, m), component="per_layer"),
        TensorSpec(name="per_layer_projection_norm.weight", shape=(ple.dim,), component="norm"),
    ]
    table += _stream_projections("altup_projections", a - 1, m)
    for i in range(count):
        at = f"layers.{i}."
        table += ffn_and_norms(spec, i, LAYER_NORMS)
        table += [
            TensorSpec(name=f"{at}laurel.linear_left.weight", shape=(rank, m), component="laurel"),
            TensorSpec(name=f"{at}laurel.linear_right.weight", shape=(m, rank), component="laurel"),
            TensorSpec(name=f"{at}laurel.post_laurel_norm.weight", shape=(m,), component="norm"),
            TensorSpec(name=f"{at}altup.router_norm.weight", shape=(m,), component="norm"),
            TensorSpec(name=f"{at}altup.modality_router.weight", shape=(a, m), component="altup"),
            TensorSpec(name=f"{at}altup.prediction_coefs.weight", shape=(a * a, a), component="altup"),
            TensorSpec(name=f"{at}altup.correction_coefs.weight", shape=(a, a), component="altup"),
            TensorSpec(name=f"{at}per_layer_input_gate.weight", shape=(ple.dim, m), component="per_layer"),
            TensorSpec(name=f"{at}per_layer_projection.weight", shape=(m, ple.dim), component="per_layer"),
        ]
        if altup.correct_scale:
            table.append(TensorSpec(name=f"{at}altup.correct_output_scale", shape=(m,), component="altup"))
    table += _stream_projections("altup_unembed_projections", a - 1, m)
    table.append(TensorSpec(name="norm.weight", shape=(m,), component="norm"))
    if not spec.tied_head:
        table.append(TensorSpec(name="lm_head.weight", shape=(spec.vocab_size, m), component="head"))
    return tuple(table)


def _stream_projections(name: str, count: int, m: int) -> list[TensorSpec]:
    return [TensorSpec(name=f"{name}.{i}.weight", shape=(m, m), component="altup_projection") for i in range(count)]


def embed(ops: TableOps[T], spec: ModelSpec, ids: T) -> tuple[T, T]:
    """Token ids [B, S] to scaled embeddings [B, S, M] and per-layer embeddings [B, S, L, P].

    Ids at or over the per-layer vocabulary (image and audio soft tokens) read row 0 of the per-layer table.
    """
    ple, _, _ = _parts(spec)
    embeds = ops.mul(ops.embedding(ids, Weight("embed_tokens.weight")), sqrt(spec.hidden_size))
    rows = ops.embedding(
        ops.ids_below(ids, ple.vocab_size), Weight("embed_tokens_per_layer.weight", times=sqrt(ple.dim))
    )
    return embeds, ops.reshape(rows, len(spec.layers), ple.dim)


def begin(ops: Ops[T], spec: ModelSpec, embeds: T, ple_rows: T | None) -> DecoderState[T]:
    """Embeddings [B, S, M] and per-layer embeddings [B, S, L, P] to streams and per-layer inputs."""
    if ple_rows is None:
        raise CheckpointError("gemma3n needs the per-layer embeddings besides the input embeddings")
    per_layer = project_per_layer(ops, spec, embeds, ple_rows)
    return DecoderState(widen(ops, spec, embeds), per_layer)


def finish(ops: Ops[T], spec: ModelSpec, state: DecoderState[T]) -> T:
    """Streams to one value again, and the final norm: [B, S', M]."""
    return ops.rms_norm(narrow(ops, spec, state.hidden), Weight("norm.weight"), spec.rms_norm_eps)


def project_per_layer(ops: Ops[T], spec: ModelSpec, embeds: T, ple_rows: T) -> T:
    """Context-dependent part plus table part of the per-layer inputs, [B, S, L, P]."""
    ple, _, _ = _parts(spec)
    projection = Weight("per_layer_model_projection.weight", times=spec.hidden_size**-0.5)
    context = ops.reshape(ops.linear(embeds, projection), len(spec.layers), ple.dim)
    context = ops.rms_norm(context, Weight("per_layer_projection_norm.weight"), spec.rms_norm_eps)
    return ops.mul(ops.add(context, ple_rows), sqrt(0.5))


def widen(ops: Ops[T], spec: ModelSpec, x: T) -> T:
    """[B, S, M] to A streams [B, S, A, M], each with the magnitude of `x`."""
    _, altup, _ = _parts(spec)
    projected = [ops.linear(x, Weight(f"altup_projections.{i}.weight")) for i in range(altup.num_inputs - 1)]
    target = ops.rms(x, 0.0)
    rescaled = [ops.mul(p, ops.div(target, ops.rms(p, MAGNITUDE_FLOOR))) for p in projected]
    return ops.stack([x, *rescaled])


def narrow(ops: Ops[T], spec: ModelSpec, streams: T) -> T:
    """A streams [B, S, A, M] to [B, S, M]: project back, rescale to stream 0, average."""
    _, altup, _ = _parts(spec)
    first, *others = ops.unstack(streams, altup.num_inputs, spec.hidden_size)
    target = ops.rms(first, 0.0)
    projected = [ops.linear(s, Weight(f"altup_unembed_projections.{i}.weight")) for i, s in enumerate(others)]
    rescaled = [ops.mul(p, ops.div(target, ops.rms(p, MAGNITUDE_FLOOR))) for p in projected]
    return ops.mean(ops.stack([first, *rescaled]))


def layer(ops: Ops[T], spec: ModelSpec, i: int, state: DecoderState[T]) -> DecoderState[T]:
    """One decoder layer on the streams; the per-layer inputs are narrowed where the positions are."""
    per_layer, parts = state.per_layer, state.parts
    if per_layer is None:
        raise CheckpointError("a layer of gemma3n needs the per-layer inputs besides the streams")
    if i == spec.last_owner:  # it writes the last keys and values, and returns the wanted positions alone
        per_layer, parts = ops.wanted(per_layer), ()
    parts = parts or ops.unstack(per_layer, len(spec.layers), _parts(spec)[0].dim)
    return DecoderState(update_streams(ops, spec, i, state.hidden, parts[i]), per_layer, parts)


def update_streams(ops: Ops[T], spec: ModelSpec, i: int, streams: T, per_layer_input: T) -> T:
    """The streams [B, S, A, M] behind layer `i`; its per-layer input [B, S', P] has the wanted positions alone."""
    _, altup, _ = _parts(spec)
    at, eps = f"layers.{i}.", spec.rms_norm_eps
    predicted = predict(ops, spec, i, streams)
    active = ops.take(predicted, altup.active_index)
    normed = ops.rms_norm(active, Weight(f"{at}input_layernorm.weight"), eps)
    heads = attention(ops, spec, i, normed)
    if i == spec.last_owner:
        predicted, active, normed, heads = (ops.wanted(x) for x in (predicted, active, normed, heads))
    attended = ops.linear(heads, Weight(f"{at}self_attn.o_proj.weight"))
    gated = ops.add(active, ops.rms_norm(attended, Weight(f"{at}post_attention_layernorm.weight"), eps))
    # The norm reads sum / sqrt(2), which is the norm of the sum itself with twice the epsilon.
    total, fed = ops.add_norm(
        gated, laurel(ops, spec, i, normed), Weight(f"{at}pre_feedforward_layernorm.weight"), 2 * eps
    )
    fed = ops.rms_norm(feed_forward(ops, spec, i, fed), Weight(f"{at}post_feedforward_layernorm.weight"), eps)
    activated, routed = ops.add_norm(ops.mul(total, sqrt(0.5)), fed, router_norm(spec, i), eps)
    corrected = correct(ops, spec, i, predicted, ops.sub(activated, active), modalities(ops, i, routed))
    return add_per_layer(ops, spec, i, corrected, per_layer_input)


def router_norm(spec: ModelSpec, i: int) -> Weight:
    """Norm of the router's input, with the router's input scale 1 / M folded in."""
    return Weight(f"layers.{i}.altup.router_norm.weight", times=1 / spec.hidden_size)


def modalities(ops: Ops[T], i: int, normed: T) -> T:
    """Router of AltUp: normed [B, S, M] to [B, S, A] in (-1, 1)."""
    return ops.tanh(ops.linear(normed, Weight(f"layers.{i}.altup.modality_router.weight")))


def predict(ops: Ops[T], spec: ModelSpec, i: int, streams: T) -> T:
    """AltUp predict: every stream plus a routed mixture of all streams, [B, S, A, M]."""
    _, altup, _ = _parts(spec)
    a = altup.num_inputs
    active = ops.take(streams, altup.active_index)
    routed = modalities(ops, i, ops.rms_norm(active, router_norm(spec, i), spec.rms_norm_eps))
    # Row j holds the coefficients of stream j; adding the identity keeps the stream itself in the one product.
    identity = ops.constant([float(r == c) for r in range(a) for c in range(a)], a * a)
    coefs = ops.add(ops.linear(routed, Weight(f"layers.{i}.altup.prediction_coefs.weight")), identity)
    return ops.matmul(ops.reshape(coefs, a, a), streams)


def correct(ops: Ops[T], spec: ModelSpec, i: int, predicted: T, innovation: T, routed: T) -> T:
    """AltUp correct: every prediction moves by its share of what the layer added to the active one, [B, S, A, M]."""
    _, altup, _ = _parts(spec)
    shares = ops.add(ops.linear(routed, Weight(f"layers.{i}.altup.correction_coefs.weight")), 1.0)
    step = ops.mul(ops.reshape(shares, altup.num_inputs, 1), ops.reshape(innovation, 1, spec.hidden_size))
    return ops.add(predicted, step)


def laurel(ops: Ops[T], spec: ModelSpec, i: int, normed: T) -> T:
    """LAuReL: a low-rank residual on the normed input, [B, S, M]."""
    at = f"layers.{i}.laurel."
    low = ops.linear(normed, Weight(f"{at}linear_left.weight"))
    back = ops.linear(low, Weight(f"{at}linear_right.weight"))
    return ops.add(normed, ops.rms_norm(back, Weight(f"{at}post_laurel_norm.weight"), spec.rms_norm_eps))


def attention(ops: Ops[T], spec: ModelSpec, i: int, x: T) -> T:
    """Heads [B, S, H * D] of attention with unit scale: norms on q and k (weighted) and v (plain), then rotation."""
    at, owns = f"layers.{i}.self_attn.", spec.layers[i].kv_owner == i
    weights = AttentionWeights(
        query=Weight(f"{at}q_proj.weight"),
        query_norm=Weight(f"{at}q_norm.weight"),
        key=Weight(f"{at}k_proj.weight") if owns else None,
        key_norm=Weight(f"{at}k_norm.weight") if owns else None,
        value=Weight(f"{at}v_proj.weight") if owns else None,
        norm_value=True,
        eps=spec.rms_norm_eps,
    )
    return ops.attend(i, x, weights)


def feed_forward(ops: Ops[T], spec: ModelSpec, i: int, x: T) -> T:
    """Gated feed-forward; sparse layers cut the gate at a gaussian quantile before the activation."""
    at, share = f"layers.{i}.mlp.", spec.layers[i].activation_sparsity
    gate, up = ops.linears(x, [Weight(f"{at}gate_proj.weight"), Weight(f"{at}up_proj.weight")])
    if share > 0:
        gate = ops.gaussian_topk(gate, NormalDist().inv_cdf(share))
    return ops.linear(ops.mul(ops.gelu(gate), up), Weight(f"{at}down_proj.weight"))


def add_per_layer(ops: Ops[T], spec: ModelSpec, i: int, corrected: T, per_layer_input: T) -> T:
    """The per-layer input, gated by the active stream, goes to all streams but stream 0."""
    _, altup, _ = _parts(spec)
    at = f"layers.{i}."
    active = ops.take(corrected, altup.active_index)
    if altup.correct_scale:
        active = ops.mul(active, Weight(f"{at}altup.correct_output_scale"))
    gate = ops.gelu(ops.linear(active, Weight(f"{at}per_layer_input_gate.weight")))
    update = ops.linear(ops.mul(gate, per_layer_input), Weight(f"{at}per_layer_projection.weight"))
    update = ops.rms_norm(update, Weight(f"{at}post_per_layer_input_norm.weight"), spec.rms_norm_eps)
    receives: Sequence[float] = [0.0] + [1.0] * (altup.num_inputs - 1)
    mask = ops.constant(receives, altup.num_inputs, 1)
    return ops.add(corrected, ops.mul(ops.reshape(update, 1, spec.hidden_size), mask))


def unneeded(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Keys and values of layers that share an earlier layer's, and a scale that the config switches off."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(spec.first_shared_layer, len(spec.layers)):
        attention = spec.attention_of(i)
        for part in ("k_proj", "v_proj"):
            shapes[f"layers.{i}.self_attn.{part}.weight"] = (attention.kv_width, spec.hidden_size)
        shapes[f"layers.{i}.self_attn.k_norm.weight"] = (attention.head_dim,)
    if spec.altup is not None and not spec.altup.correct_scale:
        shapes |= {f"layers.{i}.altup.correct_output_scale": (spec.hidden_size,) for i in range(len(spec.layers))}
    return shapes


GEMMA3N = Family(
    name="gemma3n",
    prefixes={"gemma3n": "model.language_model.", "gemma3n_text": "model."},
    unit_norm=1.0,
    litert_lm_type="gemma3n",
    turn=("<start_of_turn>", "<end_of_turn>\n"),
    read_spec=read_spec,
    tensor_table=tensor_table,
    unneeded=unneeded,
    text_keys=TEXT_KEYS,
    outer_keys=OUTER_KEYS,
    embed=embed,
    begin=begin,
    layer=layer,
    finish=finish,
)
