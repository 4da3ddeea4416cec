"""Conduct a validation: check the files, measure in fresh processes, compare, judge."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from edgepack.errors import about
from edgepack.package.folder import MANIFEST, Package, check_hashes, open_package
from edgepack.planning.plan import Target
from edgepack.planning.targets import as_target, device_names, find_device, load_device
from edgepack.user_folders import require_utf8
from edgepack.validation.answers import QualityResult, run_quality
from edgepack.validation.figures.collect import compare_plan, decode_steps_of, metrics_of, plan_like, records_of
from edgepack.validation.figures.predict import basis_of, package_facts, predict_all
from edgepack.validation.figures.schedule import Measurement, measure
from edgepack.validation.machine import describe_machine
from edgepack.validation.metrics import GOLDEN_RATE, Metric, measured
from edgepack.validation.progress import VERIFY, OnProgress, Tracker, stages_of
from edgepack.validation.quality.metrics import quality_metrics, text_metrics
from edgepack.validation.request import Comparing, comparing_of, require_inputs, require_measurable, require_runtime
from edgepack.validation.result import Report, Subject
from edgepack.validation.settings import ValidationSettings
from edgepack.validation.verdict import baseline as baselines
from edgepack.validation.verdict.advice import advise
from edgepack.validation.verdict.judge import check_run, check_target, check_thresholds, judge
from edgepack.validation.verdict.missing import missing_of, unended
from edgepack.validation.verdict.notes import notes_of
from edgepack.validation.verdict.quality import quality_checks


@dataclass(frozen=True, slots=True)
class Order:
    """A validation that can begin.

    Attributes:
        target: the memory limit; `settings` has what the user gave for it.
    """

    package: Package
    settings: ValidationSettings
    target: Target | None
    comparing: Comparing

    @property
    def limit_bytes(self) -> int | None:
        """The memory limit; None where there is none."""
        return self.target.limit_bytes if self.target else None

    @property
    def used_runtime(self) -> str:
        """The runtime that loads the package."""
        return self.package.runtime(self.settings.runtime)


def validate(
    package: str | Path, settings: ValidationSettings, *, on_phase: OnProgress = lambda progress: None
) -> Report:
    """Run `package` in fresh processes and report memory, times, quality and a verdict.

    A run that dies, hangs or fails is a result: its report says no and why.

    Args:
        package: the package folder; every file is checked against its sha256.
        on_phase: called as each phase begins, with its name and how far that is.

    Raises:
        SettingError: a setting is not usable, or the baseline cannot be compared with.
        EdgepackError: the runtime does not take the package or is not installed, or the reference does not run.
        PackageError: no package, or a file is missing or changed.
    """
    begin = monotonic()
    require_runtime(settings.runtime)
    comparing = comparing_of(settings)
    require_inputs(settings)
    with about("target"):
        target = as_target(settings.target)
    opened = open_package(package)
    settings = settings.model_copy(update={"runtime": opened.runtime(settings.runtime)})
    tell = Tracker(stages_of(settings), on_phase, time_budget_s=settings.time_budget_s)
    tell(VERIFY)
    check_hashes(opened.path.resolve(), opened.manifest.files)
    require_utf8(opened.path.resolve(), "the package")
    plan = opened.manifest.plan
    order = Order(opened, settings, target or plan.target, comparing)
    _require_comparable(order)
    require_measurable(settings, settings.steps(plan.context_tokens)[0])
    measurement = measure(opened, settings, order.limit_bytes, on_phase=tell)
    quality = QualityResult()
    if measurement.failure is None:  # what does not run has no quality
        quality = run_quality(opened, settings, on_phase=tell)
    report = _with_predictions(_report(order, measurement, quality, begin), order, measurement)
    return _compared(report, order, measurement)


def _require_comparable(order: Order) -> None:
    """Refuse a baseline that was measured otherwise, before the minutes that measuring takes."""
    baseline, settings = order.comparing.baseline, order.settings
    if baseline is None or baseline.forced:
        return
    with about("baseline"):
        machine, subject = describe_machine({}), subject_of(order.package)
        facts = baselines.facts_expected(machine, subject, order.used_runtime, settings, order.limit_bytes)
        facts |= baselines.inputs_expected(baseline.report, settings)
        baselines.require_comparable(baseline, facts)


def _compared(report: Report, order: Order, measurement: Measurement) -> Report:
    """`report` with what its baseline says, or why there is nothing to say."""
    baseline, first_run = order.comparing.baseline, order.comparing.first_run
    if first_run is not None:
        text = f"first run: {first_run}, so nothing was compared; keep this report.json as the baseline"
        return baselines.without_comparison(report, text, passed=None)
    if baseline is None:
        return report
    if measurement.failure is not None:
        text = f"not compared with {baseline.file}: {unended(measurement.failure[0])}"
        return baselines.without_comparison(report, text, passed=False)
    judged = [limit.metric for limit in order.settings.thresholds]
    return baselines.with_baseline(report, baseline, judged=judged, given=order.settings)


def _with_predictions(report: Report, order: Order, measurement: Measurement) -> Report:
    """What the figures of this machine say about the known devices, and about the user's own if that is the target."""
    if report.plan is None:
        return report
    devices = [device for name in device_names() if (device := load_device(name)).read_bandwidth_bytes_per_s]
    given = order.settings.target
    own = find_device(given) if isinstance(given, str) else None
    if own is not None and own.name not in device_names():
        devices.insert(0, own)
    facts = package_facts(plan_like(order.package.manifest.plan, report.plan.filled_tokens, order.used_runtime))
    basis = basis_of(facts, report.metrics, measurement.readings, measurement.load)
    found = predict_all(facts, report.metrics, basis, devices)
    notes = report.notes
    if basis.withheld is not None:
        notes = (*notes, f"no speed of other devices is predicted: {basis.withheld}")
    return report.model_copy(update={"prediction_basis": basis, "predictions": found, "notes": notes})


def _report(order: Order, measurement: Measurement, quality: QualityResult, begin: float) -> Report:
    subject, plan, target = subject_of(order.package), order.package.manifest.plan, order.target
    settings = order.settings
    metrics = (*metrics_of(measurement, subject.disk_bytes), *_quality_metrics(quality))
    memory = [check for check in (check_run(measurement), check_target(measurement, target)) if check is not None]
    missing = missing_of(measurement, quality)
    answers = [*missing.checks(settings), *quality_checks(quality, settings.thresholds)]
    of_texts = text_metrics(quality.quality) if quality.quality is not None else []
    limits = check_thresholds(settings.thresholds, [*metrics, *of_texts], missing.why)
    verdict, checks, reasons = judge([*memory, *answers, *limits])
    versions: dict[str, str] = next(
        (run.figures["load"]["versions"] for _, run in measurement.processes if "load" in run.figures), {}
    )
    return Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        subject=subject,
        runtime=order.used_runtime,
        target=target,
        limit=measurement.limit_facts,
        verdict=verdict,
        reasons=reasons,
        notes=tuple(notes_of(settings, measurement, metrics, plan, target)),
        repetitions=len(measurement.of("run")),
        prompt_tokens=tuple(step.prompt_tokens for step in measurement.steps),
        new_tokens=measurement.new_tokens,
        threads=settings.used_threads,
        metrics=metrics,
        checks=checks,
        processes=records_of(measurement),
        decode_steps_ms=decode_steps_of(measurement),
        memory_read_bytes_per_s=tuple(reading.median_bytes_per_s for reading in measurement.readings),
        load=measurement.load,
        advice=advise(plan, order.used_runtime, target, measurement, memory),
        plan=compare_plan(measurement, order.package, order.used_runtime),
        quality=quality.quality,
        golden=quality.golden,
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
        calibration=package.manifest.calibration,
    )


def _quality_metrics(result: QualityResult) -> list[Metric]:
    found = [] if result.quality is None else quality_metrics(result.quality)
    if result.golden is not None:
        found.append(measured(GOLDEN_RATE, [result.golden.pass_rate]))
    return found
