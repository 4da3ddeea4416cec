"""Conduct the worker processes of a validation: a first load, then repetitions of a cold load and a measured run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from edgepack.errors import EdgepackError
from edgepack.package.folder import Package
from edgepack.validation.figures.bandwidth import Bandwidth, measure_bandwidth
from edgepack.validation.machine import cpu_times, load_between
from edgepack.validation.processes.job import Step, WorkerJob
from edgepack.validation.processes.limit import memory_limit
from edgepack.validation.processes.page_cache import drop_page_cache
from edgepack.validation.processes.protocol import OnPhase
from edgepack.validation.processes.supervisor import WorkerRun, supervise, worker_command
from edgepack.validation.records import LimitFacts, Load
from edgepack.validation.settings import MeasureSettings

FIRST_LOAD, COLD_LOAD = "first load", "cold load"


@dataclass(slots=True)
class Measurement:
    """What the processes did, in order, each with its purpose.

    Attributes:
        readings: of this machine's memory, one before each repetition.
        load: what else this machine did while the repetitions ran.
    """

    steps: tuple[Step, ...]
    new_tokens: int
    limit: LimitFacts
    processes: list[tuple[str, WorkerRun]] = field(default_factory=list)
    readings: list[Bandwidth] = field(default_factory=list)
    load: Load | None = None

    @property
    def limit_facts(self) -> LimitFacts:
        """How the limit was kept, with what had to be counted towards it."""
        counted = [run.uncharged_bytes for _, run in self.processes if run.uncharged_bytes is not None]
        return self.limit.model_copy(update={"uncharged_bytes": counted[-1] if counted else None})

    @property
    def failure(self) -> tuple[str, WorkerRun] | None:
        """The process that did not come to its end; it is the last one."""
        return next(((purpose, run) for purpose, run in self.processes if run.failure is not None), None)

    def of(self, purpose: str) -> list[WorkerRun]:
        """The processes whose purpose begins with these words."""
        return [run for name, run in self.processes if name.startswith(purpose)]


def measure(package: Package, asked: MeasureSettings, limit_bytes: int | None, *, on_phase: OnPhase) -> Measurement:
    """Run `package` as `asked`, each process inside a limit of `limit_bytes`.

    The page cache of the package and of what the runtime maps is dropped before every cold load: it is charged to
    whoever reads it first, so that pages read outside the limit would be free of charge inside.

    Raises:
        EdgepackError: the runtime refuses the package, or is not installed.
    """
    begin = monotonic()
    steps, new_tokens = asked.steps(package.manifest.plan.context_tokens)
    load = _load_job(package, asked, new_tokens)
    result = Measurement(steps, new_tokens, LimitFacts(method="none", enforced=False, limit_bytes=None))

    def run(purpose: str, job: WorkerJob) -> bool:
        def tell(phase: str) -> None:
            on_phase(f"{purpose}: {phase}" if job.steps else purpose)

        worker = supervise(worker_command(), job, timeout_s=asked.timeout_s, limit=limit, on_phase=tell)
        result.processes.append((purpose, worker))
        result.limit = weaker(result.limit, limit.kept()) if len(result.processes) > 1 else limit.kept()
        if worker.refused is not None and not worker.at_limit and purpose == FIRST_LOAD:
            raise EdgepackError(worker.refused)
        return worker.failure is None

    own = [package.path / entry.path for entry in package.manifest.files]
    drop_page_cache(own)  # verifying them has read them all
    with memory_limit(limit_bytes, enforce=asked.enforce_limit) as limit:
        if not run(FIRST_LOAD, load.model_copy(update={"rebuild_cache": True})):
            return result
    files, before = [*own, *_mapped_files(result.processes[0][1])], cpu_times()
    for repetition in range(asked.repeat):
        left_s = asked.time_budget_s - (monotonic() - begin)
        result.readings.append(measure_bandwidth(asked.used_threads))
        chosen = affordable(steps, _costs_s(result), left_s / (asked.repeat - repetition))
        with memory_limit(limit_bytes, enforce=asked.enforce_limit) as limit:
            drop_page_cache(files)
            if not run(f"{COLD_LOAD} {repetition + 1}", load):
                return result
            if not run(f"run {repetition + 1}", load.model_copy(update={"steps": chosen})):
                return result
        result.load = load_between(before, cpu_times())
    return result


def _load_job(package: Package, asked: MeasureSettings, new_tokens: int) -> WorkerJob:
    return WorkerJob(
        package=str(package.path.resolve()),
        runtime=package.runtime(asked.runtime),
        threads=asked.used_threads,
        context_tokens=package.manifest.plan.context_tokens,
        new_tokens=new_tokens,
    )


def weaker(one: LimitFacts, other: LimitFacts) -> LimitFacts:
    """The facts that hold for both: a limit that was enforced only now and then was not enforced."""
    return one if not one.enforced else other


def affordable(steps: tuple[Step, ...], costs_s: dict[str, float], share_s: float) -> tuple[Step, ...]:
    """The first of `steps`, and of the others, shortest first, those that together stay within `share_s`.

    A step that has never run costs nothing yet: the first repetition takes all of them.
    """
    chosen, spent = [steps[0]], costs_s.get(steps[0].phase, 0.0)
    for step in steps[1:]:
        cost = costs_s.get(step.phase, 0.0)
        if not cost or spent + cost <= share_s:
            chosen.append(step)
            spent += cost
    return tuple(chosen)


def _costs_s(result: Measurement) -> dict[str, float]:
    """Seconds that each step took the last time, by its prefill phase, and its decode phase with it."""
    costs = {}
    for run in result.of("run"):
        for step in result.steps:
            figures = run.figures.get(step.phase)
            if figures:
                decode = run.figures.get(step.decode or "", {}).get("steps_ms", [])
                costs[step.phase] = (figures["ttft_ms"] + sum(decode)) / 1e3
    return costs


def _mapped_files(run: WorkerRun) -> list[Path]:
    """Whatever the runtime has mapped: the package, its cache and its libraries."""
    return [Path(path) for path in run.mappings["load"].files] if "load" in run.mappings else []
