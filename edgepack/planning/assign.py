"""Which scheme every tensor of a model gets."""

from __future__ import annotations

from edgepack.errors import UnsupportedError
from edgepack.model.families import family_of
from edgepack.model.spec import Component, ModelSpec
from edgepack.model.tensors import TensorSpec
from edgepack.planning.backends import FLOAT32, Backend
from edgepack.planning.plan import TensorPlan
from edgepack.quant import CALIBRATED, IntScheme, Recipe, Rounding, Scheme
from edgepack.shown import printable, shown

# Components that are looked up by row and therefore stay on file.
TABLES: tuple[Component, ...] = ("ple",)


def assign(spec: ModelSpec, recipe: Recipe, backend: Backend) -> tuple[TensorPlan, ...]:
    """Storage of every tensor: the recipe's scheme, unless the shape does not allow it."""
    plans, table = [], family_of(spec).tensor_table(spec)
    unknown = sorted(recipe.tensors.keys() - {tensor.name for tensor in table})
    if unknown:
        raise UnsupportedError(
            f"recipe {printable(recipe.name)}: {shown(unknown[0])} is no tensor of this model: expected a canonical "
            f"name such as {next(tensor.name for tensor in table if len(tensor.shape) == 2)}"
        )
    for tensor in table:
        row = recipe.storage(tensor.component, tensor.name)
        scheme, reason = fit(tensor, row.scheme, backend)
        multiplied, what = is_multiplied(tensor, spec), f"recipe {recipe.name}, {tensor.name}"
        rounding = _rounding(row.rounding, tensor, multiplied, what) if isinstance(scheme, IntScheme) else "nearest"
        if len(tensor.shape) == 2:
            backend.check(scheme, what=what, multiplied=multiplied, gathered=tensor.gathered)
        plans.append(TensorPlan(**tensor.model_dump(), scheme=scheme, rounding=rounding, reason=reason))
    return tuple(plans)


def _rounding(asked: Rounding, tensor: TensorSpec, multiplied: bool, what: str) -> Rounding:
    """`asked`, or a search for an embedding that no product reads, since its head has the row of the component."""
    if asked not in CALIBRATED or multiplied:
        return asked
    if tensor.component == "embedding":
        return "search"
    raise UnsupportedError(
        f"{what}: rounding {asked} is for matrices of products, and this table is only looked up: expected nearest or "
        "search"
    )


def is_multiplied(tensor: TensorSpec | TensorPlan, spec: ModelSpec) -> bool:
    """Whether every token reads the whole tensor; a table is only looked up, unless it is the tied head too."""
    return tensor.component not in TABLES and not (tensor.gathered and not spec.tied_head)


def fit(tensor: TensorSpec, scheme: Scheme, backend: Backend) -> tuple[Scheme, str | None]:
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
