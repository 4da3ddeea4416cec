"""The known model families, by the `model_type` that config.json names."""

from __future__ import annotations

from edgepack.checkpoint.folder import Checkpoint
from edgepack.errors import CheckpointError, UnsupportedError
from edgepack.model.families.base import Family
from edgepack.model.families.gemma3 import GEMMA3
from edgepack.model.families.gemma3n import GEMMA3N
from edgepack.model.spec import ModelSpec
from edgepack.model.tensors import compare_tensors
from edgepack.shown import shown

_GENERATORS = ("ForCausalLM", "ForConditionalGeneration")
FAMILIES: dict[str, Family] = {model_type: family for family in (GEMMA3, GEMMA3N) for model_type in family.prefixes}


def family_of(spec: ModelSpec) -> Family:
    """The family that wrote `spec`.

    Raises:
        UnsupportedError: it is none of the known ones.
    """
    families = {family.name: family for family in FAMILIES.values()}
    if spec.family not in families:
        raise UnsupportedError(
            f"the model's family is {shown(spec.family)}: expected one of {', '.join(families)}; was it planned by a "
            "newer edgepack?"
        )
    return families[spec.family]


def read_spec(checkpoint: Checkpoint) -> ModelSpec:
    """Read the model that `checkpoint` describes.

    Raises:
        CheckpointError: a key of config.json is missing or has the wrong type; the file and key are named.
        UnsupportedError: the model type is none of the known families.
    """
    model_type = checkpoint.config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(
            f"{checkpoint.config_path}: key 'model_type' is missing; is this a Transformers checkpoint?"
        )
    family = FAMILIES.get(model_type)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedError(
            f"{checkpoint.config_path}: model_type {shown(model_type)} is not supported; known: {known}"
        )
    _require_generator(checkpoint)
    return family.read_spec(checkpoint)


def _require_generator(checkpoint: Checkpoint) -> None:
    """Refuse what was trained for something else, such as a classifier: its head would be lost without a word."""
    value = checkpoint.config.get("architectures")
    names = [] if value is None else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"{checkpoint.config_path}: key 'architectures': expected a list of names, got {shown(value)}"
        )
    if names and not any(name.endswith(_GENERATORS) for name in names):
        raise UnsupportedError(
            f"{checkpoint.config_path}: architectures is {shown(names)}, which does not generate text: expected a "
            f"class that ends in {' or '.join(_GENERATORS)}"
        )


def require_tensors(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """Check that `checkpoint` holds every tensor of `spec` in its shape, and no other of the text model.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or would be ignored without a word; it is named.
    """
    family = family_of(spec)
    compare_tensors(checkpoint, spec, family.tensor_table(spec), family.unneeded(spec))
