"""From what the processes did to figures: metrics with their spread, records of the processes, the plan beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgepack.package.folder import Package
from edgepack.planning.plan import Plan
from edgepack.planning.planner import replan
from edgepack.planning.runtime_costs import RUNTIME_COSTS
from edgepack.validation.figures.components import compare_components
from edgepack.validation.figures.schedule import COLD_LOAD, FIRST_LOAD, Measurement
from edgepack.validation.metrics import METRICS, Metric, measured
from edgepack.validation.processes.job import DECODE, LONG_DECODE
from edgepack.validation.processes.supervisor import WorkerRun
from edgepack.validation.records import PhaseMemory, ProcessRecord
from edgepack.validation.result import Comparison, PlanComparison

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
    _add_memory(measurement, add)
    for run in measurement.of(RUN):
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


def _add_memory(measurement: Measurement, add: Add) -> None:
    """Peaks and page faults of every repetition that came to its end.

    One that left the long prompts out needed less: it is not another measurement of the same, and only what is larger
    than in those with all prompts is told of it.
    """
    whole: list[dict[str, int]] = []
    partial: list[dict[str, int]] = []
    for cold, run in zip(measurement.of(COLD_LOAD), measurement.of(RUN), strict=False):
        if run.failure is None:
            complete = all(step.phase in run.figures for step in measurement.steps)
            (whole if complete else partial).append(_memory_of(cold, run))
    for found in whole or partial:
        for name, value in found.items():
            add(name, value)
    for found in partial if whole else ():
        for name, value in found.items():
            if value > max((other[name] for other in whole if name in other), default=value) and METRICS[name].peak:
                add(name, value)


def _memory_of(cold: WorkerRun, run: WorkerRun) -> dict[str, int]:
    """The peaks of a repetition, its cold load included, and the page faults of its decode."""
    found = {"peak_rss_bytes": max(cold.memory.peak_rss_bytes or 0, run.memory.peak_rss_bytes or 0)}
    phases = (*cold.memory.phases(), *run.memory.phases())
    for name, field in (
        ("peak_pss_bytes", "pss_bytes"),
        ("peak_anonymous_bytes", "most_anonymous_bytes"),
        ("peak_charged_bytes", "charged_bytes"),
    ):
        found[name] = max((getattr(phase, field) or 0 for phase in phases), default=0)
    decoded = [p.major_faults for p in phases if p.phase in (DECODE, LONG_DECODE) and p.major_faults is not None]
    known = {name: value for name, value in found.items() if value}
    return known | ({"decode_major_faults": sum(decoded)} if decoded else {})


def peak_rss_bytes(measurement: Measurement) -> int | None:
    """The peak of all cold loads and runs, which is what everybody calls the peak of the package."""
    runs = [*measurement.of(COLD_LOAD), *measurement.of(RUN)]
    return max((run.memory.peak_rss_bytes or 0 for run in runs), default=0) or None


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
    return max(phases, key=lambda found: found[1].peak_rss_bytes, default=None)


def largest(processes: tuple[ProcessRecord, ...]) -> ProcessRecord | None:
    """The process with the largest peak."""
    return max((process for process in processes if process.phases or process.timeline), key=_peak, default=None)


def representative(processes: tuple[ProcessRecord, ...]) -> ProcessRecord | None:
    """The run with the largest peak, which has all phases; where nothing ran, the process with the largest."""
    return largest(tuple(process for process in processes if process.purpose.startswith(RUN))) or largest(processes)


def _peak(process: ProcessRecord) -> int:
    return process.peak_rss_bytes or max((moment.rss_bytes for moment in process.timeline), default=0)


def compare_plan(measurement: Measurement, package: Package, runtime: str) -> PlanComparison | None:
    """Plan the tokens that the runs filled, since most do not fill the context, and lay the measured figures beside."""
    whole = [run for run in measurement.of(RUN) if run.failure is None and measurement.steps[-1].phase in run.figures]
    peak = peak_rss_bytes(measurement)
    if not whole or peak is None:
        return None
    run = max(whole, key=lambda run: run.memory.peak_rss_bytes or 0)
    filled = max(
        run.figures[step.phase]["prompt_tokens"] + (measurement.new_tokens if step.decode else 0)
        for step in measurement.steps
    )
    plan = package.manifest.plan
    like, planned = plan_like(plan, filled, runtime), plan if plan.runtime == runtime else replan(plan, runtime=runtime)
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
        full_context_total_bytes=planned.total_bytes,
    )


def plan_like(plan: Plan, filled_tokens: int, runtime: str) -> Plan:
    """The plan for a run in `runtime` that fills `filled_tokens` of the package's context."""
    like = replan(plan, runtime=runtime)
    return like if RUNTIME_COSTS[like.runtime].whole_caches else replan(like, context_tokens=filled_tokens)
