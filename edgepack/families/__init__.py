"""The known model families, by the `model_type` that config.json names."""

from __future__ import annotations

from edgepack.families.base import Family, TensorSpec, checkpoint_name, require_tensors
from edgepack.families.gemma3 import GEMMA3
from edgepack.families.gemma3n import GEMMA3N
from edgepack.spec import ModelSpec

FAMILIES: dict[str, Family] = {
    "gemma3": GEMMA3,
    "gemma3_text": GEMMA3,
    "gemma3n": GEMMA3N,
    "gemma3n_text": GEMMA3N,
}


def family_of(spec: ModelSpec) -> Family:
    """The family that wrote `spec`."""
    return FAMILIES[spec.family]


__all__ = ["FAMILIES", "Family", "TensorSpec", "checkpoint_name", "family_of", "require_tensors"]
