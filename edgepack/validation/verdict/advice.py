"""What to try next where a package does not fit: choices of its own checkpoint that fit by the plan."""

from __future__ import annotations

from collections.abc import Sequence

from edgepack.planning.backends import backend_named
from edgepack.planning.plan import Plan, Suggestion, Target
from edgepack.planning.planner import replan
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
        runtime: the one that ran, whose memory counts.
        target: the limit that was missed.
        checks: those of the run and of the target.
    """
    missed = any(check.kind == "ram" and check.passed is False for check in checks)
    if target is None or not missed or (measurement.failure and not measurement.failure[1].at_limit):
        return None
    plan = replan(plan, runtime=runtime, target=target)
    if plan.fits:
        return Advice(text=_beyond_the_plan(plan.total_bytes, target, measurement))
    if not plan.suggestions:
        largest = max(plan.rows, key=lambda row: row.resident_bytes)
        return Advice(
            text=f"by the plan no built-in recipe fits {target.name} with the backend {plan.backend}, with as little "
            f"as 256 tokens of context either: this package is planned at {format_bytes(plan.total_bytes)}, its "
            f"largest part is {largest.name} with {format_bytes(largest.resident_bytes)}; choose a larger target"
        )
    told = ", or ".join(_words(plan, suggestion) for suggestion in plan.suggestions[:MOST_TOLD])
    chosen = "" if plan.runtime == backend_named(plan.backend).runtimes[0] else f" --runtime {plan.runtime}"
    text = f"export again with what fits {target.name} by the plan: --to {plan.backend}{chosen} {told}"
    if _in_first_load(measurement):
        text += f"; {_PACKING}"
    return Advice(text=text, suggestions=plan.suggestions)


def _beyond_the_plan(planned_bytes: int, target: Target, measurement: Measurement) -> str:
    """The plan is no help where it was wrong, or does not count what was killed."""
    told = f"the plan of a run, {format_bytes(planned_bytes)}, fits {target.name}"
    if _in_first_load(measurement):
        return f"{told}; {_PACKING}: choose a larger target"
    return f"{told}, so by the plan nothing has to change: choose a larger target, and report the plan's error"


def _in_first_load(measurement: Measurement) -> bool:
    return measurement.failure is not None and measurement.failure[0] == FIRST_LOAD


def _words(plan: Plan, suggestion: Suggestion) -> str:
    known = suggestion.recipe in builtin_recipes(plan.backend)
    recipe = f"--recipe {suggestion.recipe}" if known else f"the recipe file of {suggestion.recipe},"
    return f"{recipe} --context {suggestion.context_tokens} ({format_bytes(suggestion.total_bytes)})"
