"""The tables of a report, made once and shown by Markdown and HTML alike. Cells are plain text, not yet escaped."""

from __future__ import annotations

from dataclasses import dataclass

from edgepack.report.words import (
    STATES,
    calibration_words,
    counts,
    figure,
    judgement,
    limit_words,
    metric_title,
    shift_words,
    signed_percent,
    size,
    spread,
)
from edgepack.units import format_bytes, format_number, format_percent
from edgepack.validation.figures.collect import largest
from edgepack.validation.metrics import Category, kind_of
from edgepack.validation.records import ProcessRecord
from edgepack.validation.result import BaselineComparison, PlanComparison, Prediction, QualityReport, Report

CATEGORY_TITLES: dict[Category, str] = {"ram": "Memory", "latency": "Latency", "quality": "Quality"}


@dataclass(frozen=True, slots=True)
class Table:
    """A table with headings.

    Attributes:
        align: one letter a column, ``l`` or ``r``.
    """

    title: str
    align: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def checks_table(report: Report) -> Table:
    """Every check with its answer."""
    rows = tuple((STATES[check.passed], check.kind, check.name, check.text) for check in report.checks)
    return Table("Checks", "llll", ("result", "kind", "check", "answer"), rows)


def metric_table(report: Report, category: Category) -> Table:
    """The figures of one category with their spread: the largest of a peak, the median of anything else."""
    rows = tuple(
        (
            metric_title(metric),
            figure(metric.figure, metric.unit),
            spread(metric),
            str(len(metric.values)),
            metric.better,
        )
        for metric in report.metrics
        if metric.kind.category == category
    )
    return Table(CATEGORY_TITLES[category], "lrrrl", ("figure", "value", "range", "runs", "better"), rows)


def phase_table(process: ProcessRecord) -> Table:
    """Memory of one process by phase."""
    rows = tuple(
        (
            phase.phase,
            f"{format_number((phase.end_ms - phase.start_ms) / 1000)} s",
            size(phase.peak_rss_bytes),
            size(phase.anonymous_bytes),
            size(phase.file_bytes),
            size(phase.most_anonymous_bytes),
            size(phase.pss_bytes),
            size(phase.charged_bytes),
            figure(phase.major_faults, "count"),
        )
        for phase in process.phases
    )
    headings = (
        "phase",
        "took",
        "peak RSS",
        "anonymous",
        "file",
        "anon. at most",
        "PSS, end",
        "charged",
        "faults",
    )
    return Table(f"Memory by phase: {process.purpose}", "lrrrrrrrr", headings, rows)


def process_table(report: Report) -> Table:
    """Every worker with its peak and its end."""
    most = largest(report.processes)
    rows = tuple(
        (
            f"{process.purpose} (largest peak)" if process is most else process.purpose,
            size(process.peak_rss_bytes),
            f"{format_number(process.phases[-1].end_ms / 1000)} s" if process.phases else "-",
            process.failure or "came to its end",
        )
        for process in report.processes
    )
    return Table("Processes", "lrrl", ("process", "peak RSS", "took", "outcome"), rows)


def plan_table(plan: PlanComparison) -> Table:
    """Planned and measured by component, the total last."""
    rows: list[tuple[str, ...]] = [
        (
            part.name,
            part.kind,
            size(part.planned_bytes),
            size(part.measured_bytes),
            signed_percent(part.difference_percent),
            ", ".join(part.rows),
        )
        for part in plan.components
    ]
    total = plan.total
    difference = signed_percent(total.difference_percent)
    rows.append(("total", "", size(total.planned_bytes), size(total.measured_bytes), difference, "all rows"))
    headings = ("component", "kind", "planned", "measured", "difference", "rows of the plan")
    return Table("Plan against measurement", "llrrrl", headings, tuple(rows))


def quality_facts(quality: QualityReport) -> Table:
    """The quality figures of the whole text set."""
    rows = (
        ("reference", f"{quality.reference} ({quality.reference_kind})"),
        ("texts", f"{quality.text_set}, {quality.tokens:,} tokens"),
        ("mean KL divergence", figure(quality.kl_mean, "nats")),
        ("KL divergence, 99th percentile", figure(quality.kl_p99, "nats")),
        ("same most likely token", f"{format_percent(100 * quality.top1_agreement)} (near ties aside)"),
        ("the same, strictly", format_percent(100 * quality.strict_agreement)),
        ("near ties", f"{quality.near_ties:,} positions within {format_number(quality.near_tie_nats)} nats"),
        ("perplexity", f"{format_number(quality.perplexity)}, reference {format_number(quality.reference_perplexity)}"),
        ("perplexity ratio", figure(quality.perplexity_ratio, "ratio")),
    )
    return Table("Quality against the reference", "ll", ("figure", "value"), rows)


def text_table(quality: QualityReport) -> Table:
    """Quality text by text."""
    rows = tuple(
        (
            text.name,
            f"{text.tokens:,}",
            format_number(text.kl_mean),
            format_number(text.kl_p99),
            format_percent(100 * text.top1_agreement),
            format_number(text.perplexity),
            format_number(text.reference_perplexity),
        )
        for text in quality.texts
    )
    headings = ("text", "tokens", "mean KL (nats)", "KL p99 (nats)", "agreement", "perplexity", "reference")
    return Table("Text by text", "lrrrrrr", headings, rows)


def prediction_table(report: Report) -> Table:
    """What arithmetic says about devices that were not measured."""
    doubted = report.prediction_basis is not None and report.prediction_basis.doubt is not None
    rows = tuple(
        (
            prediction.title,
            size(prediction.limit_bytes),
            {True: "should fit", False: "should not fit", None: "unknown"}[prediction.fits],
            _rate(prediction.read_bandwidth_bytes_per_s),
            _predicted(prediction, doubted),
            prediction.basis,
        )
        for prediction in report.predictions
    )
    headings = ("device", "memory for an app", "predicted fit", "reads memory at", "predicted decode", "remarks")
    return Table("Predictions, not measurements", "lrlrrl", headings, rows)


def _rate(bytes_per_s: float | None) -> str:
    return "-" if bytes_per_s is None else f"{format_bytes(bytes_per_s)}/s"


def _predicted(prediction: Prediction, doubted: bool) -> str:
    speed = figure(prediction.decode_tokens_per_s, "tokens_per_s")
    return f"{speed}, doubtful" if doubted and prediction.decode_tokens_per_s is not None else speed


def baseline_table(baseline: BaselineComparison) -> Table:
    """Every metric then and now."""
    rows = []
    for change in baseline.changes:
        unit = kind_of(change.name).unit
        rows.append(
            (
                change.name,
                figure(change.before, unit),
                figure(change.after, unit),
                shift_words(change),
                "-" if change.noise_percent is None else f"{change.noise_percent:.1f} %",
                judgement(change),
            )
        )
    headings = ("metric", "before", "now", "change", "noise", "judgement")
    return Table("Against the baseline", "lrrrrl", headings, tuple(rows))


def fact_table(report: Report) -> Table:
    """What ran where: without it no figure means anything."""
    subject, machine = report.subject, report.machine
    prompts = ", ".join(map(str, report.prompt_tokens)) or "none"
    target = f"{report.target.name} ({size(report.target.limit_bytes)})" if report.target else "none"
    rows = (
        ("package", subject.path),
        ("model", subject.model),
        ("stored as", f"{subject.backend}, recipe {subject.recipe}, context of {subject.context_tokens:,} tokens"),
        *(() if subject.calibration is None else (("calibration", calibration_words(subject.calibration)),)),
        ("on disk", size(subject.disk_bytes)),
        ("fingerprint", subject.fingerprint),
        ("runtime", f"{report.runtime}, {report.threads} threads"),
        ("target", target),
        ("memory limit", limit_words(report.limit)),
        ("work", f"prompts of {prompts} tokens, then {report.new_tokens} decode steps; {report.repetitions} runs"),
        ("checks", counts(report.checks)),
        ("machine", f"{machine.cpu}, {machine.cores} cores, {size(machine.ram_bytes)} RAM, {machine.architecture}"),
        ("system", machine.system),
        ("versions", ", ".join(f"{name} {version}" for name, version in machine.versions.items())),
        ("made", f"{report.created}, in {format_number(report.duration_s)} s"),
    )
    return Table("What ran where", "ll", ("fact", "value"), rows)
