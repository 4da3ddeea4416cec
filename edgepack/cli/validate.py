"""`edgepack validate`: run a package in a fresh process and say whether it fits."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from edgepack.api import validate
from edgepack.cli.console import ANSWER_NO, err, out
from edgepack.cli.options import JsonOption, PackageArgument, RuntimeOption, TargetOption, ThreadsOption
from edgepack.units import format_bytes
from edgepack.validation import Report


def command(
    package: PackageArgument,
    runtime: RuntimeOption = None,
    target: TargetOption = None,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1, metavar="N")] = 128,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1, metavar="N")] = 32,
    threads: ThreadsOption = None,
    json_output: JsonOption = False,
) -> None:
    """Measure load, speed and memory of a package. Exit code 1 if it misses the target or does not survive."""
    with err.status("starting", spinner="line") as status:
        report = validate(
            package,
            target=target,
            runtime=runtime,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            threads=threads,
            on_phase=lambda name: status.update(name),
        )
    if json_output:
        typer.echo(report.model_dump_json())
    else:
        print_report(report)
    if not report.verdict:
        raise typer.Exit(ANSWER_NO)


def print_report(report: Report) -> None:
    """The report as a table for people: verdict first."""
    for line in report.reasons:
        out.print(line, style="bold green" if report.verdict else "bold red", markup=False)
    table = Table(box=None, show_header=False)
    for name, value in _figures(report):
        table.add_row(f"[bold]{name}[/bold]", value)
    out.print(table)
    memory = Table(title="resident memory by phase")
    for heading in ("phase", "peak", "anonymous", "file-backed"):
        memory.add_column(heading, justify="left" if heading == "phase" else "right")
    for phase in report.phases:
        memory.add_row(phase.phase, *map(_size, (phase.rss_bytes, phase.anonymous_bytes, phase.file_bytes)))
    out.print(memory)
    for note in report.notes:
        out.print(f"note: {note}", markup=False)


def _figures(report: Report) -> list[tuple[str, str]]:
    machine = report.machine
    figures = [
        ("load", f"{_number(report.load_ms, 'ms')} (first load {_number(report.first_load_ms, 'ms')})"),
        ("first token", f"{_number(report.ttft_ms, 'ms')} after {report.prompt_tokens} prompt tokens"),
        ("prefill", _number(report.prefill_tokens_per_s, "tok/s")),
        ("decode", f"{_number(report.decode_tokens_per_s, 'tok/s')} (median of {report.new_tokens})"),
        ("peak RSS", _size(report.peak_rss_bytes)),
    ]
    if report.plan:
        total = report.plan.total
        difference = f"{total.difference_percent:+.1f} %"
        figures.append(("planned", f"{format_bytes(total.planned_bytes)} for this run, measured {difference}"))
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    figures.append(("machine", f"{machine.cpu}, {machine.cores} cores, {report.threads} threads; {versions}"))
    return figures


def _size(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else format_bytes(size_bytes)


def _number(value: float | None, unit: str) -> str:
    return "not reached" if value is None else f"{value:,.1f} {unit}" if value < 100 else f"{value:,.0f} {unit}"
