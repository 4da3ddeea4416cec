"""What `read_spec` makes of a config: every trap of Gemma 3n that sits in config.json, and one line for a bad one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgepack.errors import CheckpointError, EdgepackError, UnsupportedError
from edgepack.model.families import FAMILIES, read_spec
from edgepack.model.spec import AttentionSpec, ModelSpec, RopeSpec, TensorNames
from edgepack.synth import PRESETS
from tests.support.specs import E2B, E4B, fake_checkpoint, preset, preset_spec

TEXT_NAMES = {"model.embed_tokens.weight": (1, 1)}
GEMMA3: dict[str, Any] = {
    "model_type": "gemma3_text",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
}


def gemma3(**changes: Any) -> ModelSpec:
    return read_spec(fake_checkpoint({**GEMMA3, **changes}, TEXT_NAMES))


def ropes(spec: ModelSpec) -> dict[str, RopeSpec]:
    return {kind: attention.rope for kind, attention in spec.attention.items()}


def refused(config: dict[str, Any], kind: type[EdgepackError] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        read_spec(fake_checkpoint(config))
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- the published models


@pytest.mark.parametrize(("name", "layers", "width", "shared"), [(E2B, 30, 8192, 10), (E4B, 35, 16384, 15)])
def test_the_published_gemma_3n_models(name: str, layers: int, width: int, shared: int) -> None:
    spec = preset_spec(name)
    assert len(spec.layers) == layers
    assert [i for i, layer in enumerate(spec.layers) if layer.kind == "full"] == list(range(4, layers, 5))
    assert spec.kv_owners == tuple(range(20))
    assert spec.first_shared_layer == layers - shared == 20
    assert {layer.kv_owner for layer in spec.layers[20:] if layer.kind == "sliding"} == {18}
    assert {layer.kv_owner for layer in spec.layers[20:] if layer.kind == "full"} == {19}
    assert [layer.activation_sparsity for layer in spec.layers] == [0.95] * 10 + [0.0] * (layers - 10)
    assert {layer.ffn_width for layer in spec.layers} == {width}
    heads = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 256, "scale": 1.0}
    assert spec.attention == {
        "sliding": AttentionSpec(**heads, window=512, rope=RopeSpec(theta=10_000)),
        "full": AttentionSpec(**heads, window=None, rope=RopeSpec(theta=1_000_000)),
    }
    assert (spec.hidden_size, spec.max_context_tokens) == (2048, 32768)
    assert spec.final_logit_softcap == 30.0
    assert spec.ple is not None and (spec.ple.vocab_size, spec.ple.dim) == (262144, 256)
    assert spec.altup is not None and (spec.altup.num_inputs, spec.altup.active_index) == (4, 0)
    assert (spec.vocab_size, spec.laurel_rank, spec.tied_head) == (262400, 64, True)
    assert (spec.bos_token_id, spec.eos_token_ids) == (2, (1, 106))


def test_a_text_only_config_is_the_same_model() -> None:
    text = PRESETS[E2B]["text_config"]
    flat = read_spec(fake_checkpoint(text, TEXT_NAMES))
    nested = preset_spec(E2B)
    same = {"model_type": "gemma3n_text", "names": TensorNames(prefix="model.")}
    assert flat == nested.model_copy(update=same)
    assert nested.names.prefix == "model.language_model."


def test_a_matformer_slice_has_a_width_a_layer() -> None:
    widths = [8192 + 1024 * (i % 9) for i in range(35)]
    spec = preset_spec(E4B, intermediate_size=widths)
    assert [layer.ffn_width for layer in spec.layers] == widths


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", "model.", ""])
def test_every_known_prefix_is_found(prefix: str) -> None:
    spec = read_spec(fake_checkpoint(preset(E2B), {f"{prefix}embed_tokens.weight": (1, 1)}))
    assert spec.names.prefix == prefix


def test_the_embedding_of_a_tower_is_not_taken_for_the_text_model() -> None:
    names = {"model.audio_tower.embed_tokens.weight": (1, 1), "model.embed_vision.embed_tokens.weight": (1, 1)}
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight' is missing under all known prefixes"):
        read_spec(fake_checkpoint(preset(E2B), names))


# -- rotary embedding, in all the ways that configs have written it


def test_new_rope_keys_with_a_linear_factor() -> None:
    parameters = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
    }
    spec = preset_spec(E2B, rope_theta=..., rope_local_base_freq=..., rope_scaling=..., rope_parameters=parameters)
    assert ropes(spec) == {"sliding": RopeSpec(theta=5000), "full": RopeSpec(theta=2e6, linear_factor=8)}


def test_old_rope_keys_scale_full_layers_only() -> None:
    scaling = {"rope_type": "linear", "factor": 8.0}
    spec = preset_spec(E2B, rope_theta=2e6, rope_local_base_freq=5000.0, rope_scaling=scaling)
    assert ropes(spec) == {"sliding": RopeSpec(theta=5000), "full": RopeSpec(theta=2e6, linear_factor=8)}


def test_without_any_rope_key_the_published_frequencies_hold() -> None:
    spec = preset_spec(E2B, rope_theta=..., rope_local_base_freq=..., rope_scaling=...)
    assert ropes(spec) == {"sliding": RopeSpec(theta=10_000), "full": RopeSpec(theta=1_000_000)}


@pytest.mark.parametrize("kind", ["yarn", "llama3", 3])
def test_an_unknown_rope_type_is_refused(kind: object) -> None:
    message = refused(preset(E2B, rope_scaling={"rope_type": kind, "factor": 8.0}))
    assert "rope_scaling.rope_type" in message and repr(kind) in message


def test_a_linear_rope_without_factor_is_refused() -> None:
    assert "rope_scaling.factor' is missing" in refused(preset(E2B, rope_scaling={"rope_type": "linear"}))


# -- layers


def test_without_layer_types_every_fifth_layer_is_full() -> None:
    assert preset_spec(E2B, layer_types=...) == preset_spec(E2B)


def test_without_a_sparsity_list_the_first_ten_layers_are_sparse() -> None:
    assert preset_spec(E2B, activation_sparsity_pattern=...) == preset_spec(E2B)
    assert preset_spec(E2B, activation_sparsity_pattern=None) == preset_spec(E2B)


def test_one_sparsity_stands_for_all_layers() -> None:
    assert {layer.activation_sparsity for layer in preset_spec(E2B, activation_sparsity_pattern=0.5).layers} == {0.5}


def test_no_sharing_makes_every_layer_an_owner() -> None:
    spec = preset_spec(E2B, num_kv_shared_layers=0)
    assert spec.kv_owners == tuple(range(30))
    assert spec.first_shared_layer == 30


def test_an_odd_pattern_shares_with_the_last_owner_of_each_kind() -> None:
    kinds = ["full_attention" if c == "f" else "sliding_attention" for c in "fssfsssfsf"]
    spec = preset_spec(
        E2B,
        num_hidden_layers=10,
        layer_types=kinds,
        num_kv_shared_layers=4,
        intermediate_size=64,
        activation_sparsity_pattern=0.0,
    )
    assert [layer.kv_owner for layer in spec.layers] == [0, 1, 2, 3, 4, 5, 5, 3, 5, 3]


def test_sharing_without_an_owner_of_that_kind_is_refused() -> None:
    kinds = ["sliding_attention"] * 9 + ["full_attention"]
    message = refused(
        preset(
            E2B,
            num_hidden_layers=10,
            layer_types=kinds,
            num_kv_shared_layers=4,
            intermediate_size=64,
            activation_sparsity_pattern=0.0,
        )
    )
    assert "layer 9 shares full keys and values" in message and "num_kv_shared_layers" in message


@pytest.mark.parametrize("count", [31, 30])
def test_more_shared_layers_than_there_can_be_are_refused(count: int) -> None:
    assert "num_kv_shared_layers" in refused(preset(E2B, num_kv_shared_layers=count))


# -- the softcap and other defaults of the family


def test_softcap_is_30_unless_the_config_switches_it_off() -> None:
    # A config that leaves the key out means the family's own value: without it probabilities are silently wrong.
    assert preset_spec(E2B, final_logit_softcapping=...).final_logit_softcap == 30.0
    assert preset_spec(E2B, final_logit_softcapping=None).final_logit_softcap is None
    assert gemma3().final_logit_softcap is None


def test_gemma_3_differs_from_gemma_3n() -> None:
    spec = gemma3(query_pre_attn_scalar=64)
    assert {attention.scale for attention in spec.attention.values()} == {1 / 8}
    assert [layer.kind for layer in spec.layers] == ["sliding"] * 5 + ["full", "sliding"]
    assert (spec.ple, spec.altup, spec.laurel_rank) == (None, None, None)
    assert spec.kv_owners == tuple(range(7))
    assert [layer.kind for layer in gemma3(sliding_window_pattern=2).layers] == [
        "sliding", "full", "sliding", "full", "sliding", "full", "sliding"
    ]  # fmt: skip


@pytest.mark.parametrize("key", ["attn_logit_softcapping", "use_bidirectional_attention"])
def test_what_the_gemma_3_decoder_does_not_compute_is_refused(key: str) -> None:
    with pytest.raises(UnsupportedError, match=key):
        gemma3(**{key: 50.0})


# -- bad configs


@pytest.mark.parametrize(
    "key", ["num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "vocab_size_per_layer_input"]
)
def test_a_missing_key_is_named_with_its_file(key: str) -> None:
    message = refused(preset(E2B, **{key: ...}))
    assert f"{Path('ckpt') / 'config.json'}: key 'text_config.{key}' is missing" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "2048"),
        ("hidden_size", 0),
        ("hidden_size", -1),
        ("hidden_size", 2048.5),
        ("num_hidden_layers", True),
        ("rms_norm_eps", [1e-6]),
        ("intermediate_size", "wide"),
        ("intermediate_size", [8192] * 29),
        ("activation_sparsity_pattern", [0.95] * 31),
        ("activation_sparsity_pattern", 1.0),
        ("activation_sparsity_pattern", -0.1),
        ("layer_types", ["sliding_attention"] * 29),
        ("layer_types", ["chunked_attention"] * 30),
        ("layer_types", "sliding_attention"),
        ("altup_active_idx", 4),
        ("eos_token_id", "one"),
        ("sliding_window", 0),
    ],
)
def test_a_wrong_value_is_named_with_its_key(key: str, value: object) -> None:
    config = preset(E2B, **{key: value})
    config.pop("eos_token_id")
    message = refused(config)
    assert f"'text_config.{key}'" in message


@pytest.mark.parametrize(("key", "value"), [("hidden_size", float("nan")), ("rms_norm_eps", float("inf"))])
def test_numbers_that_are_none_are_refused(key: str, value: float) -> None:
    # json.loads accepts NaN and Infinity.
    assert f"'text_config.{key}'" in refused(preset(E2B, **{key: value}))


def test_widths_of_zero_or_fractions_are_refused() -> None:
    for width in (0, -8, 100.5):
        assert "'text_config.intermediate_size'" in refused(preset(E2B, intermediate_size=[8192] * 29 + [width]))


@pytest.mark.parametrize("heads", [3, 16])
def test_heads_that_cannot_share_kv_heads_are_refused(heads: int) -> None:
    message = refused(preset(E2B, num_key_value_heads=heads))
    assert "'text_config.num_key_value_heads'" in message


def test_an_odd_head_dim_is_refused() -> None:
    assert "'text_config.head_dim'" in refused(preset(E2B, head_dim=255))


def test_an_unknown_model_type_lists_the_known_ones() -> None:
    message = refused({"model_type": "llama"}, UnsupportedError)
    assert "'llama'" in message
    for known in FAMILIES:
        assert known in message


@pytest.mark.parametrize("config", [{}, {"model_type": 3}])
def test_no_model_type_is_named(config: dict[str, Any]) -> None:
    assert "key 'model_type' is missing" in refused(config)


def test_a_multimodal_config_without_text_config_is_refused() -> None:
    config = preset(E2B)
    config["text_config"] = None
    assert "text_config" in refused(config)
