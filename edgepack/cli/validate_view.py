"""A validation on a terminal: how far it is while it runs, and its report as tables for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic

from rich.progress import Progress as Display
from rich.progress import ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from edgepack.cli.console import err, out
from edgepack.units import format_bytes
from edgepack.validation.figures.collect import representative
from edgepack.validation.figures.schedule import FIRST_LOAD
from edgepack.validation.metrics import Metric, format_figure
from edgepack.validation.progress import OnProgress, Progress
from edgepack.validation.result import Report

# Once a second: what is drawn takes CPU time of the machine that is being measured.
REFRESHES_PER_S = 1


class LeftColumn(ProgressColumn):
    """What is left, counted down from what the last phase told; nothing as long as that is not known."""

    def render(self, task: Task) -> Text:
        """``about 0:00:40 left``, or ``at least`` so much where some stages cannot be told yet."""
        left_s = task.fields["left_s"]
        if left_s is None:
            return Text("")
        rest = timedelta(seconds=round(max(0.0, left_s - (monotonic() - task.fields["told_at"]))))
        if not rest and not task.fields["whole"]:
            return Text("")
        return Text(f"{'about' if task.fields['whole'] else 'at least'} {rest} left")


@contextmanager
def shown_progress() -> Iterator[OnProgress]:
    """A line on stderr if that is a terminal; the body gets what takes each `Progress`."""
    columns = (SpinnerColumn("line"), TextColumn("{task.description}", markup=False), TimeElapsedColumn(), LeftColumn())
    with Display(
        *columns, console=err, transient=True, disable=not err.is_terminal, refresh_per_second=REFRESHES_PER_S
    ) as display:
        task = display.add_task("starting", total=None, left_s=None, whole=False, told_at=0.0)

        def tell(progress: Progress) -> None:
            display.update(
                task,
                description=f"{progress.stage} of {progress.stages}: {progress.phase}",
                left_s=progress.left_s,
                whole=progress.whole,
                told_at=monotonic(),
                refresh=True,
            )

        yield tell


def print_report(report: Report) -> None:
    """The report as tables for people: verdict first, then what to try next."""
    for line in report.reasons:
        out.print(line, style="bold green" if report.verdict else "bold red")
    if report.advice is not None:
        out.print(f"try next: {report.advice.text}", style="bold")
    for check in report.checks:
        if check.passed is None:
            out.print(f"not judged: {check.text}", style="yellow")
    figures = Table("", "value", "range", "runs", title="figures")
    for metric in report.metrics:
        figures.add_row(*_figure(metric))
    out.print(figures)
    memory = Table("phase", "peak RSS", "anonymous", "file-backed", title="memory by phase")
    most = representative(report.processes)
    for process in report.processes:
        if process is most or process.purpose == FIRST_LOAD:
            for phase in process.phases:
                sizes = (phase.peak_rss_bytes, phase.anonymous_bytes, phase.file_bytes)
                memory.add_row(f"{process.purpose}: {phase.phase}", *map(_size, sizes))
    out.print(memory)
    _print_plan(report)
    _print_predictions(report)
    for line in _facts(report):
        out.print(line)


def _figure(metric: Metric) -> tuple[str, str, str, str]:
    unit, spread = metric.unit, len(set(metric.values)) > 1
    ends = f"{format_figure(metric.lowest, unit)} - {format_figure(metric.highest, unit)}" if spread else ""
    return metric.name, format_figure(metric.figure, unit), ends, str(len(metric.values))


def _print_plan(report: Report) -> None:
    if report.plan is None:
        return
    total = report.plan.total
    title = f"plan for the {report.plan.filled_tokens} tokens of a run"
    table = Table("component", "planned", "measured", "difference", title=title)
    for part in report.plan.components:
        difference = "" if part.difference_percent is None else f"{part.difference_percent:+.1f} %"
        table.add_row(part.name, format_bytes(part.planned_bytes), _size(part.measured_bytes), difference)
    sizes = (format_bytes(total.planned_bytes), format_bytes(total.measured_bytes))
    table.add_row("total", *sizes, f"{total.difference_percent:+.1f} %", style="bold")
    out.print(table)


def _print_predictions(report: Report) -> None:
    from edgepack.report.words import prediction_words  # its package imports templates and charts

    if not report.predictions:
        return
    table = Table("device", "memory for an app", "fits", "decode", title="predictions: nothing of this was measured")
    doubted = report.prediction_basis is not None and report.prediction_basis.doubt is not None
    for found in report.predictions:
        rate = found.decode_tokens_per_s
        fits = "unknown" if found.fits is None else "yes" if found.fits else "no"
        speed = "none" if rate is None else f"about {rate:.1f} tok/s{' (doubtful)' if doubted else ''}"
        table.add_row(found.title, format_bytes(found.limit_bytes), fits, speed)
    out.print(table)
    for line in prediction_words(report.prediction_basis):
        out.print(line)
    for found in report.predictions:
        if found.basis:
            out.print(f"{found.title}: {found.basis}")


def _facts(report: Report) -> list[str]:
    from edgepack.report.words import limit_words  # its package imports templates and charts

    machine, limit = report.machine, report.limit
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    lines = []
    if limit.limit_bytes is not None:
        lines.append(f"limit: {limit_words(limit)}")
    if report.config is not None:
        lines.append(f"config: {report.config}")
    lines.append(f"machine: {machine.cpu}, {machine.cores} cores, {report.threads} threads; {versions}")
    lines.append(f"took {report.duration_s:.0f} s")
    notes = [*report.notes, *(report.quality.notes if report.quality else ())]
    return [*lines, *(f"note: {note}" for note in notes)]


def _size(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else format_bytes(size_bytes)
