"""Conduct a validation: check the files, measure in fresh processes, compare, judge."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from edgepack.errors import about
from edgepack.package.folder import MANIFEST, Package, open_package
from edgepack.planning.plan import Target
from edgepack.planning.targets import device_names, find_device, load_device
from edgepack.user_folders import require_utf8
from edgepack.validation.answers import Asked, Worth, run_quality
from edgepack.validation.figures.collect import compare_plan, decode_steps_of, metrics_of, plan_like, records_of
from edgepack.validation.figures.predict import basis_of, package_facts, predict_all
from edgepack.validation.figures.schedule import (
    DEFAULT_NEW_TOKENS,
    DEFAULT_REPETITIONS,
    DEFAULT_TIME_BUDGET_S,
    DEFAULT_TIMEOUT_S,
    Measurement,
    Measuring,
    measure,
)
from edgepack.validation.machine import describe_machine
from edgepack.validation.metrics import Metric, measured
from edgepack.validation.missing import missing_of, unended
from edgepack.validation.progress import VERIFY, OnProgress, Tracker, stages_of
from edgepack.validation.request import (
    BaselineMissing,
    Comparing,
    comparing_of,
    inputs_of,
    limits_of,
    measuring_of,
    require_measurable,
    target_of,
)
from edgepack.validation.result import Report, Subject
from edgepack.validation.verdict import baseline as baselines
from edgepack.validation.verdict.advice import advise
from edgepack.validation.verdict.judge import check_run, check_target, judge
from edgepack.validation.verdict.notes import notes_of
from edgepack.validation.verdict.thresholds import Threshold, check_thresholds


@dataclass(frozen=True, slots=True)
class Order:
    """A validation that can begin.

    Attributes:
        target: the memory limit; `own_target` is what the user gave for it.
        runtime: the one that loads the package.
        limits: thresholds.
    """

    package: Package
    measuring: Measuring
    target: Target | None
    own_target: str | int | Target | None
    runtime: str
    limits: tuple[Threshold, ...]
    inputs: Asked
    comparing: Comparing


def validate(
    package: str | Path,
    *,
    target: str | int | Target | None = None,
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
    max_regression: str | None = None,
    baseline_missing: BaselineMissing = "error",
    force: bool = False,
    enforce_limit: bool = True,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    time_budget_s: float = DEFAULT_TIME_BUDGET_S,
    on_phase: OnProgress = lambda progress: None,
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
        max_regression: how much worse than the baseline a metric may be, such as ``5%``, which is the default.
        baseline_missing: ``ok`` for a first run: a baseline that is not there, or not given, is no error then. Nothing
            is compared, and a check that is not judged says so.
        force: compare with a baseline of another machine or model.
        enforce_limit: keep the memory limit by the kernel where the system allows it, else only watch.
        timeout_s: limit for each process.
        time_budget_s: time for all measured processes, as far as one of each allows.
        on_phase: called as each phase begins, with its name and how far that is.

    Raises:
        SettingError: an argument is not usable, or the baseline cannot be compared with.
        EdgepackError: the runtime does not take the package or is not installed, or the reference does not run.
        PackageError: no package, or a file is missing or changed.
    """
    begin = monotonic()
    lengths = [prompt_tokens] if isinstance(prompt_tokens, int) else prompt_tokens
    asked = measuring_of(threads, lengths, new_tokens, repeat, timeout_s, time_budget_s, enforce_limit)
    limits = tuple(limits_of(thresholds))
    comparing = comparing_of(baseline, max_regression, baseline_missing, force)
    inputs, chosen = inputs_of(reference, text, golden), target_of(target)
    runtime = runtime or open_package(package).manifest.plan.runtime
    tell = Tracker(stages_of(repeat, inputs, runtime), on_phase, time_budget_s=time_budget_s)
    tell(VERIFY)
    opened = open_package(package, verify=True)
    require_utf8(opened.path.resolve(), "the package")
    plan = opened.manifest.plan
    order = Order(opened, asked, chosen or plan.target, target, runtime, limits, inputs, comparing)
    limit_bytes = order.target.limit_bytes if order.target else None
    _require_comparable(order, limit_bytes)
    require_measurable(limits, asked.steps(plan.context_tokens)[0], inputs)
    measurement = measure(opened, runtime, asked, limit_bytes, on_phase=tell)
    worth = Worth()
    if measurement.failure is None:  # what does not run has no quality
        worth = run_quality(
            opened.path, inputs, runtime=runtime, threads=asked.threads, timeout_s=timeout_s, on_phase=tell
        )
    report = _with_predictions(_report(order, measurement, worth, begin), order, measurement)
    return _compared(report, order, measurement)


def _require_comparable(order: Order, limit_bytes: int | None) -> None:
    """Refuse a baseline that was measured otherwise, before the minutes that measuring takes."""
    comparing, inputs = order.comparing, order.inputs
    if comparing.before is None or comparing.file is None or comparing.forced:
        return
    with about("baseline"):
        subject = subject_of(order.package)
        facts = baselines.facts_expected(describe_machine({}), subject, order.runtime, order.measuring, limit_bytes)
        facts |= baselines.inputs_expected(comparing.before, inputs)
        baselines.require_comparable(comparing.before, facts, Path(comparing.file))


def _compared(report: Report, order: Order, measurement: Measurement) -> Report:
    """`report` with what its baseline says, or why there is nothing to say."""
    comparing = order.comparing
    if comparing.first_run is not None:
        text = f"first run: {comparing.first_run}, so nothing was compared; keep this report.json as the baseline"
        return baselines.without_comparison(report, text, passed=None)
    if comparing.before is None or comparing.file is None:
        return report
    if measurement.failure is not None:
        text = f"not compared with {comparing.file}: {unended(measurement.failure[0])}"
        return baselines.without_comparison(report, text, passed=False)
    return baselines.with_baseline(
        report,
        comparing.before,
        file=comparing.file,
        max_regression_percent=comparing.allowed_percent,
        forced=comparing.forced,
        judged=[limit.metric for limit in order.limits],
        given=order.inputs,
    )


def _with_predictions(report: Report, order: Order, measurement: Measurement) -> Report:
    """What the figures of this machine say about the known devices, and about the user's own if that is the target."""
    if report.plan is None:
        return report
    devices = [device for name in device_names() if (device := load_device(name)).read_bandwidth_bytes_per_s]
    own = find_device(order.own_target) if isinstance(order.own_target, str) else None
    if own is not None and own.name not in device_names():
        devices.insert(0, own)
    facts = package_facts(plan_like(order.package.manifest.plan, report.plan.filled_tokens, order.runtime))
    basis = basis_of(facts, report.metrics, measurement.readings, measurement.load)
    found = predict_all(facts, report.metrics, basis, devices)
    notes = report.notes
    if basis.withheld is not None:
        notes = (*notes, f"no speed of other devices is predicted: {basis.withheld}")
    return report.model_copy(update={"prediction_basis": basis, "predictions": found, "notes": notes})


def _report(order: Order, measurement: Measurement, worth: Worth, begin: float) -> Report:
    subject, plan, target = subject_of(order.package), order.package.manifest.plan, order.target
    metrics = (*metrics_of(measurement, subject.disk_bytes), *_quality_metrics(worth))
    memory = [check for check in (check_run(measurement), check_target(measurement, target)) if check is not None]
    missing = missing_of(measurement, worth)
    judged = check_thresholds(order.limits, metrics, missing.why)
    verdict, checks, reasons = judge([*memory, *missing.checks(order.inputs), *worth.checks(order.limits), *judged])
    versions: dict[str, str] = next(
        (run.figures["load"]["versions"] for _, run in measurement.processes if "load" in run.figures), {}
    )
    return Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        subject=subject,
        runtime=order.runtime,
        target=target,
        limit=measurement.limit_facts,
        verdict=verdict,
        reasons=reasons,
        notes=tuple(notes_of(order.measuring, measurement, metrics, plan, target)),
        repetitions=len(measurement.of("run")),
        prompt_tokens=tuple(step.prompt_tokens for step in measurement.steps),
        new_tokens=measurement.new_tokens,
        threads=order.measuring.threads,
        metrics=metrics,
        checks=checks,
        processes=records_of(measurement),
        decode_steps_ms=decode_steps_of(measurement),
        memory_read_bytes_per_s=tuple(reading.median_bytes_per_s for reading in measurement.readings),
        load=measurement.load,
        advice=advise(plan, order.runtime, target, measurement, memory),
        plan=compare_plan(measurement, order.package, order.runtime),
        quality=worth.quality,
        golden=worth.golden,
        duration_s=round(monotonic() - begin, 1),
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
