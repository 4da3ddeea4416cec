"""From what the processes did to figures: metrics with their spread, records of the processes, the plan beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgepack.budget import RUNTIME_COSTS
from edgepack.package import Package
from edgepack.planner import Plan, make_plan, with_engine
from edgepack.validation.components import compare_components
from edgepack.validation.job import DECODE, LONG_DECODE
from edgepack.validation.measure import COLD_LOAD, FIRST_LOAD, Measurement
from edgepack.validation.metrics import Metric, measured
from edgepack.validation.result import Comparison, PhaseMemory, PlanComparison, ProcessRecord
from edgepack.validation.supervisor import WorkerRun

RUN = "run"
Add = Callable[[str, float | None], None]
PERCENTILES = (50, 95, 99)


def metrics_of(measurement: Measurement, package_bytes: int) -> tuple[Metric, ...]:
    """Every figure that the processes got far enough to give, one value a repetition."""
    values: dict[str, list[float]] = {"package_bytes": [package_bytes]}

    def add(name: str, value: float | None) -> None:
        if value is not None:
            values.setdefault(name, []).append(value)

    for purpose, name in ((FIRST_LOAD, "first_load_ms"), (COLD_LOAD, "cold_load_ms"), (RUN, "warm_load_ms")):
        for run in measurement.of(purpose):
            add(name, run.figures.get("load", {}).get("load_ms"))
    complete = [run for run in measurement.of(RUN) if all(step.phase in run.figures for step in measurement.steps)]
    for run in measurement.of(RUN):
        # A repetition that left the long prompts out needed less: its peak is not another measurement of the same.
        if run in complete or not complete:
            _add_memory(run, add)
        add("warm_up_ms", run.figures.get("warm-up", {}).get("warm_up_ms"))
        for step in measurement.steps:
            if figures := run.figures.get(step.phase):
                add(f"ttft_ms@{step.prompt_tokens}", figures["ttft_ms"])
                rate = 1e3 * figures["prompt_tokens"] / figures["prefill_ms"]
                add(f"prefill_tokens_per_s@{step.prompt_tokens}", rate)
        for phase, prefix in ((DECODE, ""), (LONG_DECODE, "long_")):
            if figures := run.figures.get(phase):
                _add_steps(prefix, figures, add)
    return tuple(measured(name, found) for name, found in values.items())


def _add_memory(run: WorkerRun, add: Add) -> None:
    phases = run.memory.phases()
    add("peak_rss_bytes", run.memory.peak_rss_bytes)
    for name, field in (
        ("peak_pss_bytes", "pss_bytes"),
        ("peak_anonymous_bytes", "most_anonymous_bytes"),
        ("peak_charged_bytes", "charged_bytes"),
    ):
        found = [value for phase in phases if (value := getattr(phase, field)) is not None]
        add(name, max(found, default=None))
    faults = [p.major_faults for p in phases if p.phase in (DECODE, LONG_DECODE) and p.major_faults is not None]
    add("decode_major_faults", sum(faults) if faults else None)


def _add_steps(prefix: str, figures: dict[str, Any], add: Add) -> None:
    steps_ms = figures["steps_ms"]
    if not steps_ms:
        return
    # All steps over all their time, stalls included: what a reader of the answer feels.
    add(f"{prefix}decode_tokens_per_s", 1e3 * len(steps_ms) / sum(steps_ms))
    if figures.get("even"):  # one rate for all steps has no percentiles
        return
    for percent, value in zip(PERCENTILES, np.percentile(steps_ms, PERCENTILES), strict=True):
        add(f"{prefix}itl_p{percent}_ms", float(value))


def decode_steps_of(measurement: Measurement) -> dict[str, tuple[float, ...]]:
    """Every decode step of all runs in ms, by phase."""
    steps: dict[str, tuple[float, ...]] = {}
    for run in measurement.of(RUN):
        for phase in (DECODE, LONG_DECODE):
            found = run.figures.get(phase, {}).get("steps_ms")
            if found:
                steps[phase] = steps.get(phase, ()) + tuple(round(value, 3) for value in found)
    return steps


def fewest_steps(measurement: Measurement) -> dict[str, int]:
    """Decode steps of the shortest answer, by phase, as far as something was decoded."""
    found: dict[str, int] = {}
    for run in measurement.of(RUN):
        for phase in (DECODE, LONG_DECODE):
            if phase in run.figures:
                steps = len(run.figures[phase]["steps_ms"])
                found[phase] = min(steps, found.get(phase, steps))
    return found


def records_of(measurement: Measurement) -> tuple[ProcessRecord, ...]:
    """The processes with their phases and timelines."""
    return tuple(
        ProcessRecord(
            purpose=purpose,
            failure=run.failure,
            peak_rss_bytes=run.memory.peak_rss_bytes,
            phases=run.memory.phases(),
            timeline=run.memory.timeline(),
        )
        for purpose, run in measurement.processes
    )


def peak_phase(records: tuple[ProcessRecord, ...]) -> tuple[str, PhaseMemory] | None:
    """The phase with the largest sample of `records`, behind the purpose of its process."""
    phases = [(record.purpose, phase) for record in records for phase in record.phases]
    return max(phases, key=lambda found: found[1].rss_bytes, default=None)


def compare_plan(measurement: Measurement, package: Package, runtime: str) -> PlanComparison | None:
    """Plan the tokens that the runs filled, since most do not fill the context, and lay the measured figures beside."""
    whole = [run for run in measurement.of(RUN) if run.failure is None and measurement.steps[-1].phase in run.figures]
    if not whole:
        return None
    run = whole[0]
    peak = run.memory.peak_rss_bytes
    if peak is None:
        return None
    filled = max(
        run.figures[step.phase]["prompt_tokens"] + (measurement.new_tokens if step.decode else 0)
        for step in measurement.steps
    )
    plan = package.manifest.plan
    like = plan_like(plan, filled)
    if runtime == "litert-lm":
        plan, like = with_engine(plan), with_engine(like)
    last = [phase for step in measurement.steps for phase in (step.phase, step.decode) if phase in run.mappings]
    return PlanComparison(
        filled_tokens=filled,
        total=Comparison(
            planned_bytes=like.total_bytes,
            measured_bytes=peak,
            difference_percent=100.0 * (peak - like.total_bytes) / like.total_bytes,
        ),
        components=compare_components(
            like, run.mappings.get("load"), run.mappings[last[-1]] if last else None, package.path
        ),
        full_context_total_bytes=plan.total_bytes,
    )


def plan_like(plan: Plan, filled_tokens: int) -> Plan:
    """The plan for a run that fills `filled_tokens` of the package's context."""
    filled = plan.context_tokens if RUNTIME_COSTS[plan.backend].whole_caches else filled_tokens
    pieces = [min(length, filled) for length in plan.prefill_tokens]
    return make_plan(plan.spec, backend=plan.backend, recipe=plan.recipe, context_tokens=filled, prefill_tokens=pieces)
