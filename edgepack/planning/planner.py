"""From a model, a recipe and a target to a plan. No weight is read for it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

from edgepack.errors import EdgepackError, UnsupportedError
from edgepack.model.spec import ModelSpec
from edgepack.planning.assign import assign
from edgepack.planning.backends import RuntimeName, backend_for, backend_named, check_prefill, default_prefill
from edgepack.planning.memory import export_peak_bytes, planned_rows, read_per_token_bytes
from edgepack.planning.plan import Plan, Suggestion, Target
from edgepack.planning.runtime_costs import RUNTIME_COSTS
from edgepack.quant import CALIBRATED, Recipe, builtin_recipes, load_recipe
from edgepack.shown import printable

DEFAULT_RECIPE, DEFAULT_CALIBRATED_RECIPE = "int4", "int4-calibrated"
DEFAULT_CONTEXT_TOKENS = 4096
SMALLEST_SUGGESTED_TOKENS = 256


def default_recipe(*, calibrated: bool) -> str:
    """The recipe that is taken where none is asked for, with and without a calibration."""
    return DEFAULT_CALIBRATED_RECIPE if calibrated else DEFAULT_RECIPE


def make_plan(
    spec: ModelSpec,
    *,
    backend: str | None = None,
    runtime: str | None = None,
    recipe: str | Path | Recipe = DEFAULT_RECIPE,
    context_tokens: int | None = None,
    prefill_tokens: Sequence[int] | None = None,
    target: Target | None = None,
) -> Plan:
    """Decide how `spec` is stored for `backend` and what it costs in `runtime`.

    Args:
        backend: by default the one that `runtime` runs, else ``onnx``.
        runtime: whose memory counts; by default the first of the backend.
        context_tokens: positions that the cache must hold; by default 4096, or what the model can if that is less.
        prefill_tokens: lengths of the pieces in which a prompt is taken; by default 128, or the context if that is
            less.

    Raises:
        UnsupportedError: the backend has no such runtime or cannot express the recipe, the context is longer than the
            model's, or a piece longer than the context.
        EdgepackError: the recipe is not known or not valid.
    """
    emitter = backend_for(backend, runtime)
    used = emitter.runtime_for(runtime)
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, emitter.name)
    context = min(DEFAULT_CONTEXT_TOKENS, spec.max_context_tokens) if context_tokens is None else context_tokens
    check_context(spec, context)
    pieces = tuple(sorted(set(prefill_tokens or default_prefill(emitter, context))))
    check_prefill(emitter, pieces, context)
    plan = _planned(spec, used, chosen, context, pieces, target)
    if plan.fits or target is None:
        return plan
    worst = max(plan.rows, key=lambda row: row.resident_bytes)
    return plan.model_copy(update={"blame": worst.name, "suggestions": tuple(_suggest(plan, target))})


def replan(
    plan: Plan, *, runtime: str | None = None, context_tokens: int | None = None, target: Target | None = None
) -> Plan:
    """Plan the model and recipe of `plan` again, for another runtime of its backend, another context or a target.

    Pieces of prefill that are longer than the new context are cut.

    Raises:
        UnsupportedError: the backend has no such runtime, or the model or the backend cannot have such a context.
    """
    context = plan.context_tokens if context_tokens is None else context_tokens
    return make_plan(
        plan.spec,
        backend=plan.backend,
        runtime=runtime or plan.runtime,
        recipe=plan.recipe,
        context_tokens=context,
        prefill_tokens=[min(length, context) for length in plan.prefill_tokens],
        target=target,
    )


def check_context(spec: ModelSpec, context_tokens: int) -> None:
    """Raise `UnsupportedError` unless the model can hold `context_tokens`."""
    if not 1 <= context_tokens <= spec.max_context_tokens:
        raise UnsupportedError(
            f"context of {context_tokens} tokens is not possible: expected 1 to {spec.max_context_tokens}, "
            "the model's max_position_embeddings"
        )


def check_options(plan: Plan) -> None:
    """Raise `UnsupportedError` unless the model and the backend can have the plan's runtime and lengths."""
    backend = backend_named(plan.backend)
    backend.runtime_for(plan.runtime)
    check_context(plan.spec, plan.context_tokens)
    check_prefill(backend, plan.prefill_tokens, plan.context_tokens)


def check_plan(plan: Plan, spec: ModelSpec, where: Path) -> None:
    """Check that `plan`, which may come from an edited file, is one that can be made for the checkpoint at `where`.

    Raises:
        EdgepackError: it was made for another checkpoint, or its tensors are not what its recipe gives.
        UnsupportedError: the backend or the model cannot do what it says.
    """
    if plan.spec != spec:
        raise EdgepackError(f"the plan was made for another checkpoint than {where}; plan this one again")
    check_options(plan)
    if plan.tensors != assign(spec, plan.recipe, backend_named(plan.backend)):
        raise EdgepackError(
            f"the plan's tensors are not those that its recipe {printable(plan.recipe.name)} gives for {where}; "
            "edit the recipe, and plan again"
        )


def _planned(
    spec: ModelSpec,
    runtime: RuntimeName,
    recipe: Recipe,
    context_tokens: int,
    prefill_tokens: tuple[int, ...],
    target: Target | None,
) -> Plan:
    backend, costs = backend_for(None, runtime), RUNTIME_COSTS[runtime]
    tensors = assign(spec, recipe, backend)
    widest_row = max(prod(tensor.shape[1:]) for tensor in tensors)
    tokenizer_tokens = spec.vocab_size if backend.converts_tokenizer else 0
    calibrated = (tensor.shape[1] for tensor in tensors if tensor.rounding in CALIBRATED)
    return Plan(
        backend=backend.name,
        runtime=runtime,
        recipe=recipe,
        context_tokens=context_tokens,
        prefill_tokens=prefill_tokens,
        target=target,
        spec=spec,
        tensors=tensors,
        rows=planned_rows(tensors, spec, costs, context_tokens, max(prefill_tokens)),
        read_per_token_bytes=read_per_token_bytes(tensors, spec, costs, context_tokens),
        export_peak_bytes=export_peak_bytes(widest_row, tokenizer_tokens, calibrated),
    )


def _suggest(plan: Plan, target: Target) -> list[Suggestion]:
    """For the plan's own recipe and every built-in one the largest context, halving from the asked one, that fits."""
    known = (load_recipe(name, plan.backend) for name in builtin_recipes(plan.backend))
    recipes = {recipe.name: recipe for recipe in known if plan.recipe.calibrated or not recipe.calibrated}
    found = []
    for name, recipe in {**recipes, plan.recipe.name: plan.recipe}.items():
        context = plan.context_tokens
        while context >= min(SMALLEST_SUGGESTED_TOKENS, plan.context_tokens):
            pieces = tuple(length for length in plan.prefill_tokens if context % length == 0)
            pieces = pieces or default_prefill(backend_named(plan.backend), context)
            candidate = _planned(plan.spec, plan.runtime, recipe, context, pieces, target)
            if candidate.fits:
                found.append(Suggestion(recipe=name, context_tokens=context, total_bytes=candidate.total_bytes))
                break
            context //= 2
    return sorted(found, key=lambda s: (-s.context_tokens, -s.total_bytes))
