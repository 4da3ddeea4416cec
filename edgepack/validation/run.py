"""Conduct a validation: check the files, load once to warm the runtime's cache, measure, compare, judge."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from time import perf_counter

from edgepack.budget import RUNTIME_COSTS
from edgepack.errors import EdgepackError
from edgepack.package import Package, open_package
from edgepack.planner import Plan, Target, make_plan
from edgepack.targets import parse_target
from edgepack.units import format_bytes
from edgepack.validation.job import Job
from edgepack.validation.machine import describe_machine, usable_cores
from edgepack.validation.memory import MemoryWatch
from edgepack.validation.report import Comparison, MemoryPeak, PlanComparison, Report
from edgepack.validation.supervisor import OnPhase, WorkerRun, supervise, worker_command

DEFAULT_PROMPT_TOKENS = 128
DEFAULT_NEW_TOKENS = 32
# A first load packs gigabytes, and a small board reads them from an SD card.
DEFAULT_TIMEOUT_S = 1800.0
_NOTES = (
    "load_ms is a warm load: a process before the measured one builds the runtime's cache where it is missing",
    "checking sha256 has read every file: the package was in the page cache as far as it fits there",
    "the prompt is pseudo-random: it touches more rows of the embedding tables than text of that length does",
)


def validate(
    package: str | Path,
    *,
    target: str | Target | None = None,
    runtime: str | None = None,
    prompt_tokens: int = DEFAULT_PROMPT_TOKENS,
    new_tokens: int = DEFAULT_NEW_TOKENS,
    threads: int | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    on_phase: OnPhase = lambda phase: None,
) -> Report:
    """Run `package` in a fresh process and report memory, times and a verdict.

    A run that dies, hangs or fails is a result: its report says no and why.

    Args:
        package: the package folder; every file is checked against its sha256.
        runtime: as in `edgepack.load`.
        target: the limit for peak RSS, a size or a device; by default the target that the package was planned for.
        prompt_tokens: tokens to prefill; cut, with a note, to what the package's context holds.
        new_tokens: decode steps, cut likewise to half the context.
        threads: CPU threads; None takes every core that this process may use.
        timeout_s: limit for each of the two processes, the one that warms the cache and the measured one.
        on_phase: called as each phase begins, with ``verify``, ``first load``, ``load``, ``prefill`` or ``decode``.

    Raises:
        EdgepackError: an argument is not usable, or the runtime does not take the package or is not installed.
        PackageError: no package, or a file is missing or changed.
    """
    _check_arguments(prompt_tokens, new_tokens, threads, timeout_s)
    chosen = parse_target(target) if isinstance(target, str) else target
    on_phase("verify")
    start = perf_counter()
    opened = open_package(package, verify=True)
    verify_ms = 1e3 * (perf_counter() - start)
    job = _job(opened, runtime or opened.manifest.plan.backend, prompt_tokens, new_tokens, threads or usable_cores())
    warm_up = job.model_copy(update={"load_only": True})
    on_phase("first load")
    first = supervise(worker_command(), warm_up, timeout_s=timeout_s)
    if first.refused is not None:
        raise EdgepackError(first.refused)
    # A run can only be worse than a load: without the load there is nothing to measure.
    run = supervise(worker_command(), job, timeout_s=timeout_s, on_phase=on_phase) if first.failure is None else None
    limit = chosen or opened.manifest.plan.target
    notes = [*_NOTES, *_notes(job, prompt_tokens, new_tokens, opened.manifest.plan, limit)]
    return _report(job, opened.manifest.plan, limit, notes, verify_ms, first, run)


def _check_arguments(prompt_tokens: int, new_tokens: int, threads: int | None, timeout_s: float) -> None:
    counts = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "threads": 1 if threads is None else threads}
    for name, value in counts.items():
        if value < 1:
            raise EdgepackError(f"{name} is {value}: expected at least 1")
    if not timeout_s > 0:
        raise EdgepackError(f"timeout_s is {timeout_s:g}: expected more than 0 seconds")


def _job(package: Package, runtime: str, prompt_tokens: int, new_tokens: int, threads: int) -> Job:
    context = package.manifest.plan.context_tokens
    steps = min(new_tokens, context // 2)
    return Job(
        package=str(package.path.resolve()),
        runtime=runtime,
        threads=threads,
        prompt_tokens=min(prompt_tokens, context - steps),
        new_tokens=steps,
    )


def _notes(job: Job, prompt_tokens: int, new_tokens: int, plan: Plan, target: Target | None) -> list[str]:
    notes = []
    asked = {"prompt": (prompt_tokens, job.prompt_tokens), "answer": (new_tokens, job.new_tokens)}
    for name, (wanted, used) in asked.items():
        if used < wanted:
            notes.append(f"the {name} was cut from {wanted} to {used} tokens: the context is {plan.context_tokens}")
    if target is not None and plan.total_bytes > target.limit_bytes:
        notes.append(
            f"the plan for the whole context of {plan.context_tokens} tokens needs {format_bytes(plan.total_bytes)}, "
            f"over the target {target.name}: a longer prompt may not fit"
        )
    return notes


def _report(
    job: Job,
    plan: Plan,
    target: Target | None,
    notes: list[str],
    verify_ms: float,
    first: WorkerRun,
    run: WorkerRun | None,
) -> Report:
    figures = run.figures if run else {}
    memory = run.memory if run else None
    phases = _phases(memory) if memory else ()
    peak = max(phases, key=lambda sample: sample.rss_bytes, default=None)
    steps_ms = figures.get("steps_ms")
    prompt_tokens = figures.get("prompt_tokens", job.prompt_tokens)
    peak_rss_bytes = memory.peak_rss_bytes if memory else None
    verdict, reasons = _judge(first, run, peak_rss_bytes, peak, target)
    return Report(
        package=job.package,
        runtime=job.runtime,
        target=target,
        verdict=verdict,
        reasons=reasons,
        notes=tuple(notes),
        context_tokens=plan.context_tokens,
        prompt_tokens=prompt_tokens,
        new_tokens=figures.get("new_tokens", job.new_tokens),
        threads=job.threads,
        verify_ms=verify_ms,
        first_load_ms=first.figures.get("load_ms"),
        load_ms=figures.get("load_ms"),
        ttft_ms=figures.get("ttft_ms"),
        prefill_tokens_per_s=1e3 * prompt_tokens / figures["prefill_ms"] if "prefill_ms" in figures else None,
        decode_tokens_per_s=1e3 / median(steps_ms) if steps_ms else None,
        decode_mean_tokens_per_s=1e3 * len(steps_ms) / sum(steps_ms) if steps_ms else None,
        peak_rss_bytes=peak_rss_bytes,
        peak_anonymous_bytes=max(memory.most_anonymous_bytes.values(), default=None) if memory else None,
        peak=peak,
        phases=phases,
        plan=_compare(job, plan, peak_rss_bytes, peak) if run and run.failure is None else None,
        machine=describe_machine(figures.get("versions", {})),
    )


def _phases(memory: MemoryWatch) -> tuple[MemoryPeak, ...]:
    return tuple(
        MemoryPeak(
            phase=phase,
            **sample.model_dump(exclude={"peak_rss_bytes"}),
            most_anonymous_bytes=memory.most_anonymous_bytes.get(phase),
        )
        for phase, sample in memory.largest.items()
    )


def _judge(
    first: WorkerRun, run: WorkerRun | None, peak_rss_bytes: int | None, peak: MemoryPeak | None, target: Target | None
) -> tuple[bool, tuple[str, ...]]:
    """The verdict and its reasons."""
    if run is None:
        return False, (f"the first load, which prepares the runtime's cache, did not work: {first.failure}",)
    broken = () if run.failure is None else (run.failure,)
    if target is None or peak_rss_bytes is None or peak is None:
        return not broken, broken or ("the run came to its end; no target was given to compare its memory with",)
    measured, limit = f"peak RSS {format_bytes(peak_rss_bytes)}", f"{target.name} ({target.limit_bytes:,} bytes)"
    spare = target.limit_bytes - peak_rss_bytes
    if spare < 0:
        over = f"{measured} is over the target {limit} by {format_bytes(-spare)}{_parts(peak)}"
        return False, (*broken, over)
    return not broken, broken or (f"{measured} is within the target {limit}, {format_bytes(spare)} to spare",)


def _parts(peak: MemoryPeak) -> str:
    if peak.anonymous_bytes is None or peak.file_bytes is None:
        return ""
    anonymous, file = format_bytes(peak.anonymous_bytes), format_bytes(peak.file_bytes)
    return f"; {anonymous} of it anonymous and {file} file-backed, in phase {peak.phase}"


def _compare(job: Job, plan: Plan, peak_rss_bytes: int | None, peak: MemoryPeak | None) -> PlanComparison | None:
    """Plan the tokens of this run, since most runs do not fill the context, and compare."""
    if peak_rss_bytes is None or peak is None:
        return None
    filled = job.prompt_tokens + job.new_tokens
    if RUNTIME_COSTS[plan.backend].whole_caches:
        filled = plan.context_tokens
    pieces = [min(length, filled) for length in plan.prefill_tokens]
    like = make_plan(plan.spec, backend=plan.backend, recipe=plan.recipe, context_tokens=filled, prefill_tokens=pieces)
    return PlanComparison(
        context_tokens=filled,
        total=_comparison(like.total_bytes, peak_rss_bytes),
        anonymous=None if peak.anonymous_bytes is None else _comparison(like.anonymous_bytes, peak.anonymous_bytes),
        file=None if peak.file_bytes is None else _comparison(like.total_bytes - like.anonymous_bytes, peak.file_bytes),
        full_context_total_bytes=plan.total_bytes,
    )


def _comparison(planned_bytes: int, measured_bytes: int) -> Comparison:
    return Comparison(
        planned_bytes=planned_bytes,
        measured_bytes=measured_bytes,
        difference_percent=100.0 * (measured_bytes - planned_bytes) / planned_bytes,
    )
