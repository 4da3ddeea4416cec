"""The known model families, by the `model_type` that config.json names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.model.families.base import Family, TensorSpec
from edgepack.model.families.gemma3 import GEMMA3
from edgepack.model.families.gemma3n import GEMMA3N
from edgepack.model.spec import ModelSpec
from edgepack.model.tensors import checkpoint_name, compare_tensors, head_doubt

if TYPE_CHECKING:
    from edgepack.checkpoint.folder import Checkpoint

FAMILIES: dict[str, Family] = {
    "gemma3": GEMMA3,
    "gemma3_text": GEMMA3,
    "gemma3n": GEMMA3N,
    "gemma3n_text": GEMMA3N,
}


def family_of(spec: ModelSpec) -> Family:
    """The family that wrote `spec`."""
    return FAMILIES[spec.family]


def require_tensors(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """Check that `checkpoint` holds every tensor of `spec` in its shape, and no other of the text model.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or would be ignored without a word; it is named.
    """
    family = family_of(spec)
    compare_tensors(checkpoint, spec, family.tensor_table(spec), family.unneeded(spec))


__all__ = ["FAMILIES", "Family", "TensorSpec", "checkpoint_name", "family_of", "head_doubt", "require_tensors"]
