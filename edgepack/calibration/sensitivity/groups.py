"""Groups of tensors that are stored in one way: what a sensitivity measures, and a mix chooses for."""

from __future__ import annotations

from dataclasses import dataclass

from edgepack.calibration.inputs import trace_inputs
from edgepack.model.families import family_of
from edgepack.model.families.base import head_name
from edgepack.model.spec import Component, ModelSpec
from edgepack.model.tensors import TensorSpec
from edgepack.quant.recipes import Storage

# Kinds that are finer than components, by the end of a tensor's name.
_KINDS = {
    "mlp.gate_proj.weight": "ffn_gate_up",
    "mlp.up_proj.weight": "ffn_gate_up",
    "mlp.down_proj.weight": "ffn_down",
    ".per_layer_input_gate.weight": "per_layer_gate",
    ".per_layer_projection.weight": "per_layer_projection",
    "per_layer_model_projection.weight": "per_layer_model_projection",
}


@dataclass(frozen=True, slots=True)
class Group:
    """Matrices of one layer, or of the whole model, that get one scheme.

    Attributes:
        name: such as ``layers.3.ffn_down``, or ``embedding``.
        kind: what groups of several layers have in common: ``ffn_down``.
        component: of all of its tensors.
        tensors: the matrices, in the order of computation.
        stage: the first part of the decoder that they have an effect on, see `stages_of`.
        multiplied: whether a product reads them; a table may only be looked up.
    """

    name: str
    kind: str
    component: Component
    tensors: tuple[TensorSpec, ...]
    stage: int
    multiplied: bool

    @property
    def gathered(self) -> bool:
        """Whether it is a table, of which a forward reads rows; it may be the head too."""
        return any(tensor.gathered for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to store a group.

    Attributes:
        asked: the same row for all of its tensors.
        stored: what each gets of it, by canonical name: some shapes take less than what is asked.
    """

    asked: Storage
    stored: dict[str, Storage]


def groups_of(spec: ModelSpec) -> tuple[Group, ...]:
    """All matrices and tables of a model, once, in the order of its table."""
    stages = {matrix: read.stage for read in trace_inputs(spec) for matrix in read.matrices}
    found: dict[str, list[TensorSpec]] = {}
    kinds: dict[str, str] = {}
    for tensor in family_of(spec).tensor_table(spec):
        if len(tensor.shape) != 2:
            continue
        kind = next((kind for end, kind in _KINDS.items() if tensor.name.endswith(end)), tensor.component)
        layer = ".".join(tensor.name.split(".")[:2]) if tensor.name.startswith("layers.") else ""
        name = f"{layer}.{kind}" if layer else kind
        found.setdefault(name, []).append(tensor)
        kinds[name] = kind
    return tuple(
        Group(
            name=name,
            kind=kinds[name],
            component=tensors[0].component,
            tensors=tuple(tensors),
            stage=min(0 if tensor.gathered else stages[tensor.name] for tensor in tensors),
            multiplied=all(tensor.name in stages for tensor in tensors),
        )
        for name, tensors in found.items()
    )


def is_head(group: Group, spec: ModelSpec) -> bool:
    """Whether the group is the matrix that makes logits."""
    return any(tensor.name == head_name(spec) for tensor in group.tensors)
