"""Which scheme every tensor of a model gets."""

from __future__ import annotations

from edgepack.model.families import family_of
from edgepack.model.spec import Component, ModelSpec
from edgepack.model.tensors import TensorSpec
from edgepack.planning.backends import FLOAT32, Backend
from edgepack.planning.plan import TensorPlan
from edgepack.quant import IntScheme, Recipe, Scheme

# Components that are looked up by row and therefore stay on file.
TABLES: tuple[Component, ...] = ("ple",)


def assign(spec: ModelSpec, recipe: Recipe, backend: Backend) -> tuple[TensorPlan, ...]:
    """Storage of every tensor: the recipe's scheme, unless the shape does not allow it."""
    plans = []
    for tensor in family_of(spec).tensor_table(spec):
        row = recipe.storage(tensor.component)
        scheme, reason = _fit(tensor, row.scheme, backend)
        rounding = row.rounding if isinstance(scheme, IntScheme) else "nearest"
        plan = TensorPlan(**tensor.model_dump(), scheme=scheme, rounding=rounding, reason=reason)
        if len(tensor.shape) == 2:
            what = f"recipe {recipe.name}, {tensor.name}"
            backend.check(scheme, what=what, multiplied=is_multiplied(plan, spec), gathered=tensor.gathered)
        plans.append(plan)
    return tuple(plans)


def is_multiplied(tensor: TensorPlan, spec: ModelSpec) -> bool:
    """Whether every token reads the whole tensor; a table is only looked up, unless it is the tied head too."""
    return tensor.component not in TABLES and not (tensor.gathered and not spec.tied_head)


def _fit(tensor: TensorSpec, scheme: Scheme, backend: Backend) -> tuple[Scheme, str | None]:
    """The scheme itself, or the nearest one that the tensor's shape allows, and why."""
    if len(tensor.shape) == 1:
        return FLOAT32, None if scheme == FLOAT32 else "a vector: float32 costs nothing and norms need it"
    if not isinstance(scheme, IntScheme) or scheme.fits(tensor.shape):
        return scheme, None
    columns, block = tensor.shape[1], scheme.block
    if block is None:
        return FLOAT32, f"{columns} columns of {scheme.bits} bits are no whole bytes"
    while block > backend.min_block and columns % block:
        block //= 2
    if columns % block:
        return FLOAT32, f"{columns} columns are no multiple of the smallest block, {backend.min_block}"
    return scheme.model_copy(update={"block": block}), f"{columns} columns are no multiple of block {scheme.block}"
