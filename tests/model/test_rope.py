"""Every spelling of rotary parameters against the frequencies that Transformers computes from the same config."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from transformers import Gemma3nTextConfig, Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nRotaryEmbedding

from edgepack.errors import EdgepackError
from edgepack.model.families import read_spec
from tests.support import tiny
from tests.support.specs import fake_checkpoint

KEYS = ("rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq")
DEFAULT = {"rope_type": "default"}
SPELLINGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "null": {"rope_parameters": None, "rope_scaling": None},
    "old": {"rope_theta": 3e5, "rope_local_base_freq": 7e3},
    "old, scaled": {"rope_theta": 3e5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "old, a scaling that holds a base": {
        "rope_theta": 3e5,
        "rope_scaling": {"rope_type": "default", "rope_theta": 4e4},
    },
    "empty": {"rope_parameters": {}},
    "full only": {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 6e5}}},
    "sliding only": {"rope_parameters": {"sliding_attention": {**DEFAULT, "rope_theta": 5e3}}},
    "null for sliding": {
        "rope_parameters": {"sliding_attention": None, "full_attention": {**DEFAULT, "rope_theta": 2e6}}
    },
    "null for full": {"rope_parameters": {"sliding_attention": {**DEFAULT, "rope_theta": 5e3}, "full_attention": None}},
    "no bases": {
        "rope_parameters": {"sliding_attention": DEFAULT, "full_attention": {"type": "linear", "factor": 3.0}}
    },
    "bases outside": {
        "rope_parameters": {"sliding_attention": DEFAULT, "full_attention": DEFAULT},
        "rope_theta": 8e4,
        "rope_local_base_freq": 3e3,
    },
    "bases inside and outside": {
        "rope_parameters": {"sliding_attention": {**DEFAULT, "rope_theta": 5e3}, "full_attention": DEFAULT},
        "rope_theta": 8e4,
        "rope_local_base_freq": 3e3,
    },
    "flat": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 123.0}},
    "flat, bases outside": {"rope_parameters": {**DEFAULT, "rope_theta": 9e3}, "rope_theta": 8e4},
    "scaling beside": {
        "rope_parameters": {"sliding_attention": DEFAULT, "full_attention": {**DEFAULT, "rope_theta": 4e5}},
        "rope_scaling": {"rope_type": "linear", "factor": 5.0},
    },
    "a factor that the type does not read": {"rope_parameters": {"full_attention": {**DEFAULT, "factor": 9.0}}},
    "a scaled window": {
        "rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}, "full_attention": DEFAULT}
    },
    "the whole head turns": {"rope_parameters": {"full_attention": {**DEFAULT, "partial_rotary_factor": 1.0}}},
}
CLASSES: dict[str, tuple[Any, Any]] = {
    "gemma3": (Gemma3TextConfig, Gemma3RotaryEmbedding),
    "shared": (Gemma3nTextConfig, Gemma3nRotaryEmbedding),
}


def config(name: str, spelling: dict[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in tiny.config(name).to_dict().items() if key not in KEYS}
    return {**values, **json.loads(json.dumps(spelling))}


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_frequencies_are_those_of_transformers(name: str, spelling: str) -> None:
    values = config(name, SPELLINGS[spelling])
    spec = read_spec(fake_checkpoint(values, {"model.embed_tokens.weight": (1, 1)}))
    config_class, rotary_class = CLASSES[name]
    rotary = rotary_class(config_class(**config(name, SPELLINGS[spelling])))
    assert spec.attention.keys() == {"sliding", "full"}
    for kind, attention in spec.attention.items():
        expected = getattr(rotary, f"{kind}_attention_inv_freq").numpy()
        exponents, rope = np.arange(0, attention.head_dim, 2) / attention.head_dim, attention.rope
        np.testing.assert_allclose(rope.theta**-exponents / rope.linear_factor, expected, rtol=1e-5)
        assert getattr(rotary, f"{kind}_attention_attention_scaling") == 1.0


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    ("spelling", "needle"),
    [
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type"),
        # Releases 4 of Transformers took it, release 5 computes without a scale.
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling.type' is 'linear' without rope_type"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}}, "full_attention.rope_type"),
        (
            {"rope_parameters": {"full_attention": {**DEFAULT, "partial_rotary_factor": 0.25}}},
            "full_attention.partial_rotary_factor' is 0.25",
        ),
        ({"rope_parameters": {"full_attention": {**DEFAULT, "mrope_section": [1, 2]}}}, "mrope_section"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}}, "sliding_attention.factor' is missing"),
        ({"rope_parameters": {"full_attention": {**DEFAULT, "rope_theta": None}}}, "full_attention.rope_theta"),
        ({"rope_parameters": {"full_attention": {**DEFAULT, "rope_theta": 0}}}, "full_attention.rope_theta"),
        ({"rope_theta": None}, "rope_theta"),
        (
            {"rope_parameters": {"full_attention": None}, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "rope_scaling' changes rope_parameters.full_attention, which is not there",
        ),
    ],
)
def test_what_transformers_computes_otherwise_or_refuses_is_refused(
    name: str, spelling: dict[str, Any], needle: str
) -> None:
    with pytest.raises(EdgepackError) as caught:
        read_spec(fake_checkpoint(config(name, spelling), {"model.embed_tokens.weight": (1, 1)}))
    assert needle in str(caught.value)
