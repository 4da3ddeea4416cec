"""The keys of Gemma configs in Transformers that are of no family: what each does to the logits.

Source: `PreTrainedConfig`, `GenerationConfig` and the Gemma 3 and 3n classes of Transformers 5, and what its releases
from 4.50 on wrote. A test compares these lists with the installed classes, so that a key of a later release is noticed.
"""

from __future__ import annotations

from typing import Any

from edgepack.model.config import ConfigKeys

# What `generate` of Transformers would do with the logits. Releases before 5 wrote all of these into config.json.
GENERATION = frozenset(
    [
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "bad_words_ids",
        "begin_suppress_tokens",
        "cache_implementation",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "encoder_repetition_penalty",
        "epsilon_cutoff",
        "eta_cutoff",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "length_penalty",
        "max_length",
        "min_length",
        "no_repeat_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_scores",
        "pad_token_id",
        "prefix",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "target_lookbehind",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "use_cache",
    ]
)
# How a model was made, saved or is trained. `chunk_size_feed_forward` cuts a product that gives the same numbers.
HOUSEKEEPING = frozenset(
    [
        "architectures",
        "attention_dropout",
        "attn_implementation",
        "chunk_size_feed_forward",
        "dtype",
        "finetuning_task",
        "id2label",
        "initializer_range",
        "is_decoder",
        "label2id",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "task_specific_params",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tie_last_hidden_states",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "unk_token_id",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
    ]
)
COMMON_ONLY: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "attention_bias": (False,),
    "auto_map": (),  # code of the checkpoint's own
    "cross_attention_hidden_size": (),
    "hidden_activation": ("gelu_pytorch_tanh",),
    "is_encoder_decoder": (False,),
    "partial_rotary_factor": (1.0,),
    "per_layer_config": ({},),
    "pruned_heads": ({},),
    "quantization": (),  # of MLX
    "quantization_config": (),
    "use_bidirectional_attention": (False,),
}
ROPE_KEYS = ConfigKeys(
    read=frozenset({"factor", "rope_theta", "rope_type", "type"}),
    only={"partial_rotary_factor": (1.0,)},
    # Read by other types of rotary embedding, which are refused by their name.
    without_effect=frozenset(
        [
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "high_freq_factor",
            "long_factor",
            "low_freq_factor",
            "mscale",
            "mscale_all_dim",
            "original_max_position_embeddings",
            "short_factor",
            "truncate",
        ]
    ),
)
_READ_BY_ALL = frozenset(
    [
        "bos_token_id",
        "eos_token_id",
        "final_logit_softcapping",
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "layer_types",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_local_base_freq",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "sliding_window",
        "vocab_size",
    ]
)
_TIED = frozenset({"tie_word_embeddings"})


def text_keys(read: frozenset[str], only: dict[str, tuple[Any, ...]], without_effect: frozenset[str]) -> ConfigKeys:
    """Keys of a text model: those of all Gemma models, and these of one family."""
    return ConfigKeys(_READ_BY_ALL | _TIED | read, {**COMMON_ONLY, **only}, GENERATION | HOUSEKEEPING | without_effect)


def outer_keys(text: ConfigKeys, without_effect: frozenset[str]) -> ConfigKeys:
    """Keys of a multimodal config around `text`. What the text model reads, it reads inside: here it has no effect."""
    read = frozenset({"text_config", "bos_token_id", "eos_token_id"}) | _TIED
    only = {
        name: COMMON_ONLY[name] for name in ("auto_map", "is_encoder_decoder", "quantization", "quantization_config")
    }
    return ConfigKeys(read, only, (text.known() | without_effect) - read - only.keys())
