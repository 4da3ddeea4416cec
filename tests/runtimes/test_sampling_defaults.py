"""How a model wants to be sampled: generation_config.json as Transformers reads it, and knobs that would do nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import edgepack
from edgepack.errors import EdgepackError
from edgepack_runtimes.sampling import SamplingParams
from edgepack_runtimes.sampling_defaults import KNOBS, WITHOUT

# Keys of Transformers' GenerationConfig that choose no token: lengths, caches, outputs, assistants, and what is read
# elsewhere (start and stop tokens).
NO_CHOICE = {
    "_from_model_config",
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_ensemble_weight",
    "assistant_lookbehind",
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "continuous_batching_config",
    "decoder_start_token_id",
    "disable_compile",
    "do_sample",
    "early_stopping",
    "eos_token_id",
    "is_assistant",
    "length_penalty",
    "low_memory",
    "max_cache_len",
    "max_length",
    "max_matching_ngram_size",
    "max_new_tokens",
    "max_time",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "pad_token_id",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "remove_invalid_values",
    "renormalize_logits",
    "return_dict_in_generate",
    "speculation_type",
    "stop_strings",
    "target_lookbehind",
    "token_healing",
    "transformers_version",
    "use_cache",
    "use_mtp",
}


def folder_with(folder: Path, config: object) -> Path:
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "generation_config.json").write_text(text, "utf-8")
    return folder


def test_every_key_of_transformers_is_a_knob_or_refused_or_chooses_no_token() -> None:
    from transformers import GenerationConfig

    theirs = set(GenerationConfig().to_dict())
    assert theirs == KNOBS.keys() | WITHOUT.keys() | NO_CHOICE


def test_what_is_left_out_has_transformers_defaults() -> None:
    from transformers import GenerationConfig

    theirs = GenerationConfig._get_default_generation_params()
    assert {name: theirs[name] for name in KNOBS} == dict(KNOBS)
    for name in WITHOUT.keys() & theirs.keys():
        assert theirs[name] is None or theirs[name] in WITHOUT[name], name


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"do_sample": True, "top_k": 40, "top_p": 0.9}, {"temperature": 1.0, "top_k": 40, "top_p": 0.9}),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50}),
        ({"do_sample": True, "temperature": 0.6, "top_k": 0}, {"temperature": 0.6}),
        (
            {"do_sample": True, "top_k": None, "repetition_penalty": 1.05, "min_p": 0, "num_beams": 1},
            {"temperature": 1.0, "top_k": 50, "repetition_penalty": 1.05},
        ),
        ({"do_sample": False, "top_k": 40, "repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
        ({"temperature": 0.6}, {}),
        ({}, {}),
    ],
)
def test_the_package_says_how(tmp_path: Path, config: dict[str, Any], expected: dict[str, Any]) -> None:
    assert SamplingParams.from_package(folder_with(tmp_path, config)) == SamplingParams(**expected)


def test_without_the_file_a_model_is_greedy(tmp_path: Path) -> None:
    assert SamplingParams.from_package(tmp_path) == SamplingParams()


def test_what_is_given_goes_before_the_file(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"do_sample": True, "top_k": 40, "top_p": 0.9, "temperature": 0.6})
    given = SamplingParams.from_package(folder, temperature=1.2, top_k=0, seed=5)
    assert given == SamplingParams(temperature=1.2, top_p=0.9, seed=5)
    assert SamplingParams.from_package(folder, temperature=0).temperature == 0
    greedy = folder_with(tmp_path, {"do_sample": False, "top_k": 30})
    assert SamplingParams.from_package(greedy, temperature=0.5) == SamplingParams(temperature=0.5, top_k=30)
    with pytest.raises(EdgepackError, match=r"top_p is 0\.5, which does nothing"):
        SamplingParams.from_package(greedy, top_p=0.5)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"do_sample": "yes"}, "do_sample is 'yes': expected true or false"),
        ({"do_sample": True, "temperature": "warm"}, "temperature 'warm' is not usable: expected a number"),
        ({"do_sample": False, "top_p": 7}, "top_p 7 is not usable"),
        ({"do_sample": True, "top_k": 1.5}, "top_k 1.5 is not usable"),
        ({"do_sample": True, "repetition_penalty": [1]}, r"repetition_penalty \[1\] is not usable"),
        ({"do_sample": True, "top_k": "9" * 5000}, r"top_k '9{50}[^\n]* \(5,002 characters\) is not usable"),
        ({"do_sample": True, "min_p": 0.05}, "min_p is 0.05, which edgepack's sampler does not have"),
        ({"num_beams": 4}, "num_beams is 4"),
        ({"suppress_tokens": [7]}, r"suppress_tokens is \[7\]"),
        ("[1]", "expected a JSON object, got list"),
        ("{", "not valid JSON"),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(tmp_path: Path, config: object, said: str) -> None:
    folder = folder_with(tmp_path, config)
    with pytest.raises(EdgepackError, match=said) as caught:
        SamplingParams.from_package(folder)
    assert str(caught.value).startswith(f"{folder / 'generation_config.json'}: ") and len(str(caught.value)) < 400


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EdgepackError, match="no such folder; expected a package"):
        edgepack.SamplingParams.from_package(tmp_path / "none")


@pytest.mark.parametrize("idle", [{"top_k": 9}, {"top_p": 0.5}, {"seed": 0}])
def test_a_knob_that_would_do_nothing_names_the_temperature(idle: dict[str, Any]) -> None:
    (name, value) = next(iter(idle.items()))
    with pytest.raises(EdgepackError, match=f"{name} is {value}, which does nothing.*--temperature 1"):
        SamplingParams(**idle)
    assert SamplingParams(temperature=0, **idle).temperature == 0  # who says 0 knows it
    assert SamplingParams(temperature=0.5, **idle).temperature == 0.5


def test_a_knob_that_is_off_is_fine() -> None:
    assert SamplingParams(top_k=0, top_p=1.0, seed=None, repetition_penalty=1.2) == SamplingParams(
        repetition_penalty=1.2
    )
