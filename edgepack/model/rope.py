"""Rotary parameters out of all the spellings that configs have had, as Transformers 5 takes them.

Source: `convert_rope_params_to_dict` of Transformers' Gemma 3 and 3n configs (Apache-2.0), read as the specification.
"""

from __future__ import annotations

from edgepack.errors import CheckpointError, UnsupportedError
from edgepack.model.config import ConfigReader
from edgepack.model.shared_config_keys import ROPE_KEYS
from edgepack.model.spec import AttentionKind, RopeSpec
from edgepack.shown import shown

# Attention kind, its key in `rope_parameters`, the older key beside the others, and what holds where neither is there.
_KINDS: tuple[tuple[AttentionKind, str, str, float], ...] = (
    ("sliding", "sliding_attention", "rope_local_base_freq", 10_000.0),
    ("full", "full_attention", "rope_theta", 1_000_000.0),
)


def rope_specs(config: ConfigReader) -> dict[AttentionKind, RopeSpec]:
    """Rotary parameters of both attention kinds.

    `rope_parameters` holds an object a kind. What it leaves out comes from the older keys, then from the published
    models; Transformers reads no other key of it, and neither does this. `rope_scaling` changes full attention only,
    also beside `rope_parameters`.

    Raises:
        CheckpointError: a value is missing or of the wrong type.
        UnsupportedError: a key or a type of rotary embedding is not implemented.
    """
    parameters = config.values.get("rope_parameters")
    if parameters is not None:
        config.child("rope_parameters")  # refuses what is no object
    specs: dict[AttentionKind, RopeSpec] = {}
    for kind, name, older, theta in _KINDS:
        where, values = config, {}
        if parameters and parameters.get(name) is not None:
            where = config.child("rope_parameters").child(name)
            values = dict(where.values)
        if kind == "full" and config.values.get("rope_scaling") is not None:
            if parameters is not None and not values:
                raise CheckpointError(
                    f"{config.key('rope_scaling')} changes rope_parameters.full_attention, which is not there; "
                    "write both into one of them"
                )
            where = config.child("rope_scaling")
            _require_rope_type(where)
            values |= where.values
        rope = ConfigReader(values, where.path, where.where)
        ROPE_KEYS.check(rope)
        specs[kind] = _rope(rope, config.above_zero(older, theta) if "rope_theta" not in values else None)
    return specs


def _require_rope_type(scaling: ConfigReader) -> None:
    """Refuse the first spelling of the type: releases 4 of Transformers took it, release 5 computes without a scale."""
    kind = scaling.values.get("type", "default")
    if kind != "default" and "rope_type" not in scaling.values:
        raise UnsupportedError(
            f"{scaling.key('type')} is {shown(kind)} without rope_type, which releases of Transformers take "
            "differently: write rope_type"
        )


def _rope(rope: ConfigReader, theta: float | None) -> RopeSpec:
    """Read one object; `theta` where it has none of its own."""
    kind = rope.values.get("rope_type", rope.values.get("type", "default"))  # "type" is what old configs say
    if kind not in ("default", "linear"):
        raise CheckpointError(f"{rope.key('rope_type')}: expected 'default' or 'linear', got {shown(kind)}")
    factor = rope.above_zero("factor") if kind == "linear" else 1.0
    return RopeSpec(theta=rope.above_zero("rope_theta", theta), linear_factor=factor)
