"""What to try next where a package does not fit: choices of its own checkpoint that fit by the plan."""

from __future__ import annotations

from collections.abc import Sequence

from edgepack.planning.memory import with_engine
from edgepack.planning.plan import Plan, Suggestion, Target
from edgepack.planning.planner import make_plan
from edgepack.quant.recipes import builtin_recipes
from edgepack.units import format_bytes
from edgepack.validation.figures.schedule import FIRST_LOAD, Measurement
from edgepack.validation.result import Advice, Check

MOST_TOLD = 3
_PACKING = "the first load packs the weights, which takes more than the run that is planned"


def advise(
    plan: Plan, runtime: str, target: Target | None, measurement: Measurement, checks: Sequence[Check]
) -> Advice | None:
    """What to try; None unless the memory is what failed.

    Args:
        plan: that of the package: its spec, backend, recipe and context are what the choices start from.
        runtime: ``litert-lm`` needs more than the plan of the bundle says.
        target: the limit that was missed.
        checks: those of the run and of the target.
    """
    missed = any(check.kind == "ram" and check.passed is False for check in checks)
    if target is None or not missed or (measurement.failure and not measurement.failure[1].at_limit):
        return None
    engine_bytes = with_engine(plan).total_bytes - plan.total_bytes if runtime == "litert-lm" else 0
    planned = plan.total_bytes + engine_bytes
    if planned <= target.limit_bytes:
        return Advice(text=_beyond_the_plan(planned, target, measurement))
    room = Target(name=target.name, limit_bytes=target.limit_bytes - engine_bytes)
    found = _suggestions(plan, room)
    if not found:
        largest = max(plan.rows, key=lambda row: row.resident_bytes)
        return Advice(
            text=f"by the plan no built-in recipe fits {target.name} with the backend {plan.backend}, with as little "
            f"as 256 tokens of context either: this package is planned at {format_bytes(planned)}, its largest part is "
            f"{largest.name} with {format_bytes(largest.resident_bytes)}; choose a larger target"
        )
    suggestions = tuple(s.model_copy(update={"total_bytes": s.total_bytes + engine_bytes}) for s in found)
    told = ", or ".join(_words(plan, suggestion) for suggestion in suggestions[:MOST_TOLD])
    text = f"export again with what fits {target.name} by the plan: --to {plan.backend} {told}"
    if _in_first_load(measurement):
        text += f"; {_PACKING}"
    return Advice(text=text, suggestions=suggestions)


def _beyond_the_plan(planned_bytes: int, target: Target, measurement: Measurement) -> str:
    """The plan is no help where it was wrong, or does not count what was killed."""
    told = f"the plan of a run, {format_bytes(planned_bytes)}, fits {target.name}"
    if _in_first_load(measurement):
        return f"{told}; {_PACKING}: choose a larger target"
    return f"{told}, so by the plan nothing has to change: choose a larger target, and report the plan's error"


def _in_first_load(measurement: Measurement) -> bool:
    return measurement.failure is not None and measurement.failure[0] == FIRST_LOAD


def _suggestions(plan: Plan, target: Target) -> tuple[Suggestion, ...]:
    return make_plan(
        plan.spec,
        backend=plan.backend,
        recipe=plan.recipe,
        context_tokens=plan.context_tokens,
        prefill_tokens=plan.prefill_tokens,
        target=target,
    ).suggestions


def _words(plan: Plan, suggestion: Suggestion) -> str:
    known = suggestion.recipe in builtin_recipes(plan.backend)
    recipe = f"--recipe {suggestion.recipe}" if known else f"the recipe file of {suggestion.recipe},"
    return f"{recipe} --context {suggestion.context_tokens} ({format_bytes(suggestion.total_bytes)})"
