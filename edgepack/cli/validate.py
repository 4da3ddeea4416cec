"""`edgepack validate`: run a package in fresh processes and say whether it fits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from edgepack.api import validate
from edgepack.cli.console import ANSWER_NO, err, out, told_of_interruption
from edgepack.cli.options import (
    ConfigOption,
    JsonOption,
    RuntimeOption,
    TargetOption,
    ThreadsOption,
    not_empty,
    parse_lengths,
)
from edgepack.config import MOST_REPETITIONS, Config, first_set, read_config
from edgepack.errors import EdgepackError
from edgepack.units import format_bytes
from edgepack.validation import Report
from edgepack.validation.baseline import append_history
from edgepack.validation.measure import (
    DEFAULT_NEW_TOKENS,
    DEFAULT_REPETITIONS,
    DEFAULT_TIME_BUDGET_S,
    DEFAULT_TIMEOUT_S,
)
from edgepack.validation.metrics import Metric, format_figure
from edgepack.validation.quality_process import check_timeout
from edgepack.validation.run import DEFAULT_MAX_REGRESSION
from edgepack.validation.thresholds import parse_threshold

# More than any settings are long, and little enough for a report.
LONGEST_CONFIG = 64_000
_HELP = {
    "prompt": "Lengths of the prompts; default: 128, 1024 and the context less 256.",
    "new": f"Decode steps behind the shortest and the longest prompt; default: {DEFAULT_NEW_TOKENS}.",
    "repeat": f"Measured processes; default: {DEFAULT_REPETITIONS}.",
    "threshold": "Limit on a metric, such as 'decode_tokens_per_s >= 10'; may be given again.",
    "reference": "Checkpoint or package to compare the quality with.",
    "text": "Text file for that, in place of the built-in texts.",
    "golden": "Prompts (JSON lines) with properties that the answers must have.",
    "baseline": "report.json of an earlier validation to compare with.",
    "regression": f"How much worse than the baseline a metric may be; default: {DEFAULT_MAX_REGRESSION}.",
    "history": "File to which one line of JSON is added.",
    "force": "Compare with a baseline of another machine or model.",
    "report": "Folder for report.json, report.md, report.junit.xml and report.html.",
    "no-limit": "Only watch the memory, even where a hard limit can be set.",
    "timeout": "Seconds after which a process is stopped and has failed.",
    "budget": "Bounds how often long prompts are repeated, not the whole validation.",
}


def command(
    package: Annotated[
        Path | None,
        typer.Argument(
            metavar="PACKAGE",
            parser=not_empty("PACKAGE"),
            help="Package folder; default: the one of edgepack.toml.",
        ),
    ] = None,
    config: ConfigOption = None,
    runtime: RuntimeOption = None,
    target: TargetOption = None,
    prompt_tokens: Annotated[str | None, typer.Option("--prompt-tokens", metavar="N,N", help=_HELP["prompt"])] = None,
    new_tokens: Annotated[int | None, typer.Option("--new-tokens", min=1, metavar="N", help=_HELP["new"])] = None,
    repeat: Annotated[
        int | None, typer.Option("--repeat", min=1, max=MOST_REPETITIONS, metavar="N", help=_HELP["repeat"])
    ] = None,
    threshold: Annotated[
        list[str] | None, typer.Option("--threshold", metavar="LIMIT", help=_HELP["threshold"])
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="CHECKPOINT|PACKAGE",
            parser=not_empty("--reference", str),
            help=_HELP["reference"],
        ),
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", parser=not_empty("--text"), help=_HELP["text"])
    ] = None,
    golden: Annotated[
        Path | None, typer.Option("--golden", metavar="FILE", parser=not_empty("--golden"), help=_HELP["golden"])
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", metavar="FILE", parser=not_empty("--baseline"), help=_HELP["baseline"])
    ] = None,
    max_regression: Annotated[
        str | None, typer.Option("--max-regression", metavar="SHARE", help=_HELP["regression"])
    ] = None,
    force: Annotated[bool, typer.Option("--force", help=_HELP["force"])] = False,
    history: Annotated[
        Path | None, typer.Option("--history", metavar="FILE", parser=not_empty("--history"), help=_HELP["history"])
    ] = None,
    report_folder: Annotated[
        Path | None, typer.Option("--report", metavar="DIR", parser=not_empty("--report"), help=_HELP["report"])
    ] = None,
    no_limit: Annotated[bool, typer.Option("--no-limit", help=_HELP["no-limit"])] = False,
    timeout: Annotated[float, typer.Option("--timeout", metavar="S", help=_HELP["timeout"])] = DEFAULT_TIMEOUT_S,
    time_budget: Annotated[
        float, typer.Option("--time-budget", metavar="S", help=_HELP["budget"])
    ] = DEFAULT_TIME_BUDGET_S,
    threads: ThreadsOption = None,
    json_output: JsonOption = False,
) -> None:
    """Measure load, speed, memory and quality of a package. Exit code 1 if it misses what is asked of it."""
    settings = read_config(config)
    table = settings.validate_
    folder = _package(package, settings)
    given = [parse_threshold(limit) for limit in threshold or ()]
    named = {limit.metric for limit in given}
    kept = [limit for limit in settings.threshold_list() if limit.metric not in named]
    lengths = parse_lengths(prompt_tokens, "--prompt-tokens")
    config_text = _text_of(settings)
    reports, lines = first_set(report_folder, table.report), first_set(history, table.history)
    check_timeout("--timeout", timeout)
    _require_file("golden", golden, settings, "golden prompts, one JSON object a line")
    _require_file("text", text, settings, "a text file")
    earlier = first_set(baseline, table.baseline)
    if earlier is None:
        _refuse_comparison(max_regression, force, settings)
    _require_writable(reports, lines)
    unfinished = told_of_interruption(lambda: "nothing was judged and no report was written")
    with unfinished, err.status("starting", spinner="line") as status:
        report = validate(
            folder,
            target=first_set(target, settings.target),
            runtime=first_set(runtime, table.runtime),
            threads=first_set(threads, table.threads),
            prompt_tokens=first_set(lengths, table.prompt_tokens),
            new_tokens=first_set(new_tokens, table.new_tokens, default=DEFAULT_NEW_TOKENS),
            repeat=first_set(repeat, table.repeat, default=DEFAULT_REPETITIONS),
            thresholds=[*given, *kept],
            reference=first_set(reference, table.reference),
            text=first_set(text, table.text),
            golden=first_set(golden, table.golden),
            baseline=earlier,
            max_regression=first_set(max_regression, table.max_regression, default=DEFAULT_MAX_REGRESSION),
            force=force,
            enforce_limit=not no_limit,
            timeout_s=timeout,
            time_budget_s=time_budget,
            on_phase=lambda name: status.update(Text(name)),
        )
    config_file = str(settings.file) if settings.file else None
    report = report.model_copy(update={"config": config_file, "config_text": config_text})
    try:  # whatever cannot be written, everything else still is, the verdict first
        if json_output:
            typer.echo(report.model_dump_json())
        else:
            print_report(report)
    finally:
        with told_of_interruption(lambda: f"reports in {reports} and the history may be of an earlier validation"):
            _keep(report, reports, lines)
    if not report.verdict:
        raise typer.Exit(ANSWER_NO)


def _package(package: Path | None, settings: Config) -> Path:
    folder: Path | None = first_set(package, settings.validate_.package, settings.export.out)
    if folder is None:
        raise EdgepackError(
            "no package was given: name its folder, or set package in the table [validate] of edgepack.toml"
        )
    return folder


def _require_file(key: str, given: Path | None, settings: Config, expected: str) -> None:
    file: Path | None = first_set(given, getattr(settings.validate_, key))
    if file is not None and not os.path.isfile(file):
        raise EdgepackError(f"{_named(key, given, settings)} {file} is no file: expected {expected}")


def _refuse_comparison(max_regression: str | None, force: bool, settings: Config) -> None:
    """What is said of a comparison that does not take place would pass for one that did."""
    name = "--force" if force else None
    if first_set(max_regression, settings.validate_.max_regression) is not None:
        name = _named("max_regression", max_regression, settings)
    if name is not None:
        raise EdgepackError(
            f"{name} is for the comparison with a baseline, and none was given: "
            "add --baseline FILE or baseline in [validate]"
        )


def _named(key: str, given: object, settings: Config) -> str:
    """A setting as the user wrote it: an option, or a key of the file."""
    return f"--{key.replace('_', '-')}" if given is not None else f"{settings.file}: validate.{key}"


def _text_of(settings: Config) -> str | None:
    """What stands in the settings file now; a report that is written later must not show what it was changed to."""
    if settings.file is None:
        return None
    try:
        return settings.file.read_text(encoding="utf-8")[:LONGEST_CONFIG]
    except OSError as error:
        raise EdgepackError(f"config {settings.file} cannot be read: {error.strerror}") from error


def _require_writable(folder: Path | None, history: Path | None) -> None:
    """Refuse places that cannot be written: a verdict of many minutes is not to be lost over a path."""
    from edgepack.report import require_writable  # templates and charts, which no other verb needs

    if folder is not None:
        require_writable("reports", folder)
    if history is None:
        return
    try:
        there = history.exists()
        if there:
            history.open("a", encoding="utf-8").close()
    except OSError as error:
        raise EdgepackError(f"history {history} cannot be written: {error.strerror}; choose another file") from error
    if not there:
        require_writable("the history", history.parent)


def _keep(report: Report, folder: Path | None, history: Path | None) -> None:
    try:
        if folder is not None:
            from edgepack.report import write_reports  # as above

            write_reports(report, folder)
            err.print(f"reports written to {folder}")
    finally:
        if history is not None:
            append_history(report, history)


def print_report(report: Report) -> None:
    """The report as tables for people: verdict first."""
    for line in report.reasons:
        out.print(line, style="bold green" if report.verdict else "bold red")
    for check in report.checks:
        if check.passed is None:
            out.print(f"not judged: {check.text}", style="yellow")
    figures = Table("", "median", "range", "runs", title="figures")
    for metric in report.metrics:
        figures.add_row(*_figure(metric))
    out.print(figures)
    memory = Table("phase", "peak RSS", "anonymous", "file-backed", title="memory by phase")
    for process in report.processes:
        if process.purpose in ("first load", "run 1"):
            for phase in process.phases:
                sizes = (phase.rss_bytes, phase.anonymous_bytes, phase.file_bytes)
                memory.add_row(f"{process.purpose}: {phase.phase}", *map(_size, sizes))
    out.print(memory)
    _print_plan(report)
    _print_predictions(report)
    for line in _facts(report):
        out.print(line)


def _figure(metric: Metric) -> tuple[str, str, str, str]:
    unit, spread = metric.unit, len(set(metric.values)) > 1
    ends = f"{format_figure(metric.lowest, unit)} - {format_figure(metric.highest, unit)}" if spread else ""
    return metric.name, format_figure(metric.median, unit), ends, str(len(metric.values))


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
    if not report.predictions:
        return
    table = Table("device", "memory for an app", "fits", "decode", title="predictions: nothing of this was measured")
    for found in report.predictions:
        rate = found.decode_tokens_per_s
        fits = "unknown" if found.fits is None else "yes" if found.fits else "no"
        speed = "none" if rate is None else f"about {rate:.1f} tok/s"
        table.add_row(found.title, format_bytes(found.limit_bytes), fits, speed)
    out.print(table)
    out.print(f"how, for {report.predictions[0].title}: {report.predictions[0].basis}")


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
