"""A report on a terminal: lines and tables that rich draws, in whatever width there is."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from edgepack.report.words import calibration_words, limit_words, prediction_words
from edgepack.units import format_bytes
from edgepack.validation.figures.collect import representative
from edgepack.validation.figures.schedule import FIRST_LOAD
from edgepack.validation.metrics import Metric, format_figure
from edgepack.validation.result import PlanComparison, Report


def render_terminal(report: Report) -> Iterator[Text | Table]:
    """The report as lines and tables for people: verdict first, then what to try next."""
    for line in report.reasons:
        yield Text(line, style="bold green" if report.verdict else "bold red")
    if report.advice is not None:
        yield Text(f"try next: {report.advice.text}", style="bold")
    for check in report.checks:
        if check.passed is None:
            yield Text(f"not judged: {check.text}", style="yellow")
    yield _figures(report)
    yield _memory(report)
    if report.plan is not None:
        yield _plan(report.plan)
    if report.predictions:
        yield from _predictions(report)
    yield from map(Text, _facts(report))


def _figures(report: Report) -> Table:
    table = Table("", "value", "range", "runs", title="figures")
    for metric in report.metrics:
        table.add_row(*_figure(metric))
    return table


def _memory(report: Report) -> Table:
    table = Table("phase", "peak RSS", "anonymous", "file-backed", title="memory by phase")
    most = representative(report.processes)
    for process in report.processes:
        if process is most or process.purpose == FIRST_LOAD:
            for phase in process.phases:
                sizes = (phase.peak_rss_bytes, phase.anonymous_bytes, phase.file_bytes)
                table.add_row(f"{process.purpose}: {phase.phase}", *map(_size, sizes))
    return table


def _figure(metric: Metric) -> tuple[str, str, str, str]:
    unit, spread = metric.unit, len(set(metric.values)) > 1
    ends = f"{format_figure(metric.lowest, unit)} - {format_figure(metric.highest, unit)}" if spread else ""
    return metric.name, format_figure(metric.figure, unit), ends, str(len(metric.values))


def _plan(plan: PlanComparison) -> Table:
    total = plan.total
    title = f"plan for the {plan.filled_tokens} tokens of a run"
    table = Table("component", "planned", "measured", "difference", title=title)
    for part in plan.components:
        difference = "" if part.difference_percent is None else f"{part.difference_percent:+.1f} %"
        table.add_row(part.name, format_bytes(part.planned_bytes), _size(part.measured_bytes), difference)
    sizes = (format_bytes(total.planned_bytes), format_bytes(total.measured_bytes))
    table.add_row("total", *sizes, f"{total.difference_percent:+.1f} %", style="bold")
    return table


def _predictions(report: Report) -> Iterator[Text | Table]:
    table = Table("device", "memory for an app", "fits", "decode", title="predictions: nothing of this was measured")
    doubted = report.prediction_basis is not None and report.prediction_basis.doubt is not None
    for found in report.predictions:
        rate = found.decode_tokens_per_s
        fits = "unknown" if found.fits is None else "yes" if found.fits else "no"
        speed = "none" if rate is None else f"about {rate:.1f} tok/s{' (doubtful)' if doubted else ''}"
        table.add_row(found.title, format_bytes(found.limit_bytes), fits, speed)
    yield table
    yield from map(Text, prediction_words(report.prediction_basis))
    yield from (Text(f"{found.title}: {found.basis}") for found in report.predictions if found.basis)


def _facts(report: Report) -> list[str]:
    machine, limit = report.machine, report.limit
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    lines = []
    if limit.limit_bytes is not None:
        lines.append(f"limit: {limit_words(limit)}")
    if report.subject.calibration is not None:
        lines.append(f"calibration: {calibration_words(report.subject.calibration)}")
    if report.config is not None:
        lines.append(f"config: {report.config}")
    lines.append(f"machine: {machine.cpu}, {machine.cores} cores, {report.threads} threads; {versions}")
    lines.append(f"took {report.duration_s:.0f} s")
    notes = [*report.notes, *(report.quality.notes if report.quality else ())]
    return [*lines, *(f"note: {note}" for note in notes)]


def _size(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else format_bytes(size_bytes)
