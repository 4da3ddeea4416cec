"""What a reader must know to read the figures of a validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgepack.planning.plan import Plan, Target
from edgepack.units import format_bytes
from edgepack.validation.figures.collect import fewest_steps
from edgepack.validation.figures.predict import disturbances
from edgepack.validation.figures.schedule import Measurement
from edgepack.validation.metrics import Metric
from edgepack.validation.processes.job import DECODE
from edgepack.validation.settings import MeasureSettings

_ALWAYS = (
    "cold load: the page cache of the package was dropped before; warm load: right after it, in a new process",
    "the prompt is pseudo-random: it touches more rows of the embedding tables than text of that length does",
)


def notes_of(
    asked: MeasureSettings, measurement: Measurement, metrics: Sequence[Metric], plan: Plan, target: Target | None
) -> list[str]:
    """One line each: how it was measured, what was cut, what was left out, and what makes figures doubtful."""
    notes = [*_ALWAYS]
    if measurement.limit.limit_bytes is not None and not measurement.limit.enforced:
        notes.insert(0, f"limit not enforced, memory was only watched: {measurement.limit.why}")
    lengths = [step.prompt_tokens for step in measurement.steps]
    notes += [
        f"a prompt was cut from {wanted} to {max(lengths)} tokens: the context is {plan.context_tokens}"
        for wanted in asked.prompt_tokens or ()
        if wanted > max(lengths)
    ]
    if measurement.new_tokens < asked.new_tokens:
        notes.append(
            f"the answer was cut from {asked.new_tokens} to {measurement.new_tokens} tokens: the context is "
            f"{plan.context_tokens}"
        )
    notes += _short_answers(measurement)
    if disturbed := disturbances(measurement.readings, measurement.load):
        said = "; ".join(disturbed)
        notes.append(f"not a quiet machine: {said}, so speeds differ from one validation to the next")
    repeated = [m for m in metrics if m.kind.by_prompt or m.name.startswith(("long_", "peak_"))]
    few = [metric.name for metric in repeated if len(metric.values) < asked.repeat]
    if few and measurement.failure is None:
        notes.append(
            f"measured less often, to stay within the time budget of {asked.time_budget_s:g} s: {', '.join(few)}"
        )
    if target is not None and plan.total_bytes > target.limit_bytes:
        notes.append(
            f"the plan for the whole context of {plan.context_tokens} tokens needs {format_bytes(plan.total_bytes)}, "
            f"over the target {target.name}: a longer prompt may not fit"
        )
    return notes


def _short_answers(measurement: Measurement) -> Iterator[str]:
    for phase, steps in fewest_steps(measurement).items():
        # An engine of text does not count the first token of an answer as a step.
        if steps < measurement.new_tokens - 1:
            metric = "decode_tokens_per_s" if phase == DECODE else "long_decode_tokens_per_s"
            what = f"{metric} is of fewer steps" if steps else f"{metric} was not measured"
            yield f"the model ended an answer in phase {phase} after {steps} of {measurement.new_tokens} tokens: {what}"
