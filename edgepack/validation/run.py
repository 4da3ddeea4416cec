"""Conduct a validation: check the files, measure in fresh processes, compare, judge."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from edgepack.errors import EdgepackError
from edgepack.package import MANIFEST, Package, open_package
from edgepack.planner import Target
from edgepack.targets import device_names, find_device, load_device, parse_target
from edgepack.user_folders import require_utf8
from edgepack.validation import baseline as baselines
from edgepack.validation.figures import compare_plan, decode_steps_of, metrics_of, plan_like, records_of
from edgepack.validation.golden_file import read_goldens
from edgepack.validation.job import Step
from edgepack.validation.judge import check_run, check_target, judge
from edgepack.validation.machine import describe_machine, usable_cores
from edgepack.validation.measure import (
    DEFAULT_NEW_TOKENS,
    DEFAULT_REPETITIONS,
    DEFAULT_TIME_BUDGET_S,
    DEFAULT_TIMEOUT_S,
    Measurement,
    Measuring,
    OnPhase,
    measure,
)
from edgepack.validation.metrics import METRICS, Metric, measured
from edgepack.validation.notes import notes_of
from edgepack.validation.predict import package_facts, predict
from edgepack.validation.quality_process import check_timeout
from edgepack.validation.quality_run import Asked, Worth, run_quality
from edgepack.validation.result import Prediction, Report, Subject
from edgepack.validation.thresholds import Threshold, check_thresholds, parse_threshold

DEFAULT_MAX_REGRESSION = "5%"


def validate(
    package: str | Path,
    *,
    target: str | Target | None = None,
    runtime: str | None = None,
    threads: int | None = None,
    prompt_tokens: int | Sequence[int] | None = None,
    new_tokens: int = DEFAULT_NEW_TOKENS,
    repeat: int = DEFAULT_REPETITIONS,
    thresholds: Sequence[str | Threshold] = (),
    reference: str | Path | None = None,
    text: str | Path | None = None,
    golden: str | Path | None = None,
    baseline: str | Path | None = None,
    max_regression: str = DEFAULT_MAX_REGRESSION,
    force: bool = False,
    enforce_limit: bool = True,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    time_budget_s: float = DEFAULT_TIME_BUDGET_S,
    on_phase: OnPhase = lambda phase: None,
) -> Report:
    """Run `package` in fresh processes and report memory, times, quality and a verdict.

    A run that dies, hangs or fails is a result: its report says no and why.

    Args:
        package: the package folder; every file is checked against its sha256.
        target: the memory limit, a size or a device; by default the target that the package was planned for.
        runtime: as in `edgepack.load`.
        threads: CPU threads; None takes every core that this process may use.
        prompt_tokens: length of the prompt, or several; by default 128, 1024 and the context less 256 where they fit.
        new_tokens: decode steps behind the shortest and the longest prompt, at most half the context.
        repeat: measured processes; long prompts are repeated as far as `time_budget_s` allows.
        thresholds: limits on metrics, such as ``decode_tokens_per_s >= 10``.
        reference: a checkpoint or package to compare the quality with.
        text: a text file for that in place of the built-in texts.
        golden: a file of prompts with properties that their answers must have.
        baseline: the JSON report of an earlier validation.
        max_regression: how much worse than the baseline a metric may be, such as ``5%``.
        force: compare with a baseline of another machine or model.
        enforce_limit: keep the memory limit by the kernel where the system allows it, else only watch.
        timeout_s: limit for each process.
        time_budget_s: time for all measured processes, as far as one of each allows.
        on_phase: called with a few words as each phase begins.

    Raises:
        EdgepackError: an argument is not usable, the runtime does not take the package or is not installed, or the
            baseline cannot be compared with.
        PackageError: no package, or a file is missing or changed.
    """
    begin = monotonic()
    lengths = [prompt_tokens] if isinstance(prompt_tokens, int) else prompt_tokens
    asked = _asked(threads, lengths, new_tokens, repeat, timeout_s, time_budget_s, enforce_limit)
    limits = [limit if isinstance(limit, Threshold) else parse_threshold(limit) for limit in thresholds]
    allowed = baselines.parse_share(max_regression)
    before = baselines.load_baseline(Path(baseline)) if baseline is not None else None
    for file in (text, golden):
        _require_file(file)
    if text is not None and reference is None:
        raise EdgepackError(f"the text {text} is for the comparison with a reference, and none was given")
    check_timeout("timeout_s", timeout_s)
    if golden is not None:
        read_goldens(Path(golden))  # what is wrong with it is told before minutes of measuring
    chosen = parse_target(target) if isinstance(target, str) else target
    on_phase("verify")
    opened = open_package(package, verify=True)
    require_utf8(opened.path.resolve(), "the package")
    plan = opened.manifest.plan
    chosen = chosen or plan.target
    used = runtime or plan.backend
    limit_bytes, inputs = chosen.limit_bytes if chosen else None, Asked(reference, text, golden)
    if before is not None and not force:  # before the minutes that measuring takes
        facts = baselines.facts_expected(describe_machine({}), subject_of(opened), used, asked, limit_bytes)
        facts |= baselines.inputs_expected(before, inputs)
        baselines.require_comparable(before, facts, Path(str(baseline)))
    _require_measurable(limits, asked.steps(plan.context_tokens)[0], inputs)
    measurement = measure(opened, used, asked, limit_bytes, on_phase=on_phase)
    worth = Worth()
    if measurement.failure is None:  # what does not run has no quality
        worth = run_quality(
            opened.path,
            inputs,
            runtime=runtime,
            threads=asked.threads,
            timeout_s=timeout_s,
            on_phase=on_phase,
        )
    report = _report(opened, used, chosen, asked, measurement, worth, limits, monotonic() - begin)
    report = report.model_copy(update={"predictions": _predictions(opened, report, measurement, target)})
    if before is None or measurement.failure is not None:
        return report
    return baselines.with_baseline(
        report,
        before,
        file=str(baseline),
        max_regression_percent=allowed,
        forced=force,
        judged=[limit.metric for limit in limits],
        given=inputs,
    )


def _predictions(
    package: Package, report: Report, measurement: Measurement, target: str | Target | None
) -> tuple[Prediction, ...]:
    """What the figures of this machine say about the known devices, and about the user's own if that is the target."""
    if report.plan is None:
        return ()
    devices = [device for name in device_names() if (device := load_device(name)).read_bandwidth_bytes_per_s]
    own = find_device(target) if isinstance(target, str) else None
    if own is not None and own.name not in device_names():
        devices.insert(0, own)
    facts = package_facts(plan_like(package.manifest.plan, report.plan.filled_tokens))
    fastest = max(measurement.readings, key=lambda reading: reading.bytes_per_s, default=None)
    return predict(facts, report.metrics, fastest, devices)


def _asked(
    threads: int | None,
    prompt_tokens: Sequence[int] | None,
    new_tokens: int,
    repeat: int,
    timeout_s: float,
    time_budget_s: float,
    enforce_limit: bool,
) -> Measuring:
    counts = {"new_tokens": new_tokens, "threads": 1 if threads is None else threads, "repeat": repeat}
    counts |= {"prompt_tokens": min(prompt_tokens)} if prompt_tokens else {}
    for name, value in counts.items():
        if value < 1:
            raise EdgepackError(f"{name} is {value}: expected at least 1")
    for name, seconds in (("timeout_s", timeout_s), ("time_budget_s", time_budget_s)):
        if not seconds > 0:
            raise EdgepackError(f"{name} is {seconds:g}: expected more than 0 seconds")
    return Measuring(
        threads=threads or usable_cores(),
        prompt_tokens=tuple(prompt_tokens) if prompt_tokens else None,
        new_tokens=new_tokens,
        repetitions=repeat,
        timeout_s=timeout_s,
        time_budget_s=time_budget_s,
        enforce_limit=enforce_limit,
    )


def _require_measurable(limits: Sequence[Threshold], steps: Sequence[Step], given: Asked) -> None:
    """Refuse a threshold on what this validation does not measure, before the minutes that it takes.

    Raises:
        EdgepackError: with what to give.
    """
    lengths = [step.prompt_tokens for step in steps]
    for limit in limits:
        base, _, length = limit.metric.partition("@")
        missing = None
        if base == "golden_pass_rate":
            missing = None if given.golden else "golden answers: give --golden FILE"
        elif METRICS[base].subject == "quality":
            missing = None if given.reference else "a reference: give --reference with a checkpoint or a package"
        elif length and int(length) not in lengths:
            missing = f"a prompt of {length} tokens: those are of {', '.join(map(str, lengths))}; give --prompt-tokens"
        elif base.startswith("long_") and len(steps) == 1:
            missing = "a second, longer prompt: give --prompt-tokens with two lengths"
        if missing is not None:
            raise EdgepackError(f"the threshold {limit} needs {missing}")


def _require_file(file: str | Path | None) -> None:
    if file is not None and not os.path.isfile(file):
        raise EdgepackError(f"{file} is no file: expected a text, or golden prompts")


def _report(
    package: Package,
    runtime: str,
    target: Target | None,
    asked: Measuring,
    measurement: Measurement,
    worth: Worth,
    thresholds: Sequence[Threshold],
    duration_s: float,
) -> Report:
    subject = subject_of(package)
    metrics = (*metrics_of(measurement, subject.disk_bytes), *_quality_metrics(worth))
    found = [check_run(measurement), check_target(measurement, target), *worth.checks(thresholds)]
    # Figures of a run that broke off would only bury the reason.
    judged = check_thresholds(thresholds, metrics) if measurement.failure is None else []
    verdict, checks, reasons = judge([*(check for check in found if check is not None), *judged])
    versions: dict[str, str] = next(
        (run.figures["load"]["versions"] for _, run in measurement.processes if "load" in run.figures), {}
    )
    return Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        subject=subject,
        runtime=runtime,
        target=target,
        limit=measurement.limit_facts,
        verdict=verdict,
        reasons=reasons,
        notes=tuple(notes_of(asked, measurement, metrics, package.manifest.plan, target)),
        repetitions=len(measurement.of("run")),
        prompt_tokens=tuple(step.prompt_tokens for step in measurement.steps),
        new_tokens=measurement.new_tokens,
        threads=asked.threads,
        metrics=metrics,
        checks=checks,
        processes=records_of(measurement),
        decode_steps_ms=decode_steps_of(measurement),
        memory_read_bytes_per_s=tuple(reading.median_bytes_per_s for reading in measurement.readings),
        plan=compare_plan(measurement, package, runtime),
        quality=worth.quality,
        golden=worth.golden,
        duration_s=round(duration_s, 1),
        machine=describe_machine(versions),
    )


def subject_of(package: Package) -> Subject:
    """Name, size and fingerprint of `package`."""
    plan, spec = package.manifest.plan, package.manifest.plan.spec
    return Subject(
        path=str(package.path),
        model=f"{spec.family}, {len(spec.layers)} layers of {spec.hidden_size}, {spec.vocab_size} tokens",
        backend=plan.backend,
        recipe=plan.recipe.name,
        context_tokens=plan.context_tokens,
        fingerprint=hashlib.sha256((package.path / MANIFEST).read_bytes()).hexdigest(),
        disk_bytes=sum(entry.size_bytes for entry in package.manifest.files),
    )


def _quality_metrics(worth: Worth) -> list[Metric]:
    found = []
    if worth.quality is not None:
        names = ("kl_mean", "kl_p99", "top1_agreement", "perplexity_ratio")
        found = [measured(name, [getattr(worth.quality, name)]) for name in names]
    if worth.golden is not None:
        found.append(measured("golden_pass_rate", [worth.golden.pass_rate]))
    return found
