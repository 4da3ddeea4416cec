"""The plan: how every tensor is stored, what that costs, and whether it fits. No weight is read for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from edgepack.errors import EdgepackError, UnsupportedError
from edgepack.model.families import family_of
from edgepack.model.spec import Component, ModelSpec
from edgepack.model.tensors import TensorSpec
from edgepack.planning.backends import FLOAT32, Backend, BackendName, backend_named, check_prefill, default_prefill
from edgepack.planning.memory import (
    ENGINE_CODE_BYTES,
    ENGINE_PIECE_BYTES,
    LARGEST_PRODUCT_BYTES,
    RUNTIME_COSTS,
    MemoryRow,
    RuntimeCosts,
    activation_bytes,
    export_peak_bytes,
    kv_bytes,
    touched_table_bytes,
)
from edgepack.quant import IntScheme, Recipe, Rounding, Scheme, builtin_recipes, load_recipe
from edgepack.reading import first_wrong, read_user_file
from edgepack.shown import printable
from edgepack.units import format_bytes
from edgepack.values import Frozen

SCHEMA_VERSION: Final = 2
DEFAULT_RECIPE = "int4"
DEFAULT_CONTEXT_TOKENS = 4096
SMALLEST_SUGGESTED_TOKENS = 256
# Components that are looked up by row and therefore stay on file.
TABLES: tuple[Component, ...] = ("ple",)


class TensorPlan(Frozen):
    """How one tensor is stored, and why if the recipe says otherwise."""

    name: str
    component: Component
    shape: tuple[int, ...]
    gathered: bool
    scheme: Scheme
    rounding: Rounding = "nearest"
    reason: str | None = None


class Target(Frozen):
    """A memory limit and the name it was given under."""

    name: str
    limit_bytes: int


class Suggestion(Frozen):
    """A nearby choice that fits the target."""

    recipe: str
    context_tokens: int
    total_bytes: int


class Plan(Frozen):
    """A complete decision about one package.

    Attributes:
        prefill_tokens: lengths of the pieces in which a prompt is taken, shortest first: the signatures of a LiteRT
            model, the chunk of other runtimes.
        rows: the memory budget, line by line; a total is a sum over it.
        read_per_token_bytes: bytes that one decode step reads from memory: weights, whole windows, and half of the
            full-length caches.
        export_peak_bytes: expected peak RSS of the export itself, with the processes that it starts.
        blame: the largest row when the target is missed.
        suggestions: the nearest choices that do fit, largest context first.
    """

    schema_version: Literal[2] = SCHEMA_VERSION
    backend: BackendName
    recipe: Recipe
    context_tokens: int = Field(ge=1)
    prefill_tokens: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    target: Target | None
    spec: ModelSpec
    tensors: tuple[TensorPlan, ...]
    rows: tuple[MemoryRow, ...]
    read_per_token_bytes: int
    export_peak_bytes: int
    blame: str | None = None
    suggestions: tuple[Suggestion, ...] = ()

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        # A line, where the fields have a thousand: whoever prints a plan wants to know what it says.
        target = {"target": self.target.name, "fits": self.fits} if self.target else {}
        facts = {"backend": self.backend, "recipe": self.recipe.name, "context_tokens": self.context_tokens}
        sizes = {"total": format_bytes(self.total_bytes), "disk": format_bytes(self.disk_bytes)}
        return list((facts | sizes | target).items())

    @property
    def chunk_tokens(self) -> int:
        """Most tokens of a prompt that are processed at once."""
        return max(self.prefill_tokens)

    @property
    def total_bytes(self) -> int:
        """Resident bytes at the peak: file-backed and anonymous."""
        return sum(row.resident_bytes for row in self.rows)

    @property
    def anonymous_bytes(self) -> int:
        """The part of `total_bytes` that no system can drop."""
        return sum(row.resident_bytes for row in self.rows if row.kind == "anonymous")

    @property
    def disk_bytes(self) -> int:
        """Size of the weight files."""
        return sum(row.disk_bytes for row in self.rows)

    @property
    def fits(self) -> bool:
        """Whether the peak stays within the target; true without a target."""
        return self.target is None or self.total_bytes <= self.target.limit_bytes

    def exceptions(self) -> tuple[str, ...]:
        """What is not stored as the recipe says, and why, a line each; vectors are float32 everywhere."""
        reasons = Counter(
            (tensor.component, tensor.scheme.name, tensor.reason)
            for tensor in self.tensors
            if tensor.reason and len(tensor.shape) > 1
        )
        return tuple(
            f"{count} x {component} stored as {scheme}, not as the recipe says: {reason}"
            for (component, scheme, reason), count in reasons.items()
        )


def make_plan(
    spec: ModelSpec,
    *,
    backend: str = "onnx",
    recipe: str | Path | Recipe = DEFAULT_RECIPE,
    context_tokens: int | None = None,
    prefill_tokens: Sequence[int] | None = None,
    target: Target | None = None,
) -> Plan:
    """Decide how `spec` is stored for `backend` and what it costs.

    Args:
        context_tokens: positions that the cache must hold; by default 4096, or what the model can if that is less.
        prefill_tokens: lengths of the pieces in which a prompt is taken; by default 128, or the context if that is
            less.

    Raises:
        UnsupportedError: the backend cannot express the recipe, the context is longer than the model's, or a piece
            longer than the context.
        EdgepackError: the recipe is not known or not valid.
    """
    emitter = backend_named(backend)
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, emitter.name)
    context = min(DEFAULT_CONTEXT_TOKENS, spec.max_context_tokens) if context_tokens is None else context_tokens
    check_context(spec, context)
    pieces = tuple(sorted(set(prefill_tokens or default_prefill(emitter, context))))
    check_prefill(emitter, pieces, context)
    plan = _measured(spec, emitter, chosen, context, pieces, target)
    if plan.fits or target is None:
        return plan
    worst = max(plan.rows, key=lambda row: row.resident_bytes)
    return plan.model_copy(update={"blame": worst.name, "suggestions": tuple(_suggest(plan, target))})


def with_engine(plan: Plan) -> Plan:
    """`plan`, made for LiteRT, as LiteRT-LM runs the same bundle: a larger library, and a tokenizer of its own."""
    tokenizer = ENGINE_PIECE_BYTES * plan.spec.vocab_size
    more = (
        MemoryRow(name="engine, code", kind="file", resident_bytes=ENGINE_CODE_BYTES),
        MemoryRow(name="engine, tokenizer", kind="anonymous", resident_bytes=tokenizer),
    )
    return plan.model_copy(update={"rows": (*plan.rows, *more)})


def check_context(spec: ModelSpec, context_tokens: int) -> None:
    """Raise `UnsupportedError` unless the model can hold `context_tokens`."""
    if not 1 <= context_tokens <= spec.max_context_tokens:
        raise UnsupportedError(
            f"context of {context_tokens} tokens is not possible: expected 1 to {spec.max_context_tokens}, "
            "the model's max_position_embeddings"
        )


def check_plan(plan: Plan, spec: ModelSpec, where: Path) -> None:
    """Check that `plan`, which may come from an edited file, is one that can be made for the checkpoint at `where`.

    Raises:
        EdgepackError: it was made for another checkpoint, or its tensors are not what its recipe gives.
        UnsupportedError: the backend or the model cannot do what it says.
    """
    if plan.spec != spec:
        raise EdgepackError(f"the plan was made for another checkpoint than {where}; plan this one again")
    check_context(spec, plan.context_tokens)
    check_prefill(backend_named(plan.backend), plan.prefill_tokens, plan.context_tokens)
    if plan.tensors != assign(spec, plan.recipe, backend_named(plan.backend)):
        raise EdgepackError(
            f"the plan's tensors are not those that its recipe {printable(plan.recipe.name)} gives for {where}; "
            "edit the recipe, and plan again"
        )


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
            backend.check(scheme, what=what, multiplied=_multiplied(plan, spec), gathered=tensor.gathered)
        plans.append(plan)
    return tuple(plans)


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


def _measured(
    spec: ModelSpec,
    backend: Backend,
    recipe: Recipe,
    context_tokens: int,
    prefill_tokens: tuple[int, ...],
    target: Target | None,
) -> Plan:
    tensors = assign(spec, recipe, backend)
    costs = RUNTIME_COSTS[backend.name]
    chunk_tokens = max(prefill_tokens)
    disk: dict[str, int] = {}
    resident: dict[str, int] = {}
    lookups = 0
    for tensor in tensors:
        disk[tensor.component] = disk.get(tensor.component, 0) + tensor.scheme.nbytes(tensor.shape)
        used = _packed_bytes(tensor, costs) if _multiplied(tensor, spec) else 0
        resident[tensor.component] = resident.get(tensor.component, 0) + used
        lookups += _looked_up_bytes(tensor, min(context_tokens, costs.lookup_tokens)) if tensor.gathered else 0
    rows = [
        MemoryRow(name=name, kind="file", disk_bytes=size, resident_bytes=resident[name], note=_note(name))
        for name, size in disk.items()
    ]
    rows += _copies(tensors, spec, resident, costs)
    rows.append(MemoryRow(name="looked-up rows", kind="file", resident_bytes=lookups, note="pages around them"))
    cache = kv_bytes(spec, context_tokens, costs.window_slack_tokens)
    rows += _run_rows(spec, costs, cache, chunk_tokens, context_tokens)
    more = 0 if not costs.packs_whole else _load_bytes(tensors, spec, costs) - sum(row.resident_bytes for row in rows)
    if more > 0:  # a small model with a large vocabulary, or a large model with little context: its peak is the load
        rows.append(MemoryRow(name="loading", kind="file", resident_bytes=more, note="while weights are packed"))
    return Plan(
        backend=backend.name,
        recipe=recipe,
        context_tokens=context_tokens,
        prefill_tokens=prefill_tokens,
        target=target,
        spec=spec,
        tensors=tensors,
        rows=tuple(rows),
        read_per_token_bytes=sum(resident.values()) + cache["sliding"] + cache["full"] // 2,
        export_peak_bytes=export_peak_bytes(
            max(prod(tensor.shape[1:]) for tensor in tensors), spec.vocab_size if backend.name == "litert" else 0
        ),
    )


def _multiplied(tensor: TensorPlan, spec: ModelSpec) -> bool:
    """Whether every token reads the whole tensor; a table is only looked up, unless it is the tied head too."""
    return tensor.component not in TABLES and not (tensor.gathered and not spec.tied_head)


def _run_rows(
    spec: ModelSpec, costs: RuntimeCosts, cache: Mapping[str, int], chunk_tokens: int, context_tokens: int
) -> Iterator[MemoryRow]:
    """What a run needs besides weights: caches by attention kind, activations, and the runtime itself."""
    for kind, size in cache.items():
        if size:
            yield MemoryRow(name=f"KV cache, {kind} layers", kind="anonymous", resident_bytes=size)
    activations = activation_bytes(spec, chunk_tokens, context_tokens, costs)
    note = f"prefill in chunks of {chunk_tokens}"
    yield MemoryRow(name="activations", kind="anonymous", resident_bytes=activations, note=note)
    yield MemoryRow(name="runtime, heap", kind="anonymous", resident_bytes=costs.library_anonymous_bytes)
    yield MemoryRow(name="runtime, graph", kind="anonymous", resident_bytes=_graph_bytes(spec, costs))
    yield MemoryRow(name="runtime, code", kind="file", resident_bytes=costs.library_file_bytes)


def _copies(
    tensors: Sequence[TensorPlan], spec: ModelSpec, resident: Mapping[str, int], costs: RuntimeCosts
) -> Iterator[MemoryRow]:
    """What some runtimes need on disk besides one copy of every tensor."""
    copied = 0
    for tensor in tensors:
        if costs.table_copies and tensor.gathered and _multiplied(tensor, spec):
            size = tensor.scheme.nbytes(tensor.shape)
            copied += size
            note = "the table that is looked up, a second copy"
            yield MemoryRow(name=f"{tensor.component} rows", kind="file", disk_bytes=size, resident_bytes=0, note=note)
    if costs.keeps_cache:
        models = sum(tensor.scheme.nbytes(tensor.shape) for tensor in tensors) + copied
        note = "not in the package: the litert runtime's copy of it"
        yield MemoryRow(name="models in the cache", kind="file", disk_bytes=models, resident_bytes=0, note=note)
        note = "not in the package: repacked weights, written by the first load"
        size = sum(resident.values())
        yield MemoryRow(name="weight cache", kind="file", disk_bytes=size, resident_bytes=0, note=note)


def _packed_bytes(tensor: TensorPlan, costs: RuntimeCosts) -> int:
    """Bytes of a tensor as the runtime has repacked it: codes, and per block a scale and a sum."""
    scheme = tensor.scheme
    if not isinstance(scheme, IntScheme):
        return scheme.nbytes(tensor.shape)
    codes, blocks = prod(tensor.shape) * scheme.bits // 8, prod(tensor.shape) // scheme.block_of(tensor.shape)
    return codes + int(blocks * costs.packed_block_bytes) + tensor.shape[0] * costs.packed_row_bytes


def _graph_bytes(spec: ModelSpec, costs: RuntimeCosts) -> int:
    return len(spec.layers) * costs.layer_anonymous_bytes


def _load_bytes(tensors: Sequence[TensorPlan], spec: ModelSpec, costs: RuntimeCosts) -> int:
    """Peak of resident bytes while one product after another is packed, the largest first.

    For a moment a product is there raw, fresh and saved. Of all before it the saved bytes stay, and until the load has
    come to its end the raw scales and zero points too.
    """
    products = [tensor for tensor in tensors if len(tensor.shape) == 2 and _multiplied(tensor, spec)]
    staying = peak = 0
    for tensor in sorted(products, key=lambda tensor: -prod(tensor.shape)):
        raw, packed = tensor.scheme.nbytes(tensor.shape), _packed_bytes(tensor, costs)
        codes = prod(tensor.shape) * tensor.scheme.bits // 8 if isinstance(tensor.scheme, IntScheme) else raw
        slices = max(1, -(-codes // LARGEST_PRODUCT_BYTES)) if isinstance(tensor.scheme, IntScheme) else 1
        for _ in range(slices):
            peak = max(peak, staying + (raw + 2 * packed) // slices)
            staying += (packed + raw - codes) // slices
    return max(peak, staying) + costs.library_file_bytes + costs.library_anonymous_bytes + _graph_bytes(spec, costs)


def _looked_up_bytes(tensor: TensorPlan, tokens: int) -> int:
    sizes = [part.nbytes for part in tensor.scheme.parts(tensor.shape)]
    return touched_table_bytes([size // tensor.shape[0] for size in sizes], sizes, tokens)


def _note(component: str) -> str:
    return "stays on file" if component in TABLES else ""


def _suggest(plan: Plan, target: Target) -> list[Suggestion]:
    """For the plan's own recipe and every built-in one the largest context, halving from the asked one, that fits."""
    recipes = {name: load_recipe(name, plan.backend) for name in builtin_recipes(plan.backend)}
    found = []
    for name, recipe in {**recipes, plan.recipe.name: plan.recipe}.items():
        context = plan.context_tokens
        while context >= min(SMALLEST_SUGGESTED_TOKENS, plan.context_tokens):
            pieces = tuple(length for length in plan.prefill_tokens if context % length == 0)
            pieces = pieces or default_prefill(backend_named(plan.backend), context)
            candidate = _measured(plan.spec, backend_named(plan.backend), recipe, context, pieces, target)
            if candidate.fits:
                found.append(Suggestion(recipe=name, context_tokens=context, total_bytes=candidate.total_bytes))
                break
            context //= 2
    return sorted(found, key=lambda s: (-s.context_tokens, -s.total_bytes))


def load_plan(path: Path) -> Plan:
    """Read a plan that `edgepack plan --save` wrote.

    Raises:
        EdgepackError: the file is missing, or no plan of this version; the first wrong field is named.
    """
    content = read_user_file(path, "plan", "write one with `edgepack plan --save`")
    try:
        return Plan.model_validate_json(content)
    except ValidationError as error:
        raise EdgepackError(
            f"plan {path}: {first_wrong(error)}; write a new one with `edgepack plan --save`"
        ) from error
