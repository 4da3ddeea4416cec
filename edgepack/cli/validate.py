"""`edgepack validate`: run a package in fresh processes and say whether it fits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from edgepack.api import validate
from edgepack.cli.console import ANSWER_NO, err, told_of_interruption
from edgepack.cli.options import (
    ConfigOption,
    JsonOption,
    RuntimeOption,
    TargetOption,
    ThreadsOption,
    not_empty,
    parse_lengths,
)
from edgepack.cli.validate_view import print_report as print_report
from edgepack.cli.validate_view import shown_progress
from edgepack.config import MOST_REPETITIONS, Config, first_set, read_config
from edgepack.errors import EdgepackError, SettingError, about
from edgepack.loading import RUNTIMES
from edgepack.package.folder import open_package
from edgepack.shown import shown
from edgepack.validation.figures.schedule import (
    DEFAULT_NEW_TOKENS,
    DEFAULT_REPETITIONS,
    DEFAULT_TIME_BUDGET_S,
    DEFAULT_TIMEOUT_S,
)
from edgepack.validation.request import DEFAULT_MAX_REGRESSION
from edgepack.validation.result import Report
from edgepack.validation.thresholds import parse_threshold
from edgepack.validation.verdict.baseline import append_history

# More than any settings are long, and little enough for a report.
LONGEST_CONFIG = 64_000
# Parameters whose option has another name.
OPTIONS = {"timeout_s": "--timeout", "time_budget_s": "--time-budget"}
_HELP = {
    "prompt": "Lengths of the prompts; default: 128, 1024 and the context less 256.",
    "new": f"Decode steps behind the shortest and the longest prompt; default: {DEFAULT_NEW_TOKENS}.",
    "repeat": f"Measured processes; default: {DEFAULT_REPETITIONS}.",
    "threshold": "Limit on a metric, such as 'decode_tokens_per_s >= 10'; may be given again.",
    "reference": "Checkpoint or package to compare the quality with.",
    "text": "Text file for that, in place of the built-in texts.",
    "golden": "Prompts (JSON lines) with properties that the answers must have.",
    "baseline": "report.json of an earlier validation to compare with.",
    "baseline-missing": "ok: a first run, whose baseline is not there yet, is no error; default: error.",
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
    baseline_missing: Annotated[
        str | None, typer.Option("--baseline-missing", metavar="ok|error", help=_HELP["baseline-missing"])
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
    options = {
        "target": target,
        "runtime": runtime,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "repeat": repeat,
        "threads": threads,
        "reference": reference,
        "text": text,
        "golden": golden,
        "baseline": baseline,
        "baseline_missing": baseline_missing,
        "max_regression": max_regression,
        "report": report_folder,
        "history": history,
    }
    with about("--threshold"):
        given = [parse_threshold(limit) for limit in threshold or ()]
    metrics = frozenset(limit.metric for limit in given)
    kept = [limit for limit in settings.threshold_list() if limit.metric not in metrics]
    origins = Origins(settings, frozenset(name for name, value in options.items() if value is not None), metrics)
    config_text = _text_of(settings)
    reports, lines = first_set(report_folder, table.report), first_set(history, table.history)
    with origins.named():
        folder = _package(package, settings)
        used_runtime = first_set(runtime, table.runtime)
        _require_runtime(used_runtime)
        _require_writable(reports, lines)
        with told_of_interruption(lambda: "nothing was judged and no report was written"), shown_progress() as tell:
            report = validate(
                folder,
                target=first_set(target, settings.target),
                runtime=used_runtime,
                threads=first_set(threads, table.threads),
                prompt_tokens=first_set(parse_lengths(prompt_tokens, "--prompt-tokens"), table.prompt_tokens),
                new_tokens=first_set(new_tokens, table.new_tokens, default=DEFAULT_NEW_TOKENS),
                repeat=first_set(repeat, table.repeat, default=DEFAULT_REPETITIONS),
                thresholds=[*given, *kept],
                reference=first_set(reference, table.reference),
                text=first_set(text, table.text),
                golden=first_set(golden, table.golden),
                baseline=first_set(baseline, table.baseline),
                baseline_missing=first_set(baseline_missing, table.baseline_missing, default="error"),
                max_regression=first_set(max_regression, table.max_regression),
                force=force,
                enforce_limit=not no_limit,
                timeout_s=timeout,
                time_budget_s=time_budget,
                on_phase=tell,
            )
    config_file = str(settings.file) if settings.file else None
    report = report.model_copy(update={"config": config_file, "config_text": config_text})
    try:  # whatever cannot be written, everything else still is, the verdict first
        if json_output:
            typer.echo(report.model_dump_json())
        else:
            print_report(report)
    finally:
        with told_of_interruption(lambda: _perhaps_old(reports, lines)):
            _keep(report, reports, lines)
    if not report.verdict:
        raise typer.Exit(ANSWER_NO)


def _package(package: Path | None, settings: Config) -> Path:
    """The package: that of the command line, else that of the settings, which is looked at here to name the key."""
    if package is not None:
        return package
    folder: Path | None = first_set(settings.validate_.package, settings.export.out)
    if folder is None:
        raise EdgepackError(
            "no package was given: name its folder, or set package in the table [validate] of edgepack.toml"
        )
    with about("package" if settings.validate_.package is not None else "out"):
        open_package(folder)
    return folder


def _require_runtime(runtime: str | None) -> None:
    """Raise `SettingError` unless there is such a runtime: the worker that loads it comes after the package's sums."""
    if runtime is not None and runtime not in RUNTIMES:
        raise SettingError("runtime", f" {shown(runtime)} is not known: expected one of {', '.join(RUNTIMES)}")


@dataclass(frozen=True, slots=True)
class Origins:
    """Where settings were given.

    Attributes:
        settings: of the file.
        options: parameters that the command line gives.
        metrics: of the thresholds that the command line gives.
    """

    settings: Config
    options: frozenset[str]
    metrics: frozenset[str]

    @contextmanager
    def named(self) -> Iterator[None]:
        """Name whatever is refused inside as the user wrote it: an option, or a key of the file."""
        try:
            yield
        except SettingError as error:
            raise EdgepackError(f"{self._name(error)}{error.problem}") from error

    def _name(self, error: SettingError) -> str:
        if error.key is not None and error.key not in self.metrics:
            return f"{self.settings.place(error.setting)}.{error.key}:"
        if error.key is None and error.setting not in self.options and self._in_file(error.setting):
            return self.settings.place(error.setting)
        return OPTIONS.get(error.setting) or f"--{error.setting.replace('_', '-')}"

    def _in_file(self, setting: str) -> bool:
        if setting == "out":  # the package that `edgepack export` writes
            return True
        found = self.settings.target if setting == "target" else getattr(self.settings.validate_, setting, None)
        return found is not None


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
    from edgepack.report.write import require_writable

    if folder is not None:
        with about("report"):
            require_writable("reports", folder)
    if history is None:
        return
    with about("history"):
        try:
            there = os.path.exists(history)
            if there:
                history.open("a", encoding="utf-8").close()
        except OSError as error:
            raise EdgepackError(
                f"history {history} cannot be written: {error.strerror}; choose another file"
            ) from error
        if not there:
            require_writable("the history", history.parent)


def _perhaps_old(folder: Path | None, history: Path | None) -> str | None:
    """What an interruption of `_keep` leaves; None where nothing was to be kept."""
    places = [f"reports in {folder}"] if folder is not None else []
    places += [f"the last line of the history {history}"] if history is not None else []
    return f"{' and '.join(places)} may be of an earlier validation" if places else None


def _keep(report: Report, folder: Path | None, history: Path | None) -> None:
    try:
        if folder is not None:
            from edgepack.report.write import write_reports

            write_reports(report, folder)
            err.print(f"reports written to {folder}")
    finally:
        if history is not None:
            append_history(report, history)
