"""The keys of config.json that a family knows, against Transformers' config classes and what its models read."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    Gemma3Config,
    Gemma3nConfig,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    GenerationConfig,
    PreTrainedConfig,
)
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.gemma3n import modeling_gemma3n

from edgepack.errors import CheckpointError, EdgepackError, UnsupportedError
from edgepack.model.config import ConfigKeys
from edgepack.model.families import FAMILIES, read_spec
from tests.support import tiny
from tests.support.specs import E2B, fake_checkpoint, preset

TEXT: dict[str, type[PreTrainedConfig]] = {"gemma3": Gemma3TextConfig, "gemma3n": Gemma3nTextConfig}
OUTER: dict[str, type[PreTrainedConfig]] = {"gemma3": Gemma3Config, "gemma3n": Gemma3nConfig}
NAMES = {"model.embed_tokens.weight": (1, 1)}
# The classes of the text models. The encoders beside them have configs of their own.
TEXT_CLASSES = {"gemma3": (modeling_gemma3, "Gemma3"), "gemma3n": (modeling_gemma3n, "Gemma3n")}
# Names that classes of both have: sub-configs, methods, and what is computed from other keys.
NOT_KEYS = {
    "get_text_config",
    "kv_sharing_modes",
    "_attn_implementation",
    "text_config",
    "vision_config",
    "audio_config",
}


class Recording(dict[str, Any]):
    """A dict that notes which of its keys are asked for."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)


def flat(family: str, **changes: Any) -> dict[str, Any]:
    """A text-only config as Transformers writes it."""
    name = "gemma3" if family == "gemma3" else "shared"
    return {**tiny.config(name).to_dict(), "architectures": None, **changes}


def refused(config: dict[str, Any], kind: type[EdgepackError] = UnsupportedError) -> str:
    with pytest.raises(kind) as caught:
        read_spec(fake_checkpoint(config, NAMES))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- against Transformers


@pytest.mark.parametrize("family", TEXT)
def test_every_key_of_the_text_config_is_known(family: str) -> None:
    written = {field.name for field in fields(TEXT[family])} | TEXT[family]().to_dict().keys()
    written |= GenerationConfig._get_default_generation_params().keys()
    assert {name for name in written if not name.startswith("_")} <= FAMILIES[family].text_keys.known()


@pytest.mark.parametrize("family", OUTER)
def test_every_key_of_the_outer_config_is_known(family: str) -> None:
    written = {field.name for field in fields(OUTER[family])} | OUTER[family].attribute_map.keys()
    assert written <= FAMILIES[family].outer_keys.known()


@pytest.mark.parametrize("family", TEXT)
def test_the_defaults_of_transformers_are_among_the_values_that_are_implemented(family: str) -> None:
    config = TEXT[family]().to_dict()
    for name, allowed in FAMILIES[family].text_keys.only.items():
        value = config.get(name)
        assert value is None or value in allowed, name


def attributes_of_configs(source: str) -> Iterator[tuple[str, str]]:
    """Class and attribute of every `config.NAME` and `self.config.NAME` in a module."""
    for node in ast.parse(source).body:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Attribute) and isinstance(node, ast.ClassDef | ast.FunctionDef):
                owner = inner.value
                name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                if name in ("config", "text_config"):
                    yield node.name, inner.attr


@pytest.mark.parametrize("family", TEXT)
def test_what_the_model_reads_is_read_here_or_has_the_one_value_that_is_implemented(family: str) -> None:
    module, _ = TEXT_CLASSES[family]
    known = FAMILIES[family].text_keys
    harmless = {"attention_dropout", "pad_token_id", "use_cache", "altup_coef_clip"}  # training, padding, caches
    read = {
        attribute
        for name, attribute in attributes_of_configs(inspect.getsource(module))
        if not any(word in name for word in ("Audio", "Vision", "Multimodal", "MultiModal", "ConditionalGeneration"))
        and not name.endswith(("3nModel", "3Model", "PreTrainedModel"))
    }
    assert len(read) > 15
    assert read - NOT_KEYS - harmless <= known.read | known.only.keys()


@pytest.mark.parametrize("family", TEXT)
@pytest.mark.parametrize("multimodal", [False, True])
def test_the_keys_said_to_be_read_are_those_that_are(family: str, multimodal: bool) -> None:
    text = Recording(flat(family, final_logit_softcapping=None, rope_parameters=None))
    outer = Recording({"model_type": family, "text_config": text}) if multimodal else text
    checkpoint = fake_checkpoint({}, NAMES)
    checkpoint.config = outer
    read_spec(checkpoint)
    inner_only = FAMILIES[family].text_keys.read - ({"tie_word_embeddings"} if multimodal else set())
    always = {"model_type", "architectures"}
    assert text.asked - always - {"text_config"} == inner_only
    if multimodal:
        assert outer.asked - always == FAMILIES[family].outer_keys.read


MINIMAL: dict[str, dict[str, Any]] = {
    "gemma3": {"hidden_size": 64, "num_hidden_layers": 13, "intermediate_size": 96},
    "gemma3n": {
        "hidden_size": 64,
        "num_hidden_layers": 21,
        "intermediate_size": 96,
        "vocab_size": 100,
        "vocab_size_per_layer_input": 90,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


@pytest.mark.parametrize("family", TEXT)
def test_what_is_left_out_is_what_transformers_fills_in(family: str) -> None:
    values = MINIMAL[family]
    spec = read_spec(fake_checkpoint({"model_type": f"{family}_text", **values}, NAMES))
    right: Any = TEXT[family](**values)
    for kind, attention in spec.attention.items():
        heads = (right.num_attention_heads, right.num_key_value_heads, right.head_dim)
        assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == heads
        assert attention.scale == (1.0 if family == "gemma3n" else right.query_pre_attn_scalar**-0.5)
        assert attention.window == {"sliding": right.sliding_window, "full": None}[kind]
    assert (spec.vocab_size, spec.max_context_tokens) == (right.vocab_size, right.max_position_embeddings)
    assert (spec.rms_norm_eps, spec.final_logit_softcap) == (right.rms_norm_eps, right.final_logit_softcapping)
    assert (spec.bos_token_id, spec.eos_token_ids) == (right.bos_token_id, (right.eos_token_id,))
    assert [f"{layer.kind}_attention" for layer in spec.layers] == right.layer_types
    assert spec.tied_head == right.tie_word_embeddings
    if family == "gemma3n":
        assert [layer.activation_sparsity for layer in spec.layers] == right.activation_sparsity_pattern
        shared = right.num_hidden_layers - right.num_kv_shared_layers
        assert spec.first_shared_layer == shared
        assert spec.laurel_rank == right.laurel_rank


# -- what is refused


@pytest.mark.parametrize("family", TEXT)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_bias", True),
        ("hidden_activation", "relu"),
        ("hidden_activation", ["gelu_pytorch_tanh"]),
        ("attn_logit_softcapping", 50.0),
        ("use_bidirectional_attention", True),
        ("partial_rotary_factor", 0.5),
        ("per_layer_config", {"3": {"head_dim": 64}}),
        ("quantization_config", {"quant_method": "bitsandbytes"}),
        ("quantization", {"bits": 4, "group_size": 64}),
        ("auto_map", {"AutoModelForCausalLM": "mine.Model"}),
        ("pruned_heads", {"0": [1]}),
        ("is_encoder_decoder", True),
    ],
)
def test_a_value_that_changes_the_numbers_is_refused_by_name(family: str, key: str, value: Any) -> None:
    message = refused(flat(family, **{key: value}))
    assert f"key '{key}'" in message and "is not implemented" in message


@pytest.mark.parametrize("multimodal", [False, True])
def test_a_key_that_nobody_knows_is_refused_by_name(multimodal: bool) -> None:
    text = flat("gemma3n", mixture_of_depths=0.5)
    config = {"model_type": "gemma3n", "text_config": text} if multimodal else text
    at = "text_config." if multimodal else ""
    message = refused(config)
    assert f"config.json: key '{at}mixture_of_depths' is 0.5" in message and "remove it" in message


@pytest.mark.parametrize(
    ("key", "value", "needle"),
    [
        ("quantization_config", {"quant_method": "fp8"}, "is not implemented: expected no such key"),
        ("auto_map", {"AutoModel": "mine.Model"}, "is not implemented"),
        ("video_config", {"hidden_size": 8}, "does not know whether"),
    ],
)
def test_the_outer_config_is_looked_at_too(key: str, value: Any, needle: str) -> None:
    config = {"model_type": "gemma3n", "text_config": flat("gemma3n"), key: value}
    message = refused(config)
    assert f"config.json: key '{key}' is" in message and needle in message


def test_unknown_keys_without_a_value_and_private_ones_are_let_through() -> None:
    read_spec(fake_checkpoint(flat("gemma3", some_future_key=None, _made_by="a tool"), NAMES))


# What releases 4 of Transformers wrote into every config besides its own keys, and what trainers added.
WRITTEN_BY_RELEASES_4: dict[str, Any] = {
    "_attn_implementation_autoset": True,
    "_name_or_path": "google/gemma-3n-E2B-it",
    "add_cross_attention": False,
    "bad_words_ids": None,
    "cache_implementation": "hybrid",
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "decoder_start_token_id": None,
    "do_sample": False,
    "exponential_decay_length_penalty": None,
    "finetuning_task": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0,
    "max_length": 20,
    "num_beams": 1,
    "output_attentions": False,
    "output_scores": False,
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "return_dict": True,
    "sep_token_id": None,
    "task_specific_params": None,
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "tokenizer_class": None,
    "torch_dtype": "bfloat16",
    "torchscript": False,
    "typical_p": 1.0,
    "unk_token_id": 3,
    "unsloth_fixed": True,
    "unsloth_version": "2026.3.3",
    "use_bfloat16": False,
}


@pytest.mark.parametrize("family", TEXT)
def test_what_older_releases_wrote_is_let_through(family: str) -> None:
    text = flat(family, final_logit_softcapping=None)
    plain = read_spec(fake_checkpoint(text, NAMES))
    assert read_spec(fake_checkpoint({**text, **WRITTEN_BY_RELEASES_4}, NAMES)) == plain
    read_spec(fake_checkpoint({"model_type": family, "text_config": text, **WRITTEN_BY_RELEASES_4}, NAMES))


def test_what_stands_beside_the_text_config_is_not_the_text_models() -> None:
    config = preset(E2B)
    plain = read_spec(fake_checkpoint(config))
    config |= {"hidden_size": 7, "hidden_activation": "relu", "rope_theta": 5.0, "vocab_size": 3}
    assert read_spec(fake_checkpoint(config)) == plain


def test_a_multimodal_config_without_a_text_config_is_refused() -> None:
    # Transformers would take a model of default sizes and ignore all that stands there.
    assert "key 'text_config' is missing" in refused({**flat("gemma3"), "model_type": "gemma3"}, CheckpointError)
    assert "key 'text_config'" in refused(flat("gemma3n", text_config={"hidden_size": 8}))


def test_a_text_config_of_another_family_is_refused() -> None:
    config = {"model_type": "gemma3n", "text_config": flat("gemma3n", model_type="gemma3_text")}
    assert "text_config.model_type' is 'gemma3_text': expected gemma3n_text" in refused(config)


def test_a_softcap_of_a_multimodal_gemma_3_is_refused() -> None:
    config = {"model_type": "gemma3", "text_config": flat("gemma3", final_logit_softcapping=30.0)}
    assert "'text_config.final_logit_softcapping' is 30.0" in refused(config)
    assert read_spec(fake_checkpoint(config["text_config"], NAMES)).final_logit_softcap == 30.0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "architectures",
    [
        ["Gemma3nForSequenceClassification"],
        ["Gemma3TextForSequenceClassification"],
        ["Gemma3ForTokenClassification"],
        ["Gemma3nTextModel"],
        ["RewardModel", "Gemma3Model"],
    ],
)
def test_a_model_that_does_not_generate_is_refused(architectures: list[str]) -> None:
    message = refused(flat("gemma3n", architectures=architectures))
    assert f"architectures is {architectures}" in message and "ForCausalLM" in message


@pytest.mark.parametrize("architectures", [None, [], ["Gemma3nForConditionalGeneration"], ["Gemma3ForCausalLM", "X"]])
def test_a_model_that_generates_is_read(architectures: list[str] | None) -> None:
    read_spec(fake_checkpoint(flat("gemma3n", architectures=architectures), NAMES))


@pytest.mark.parametrize("value", ["Gemma3ForCausalLM", [1], [["Gemma3ForCausalLM"]], {}])
def test_architectures_of_another_type_are_refused(value: object) -> None:
    assert "key 'architectures': expected a list of names" in refused(
        flat("gemma3", architectures=value), CheckpointError
    )


# -- values that once ended in a traceback, or would fill the memory


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_types", [["sliding_attention"]] * 8),
        ("layer_types", [{"a": 1}] * 8),
        ("layer_types", ["x" * 5000] * 8),
        ("hidden_size", 10**400),
        ("hidden_size", None),
        ("hidden_size", "9" * 5000),
        ("num_hidden_layers", 10**9),
        ("vocab_size", 1e300),
        ("intermediate_size", [[64]] * 8),
        ("intermediate_size", [True] * 8),
        ("activation_sparsity_pattern", [None] * 8),
        ("rope_parameters", ["full_attention"]),
        ("rope_parameters", {"full_attention": "default"}),
        ("rope_parameters", {"full_attention": {"rope_type": ["linear"]}}),
        ("rope_scaling", "linear"),
        ("rope_theta", "a million"),
        ("tie_word_embeddings", "false"),
        ("altup_correct_scale", 1),
        ("sliding_window", None),
        ("final_logit_softcapping", 0),
        ("eos_token_id", [[1]]),
    ],
)
def test_a_wrong_value_is_one_short_line(key: str, value: Any) -> None:
    config = flat("gemma3n", **{key: value})
    if key == "rope_theta":
        config["rope_parameters"] = None
    message = refused(config, CheckpointError)
    assert key in message and len(message) < 300


@pytest.mark.parametrize("value", [0, -1.0])
def test_a_scale_of_attention_that_cannot_be_computed_is_refused(value: float) -> None:
    assert "query_pre_attn_scalar" in refused(flat("gemma3", query_pre_attn_scalar=value), CheckpointError)


def test_a_key_is_in_one_list_only() -> None:
    tables: list[ConfigKeys] = [keys for f in FAMILIES.values() for keys in (f.text_keys, f.outer_keys)]
    for keys in tables:
        assert not keys.read & keys.without_effect
        assert not keys.only.keys() & (keys.read | keys.without_effect)


def test_a_config_that_names_the_file_and_the_key() -> None:
    message = refused(flat("gemma3n", attention_bias=True))
    assert message.startswith(f"{Path('ckpt') / 'config.json'}: key 'attention_bias' is True")
