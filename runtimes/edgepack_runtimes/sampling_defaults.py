"""How a model wants to be sampled: what its generation_config.json says, as Transformers' `generate` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.errors import PackageError, UnsupportedError
from edgepack.shown import shown
from edgepack.text.files import read_json

GENERATION_CONFIG = "generation_config.json"
# What `generate` takes where the file says nothing (GenerationConfig._get_default_generation_params, Transformers 5).
KNOBS: Mapping[str, float] = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}
# Choices of tokens that the sampler does not have, with the values that switch each of them off; None always does.
WITHOUT: Mapping[str, tuple[object, ...]] = {
    "bad_words_ids": ([],),
    "begin_suppress_tokens": ([],),
    "constraints": ([],),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "min_p": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "sequence_bias": ([], {}),
    "suppress_tokens": ([],),
    "top_h": (),
    "typical_p": (1,),
    "watermarking_config": (),
}


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a generation_config.json says, with Transformers' defaults for the rest; the knobs' values are not checked.

    Attributes:
        file: where it stands.
        samples: `do_sample`; without it `generate` is greedy, whatever the knobs are.
        knobs: temperature, top_k, top_p and repetition_penalty by name.
    """

    file: Path
    samples: bool
    knobs: Mapping[str, Any]


def sampling_defaults(folder: str | Path) -> SamplingDefaults:
    """How the model in `folder` wants to be sampled; greedily where no file says anything.

    Raises:
        PackageError: there is no such folder, the file cannot be read, or its `do_sample` is neither true nor false.
        UnsupportedError: it asks for a choice of tokens that the sampler does not have.
    """
    path = Path(folder) / GENERATION_CONFIG
    if not path.parent.is_dir():
        raise PackageError(f"{path.parent}: no such folder; expected a package")
    values = {key: value for key, value in read_json(path).items() if value is not None}
    samples = values.get("do_sample", False)
    if not isinstance(samples, bool):
        raise PackageError(f"{path}: do_sample is {shown(samples)}: expected true or false")
    for name, neutral in WITHOUT.items():
        if name in values and values[name] not in neutral:
            raise UnsupportedError(
                f"{path}: {name} is {shown(values[name])}, which edgepack's sampler does not have: "
                "leave these defaults, and set temperature, top_k and top_p yourself"
            )
    return SamplingDefaults(path, samples, {name: values.get(name, default) for name, default in KNOBS.items()})
