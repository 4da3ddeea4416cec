"""`edgepack validate`: run a package in fresh processes and say whether it fits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

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
from edgepack.cli.validating.progress import shown_progress
from edgepack.config import Config, first_set, read_config
from edgepack.errors import EdgepackError, SettingError, about
from edgepack.package.folder import open_package
from edgepack.report.terminal import render_terminal
from edgepack.validation.result import Report
from edgepack.validation.run import validate
from edgepack.validation.settings import (
    DEFAULT_MAX_REGRESSION,
    DEFAULT_NEW_TOKENS,
    DEFAULT_REPETITIONS,
    DEFAULT_TIME_BUDGET_S,
    DEFAULT_TIMEOUT_S,
    MOST_REPETITIONS,
    ValidationSettings,
)
from edgepack.validation.thresholds import parse_threshold
from edgepack.validation.verdict.baseline import append_history

# More than any settings are long, and little enough for a report.
LONGEST_CONFIG = 64_000
# Parameters whose option has another name.
OPTIONS = {"timeout_s": "--timeout", "time_budget_s": "--time-budget"}


def _option(name: str, metavar: str, text: str, **more: Any) -> Any:
    return typer.Option(name, metavar=metavar, help=text, **more)


def _path(name: str, text: str, metavar: str = "FILE", kind: type = Path) -> Any:
    return typer.Option(name, metavar=metavar, help=text, parser=not_empty(name, kind))


_HELP = {
    "package": "Package folder; default: the one of edgepack.toml.",
    "prompt": "Lengths of the prompts; default: 128, 1024 and the context less 256.",
    "new": f"Decode steps behind the shortest and the longest prompt; default: {DEFAULT_NEW_TOKENS}.",
    "repeat": f"Measured processes; default: {DEFAULT_REPETITIONS}.",
    "threshold": "Limit on a metric, such as 'decode_tokens_per_s >= 10'; may be given again.",
    "reference": "Checkpoint or package to compare the quality with.",
    "missing": "ok: a first run, whose baseline is not there yet, is no error; default: error.",
    "regression": f"How much worse than the baseline a metric may be; default: {DEFAULT_MAX_REGRESSION}.",
    "report": "Folder for report.json, report.md, report.junit.xml and report.html.",
    "no-limit": "Only watch the memory, even where a hard limit can be set.",
}
PackageArgument = Annotated[
    Path | None, typer.Argument(metavar="PACKAGE", parser=not_empty("PACKAGE"), help=_HELP["package"])
]
PromptOption = Annotated[str | None, _option("--prompt-tokens", "N,N", _HELP["prompt"])]
NewTokensOption = Annotated[int | None, _option("--new-tokens", "N", _HELP["new"], min=1)]
RepeatOption = Annotated[int | None, _option("--repeat", "N", _HELP["repeat"], min=1, max=MOST_REPETITIONS)]
ThresholdOption = Annotated[list[str] | None, _option("--threshold", "LIMIT", _HELP["threshold"])]
ReferenceOption = Annotated[str | None, _path("--reference", _HELP["reference"], "CHECKPOINT|PACKAGE", str)]
TextOption = Annotated[Path | None, _path("--text", "Text file for that, in place of the built-in texts.")]
GoldenOption = Annotated[
    Path | None, _path("--golden", "Prompts (JSON lines) with properties that the answers must have.")
]
BaselineOption = Annotated[Path | None, _path("--baseline", "report.json of an earlier validation to compare with.")]
MissingOption = Annotated[str | None, _option("--baseline-missing", "ok|error", _HELP["missing"])]
RegressionOption = Annotated[str | None, _option("--max-regression", "SHARE", _HELP["regression"])]
ForceOption = Annotated[bool, typer.Option("--force", help="Compare with a baseline of another machine or model.")]
HistoryOption = Annotated[Path | None, _path("--history", "File to which one line of JSON is added.")]
ReportOption = Annotated[Path | None, _path("--report", _HELP["report"], "DIR")]
NoLimitOption = Annotated[bool, typer.Option("--no-limit", help=_HELP["no-limit"])]
TimeoutOption = Annotated[float, _option("--timeout", "S", "Seconds after which a process is stopped and has failed.")]
BudgetOption = Annotated[
    float, _option("--time-budget", "S", "Bounds how often long prompts are repeated, not the whole validation.")
]


def command(
    package: PackageArgument = None,
    config: ConfigOption = None,
    runtime: RuntimeOption = None,
    target: TargetOption = None,
    prompt_tokens: PromptOption = None,
    new_tokens: NewTokensOption = None,
    repeat: RepeatOption = None,
    threshold: ThresholdOption = None,
    reference: ReferenceOption = None,
    text: TextOption = None,
    golden: GoldenOption = None,
    baseline: BaselineOption = None,
    baseline_missing: MissingOption = None,
    max_regression: RegressionOption = None,
    force: ForceOption = False,
    history: HistoryOption = None,
    report: ReportOption = None,
    no_limit: NoLimitOption = False,
    timeout_s: TimeoutOption = DEFAULT_TIMEOUT_S,
    time_budget_s: BudgetOption = DEFAULT_TIME_BUDGET_S,
    threads: ThreadsOption = None,
    json_output: JsonOption = False,
) -> None:
    """Measure load, speed, memory and quality of a package. Exit code 1 if it misses what is asked of it."""
    options = {name: value for name, value in dict(locals()).items() if value is not None}
    given = {name: value for name, value in options.items() if name in ValidationSettings.model_fields}
    if prompt_tokens is not None:
        given["prompt_tokens"] = parse_lengths(prompt_tokens, "--prompt-tokens")
    with about("--threshold"):
        limits = tuple(parse_threshold(limit) for limit in threshold or ())
    given |= {"thresholds": limits, "enforce_limit": not no_limit}
    obeyed = read_config(config)
    origins = Origins(obeyed, frozenset(options), frozenset(limit.metric for limit in limits))
    outputs = Outputs(first_set(report, obeyed.validate_.report), first_set(history, obeyed.validate_.history))
    found = _validated(package, given, origins, outputs)
    try:  # whatever cannot be written, everything else still is, the verdict first
        if json_output:
            typer.echo(found.model_dump_json())
        else:
            print_report(found)
    finally:
        with told_of_interruption(outputs.perhaps_old):
            outputs.write(found)
    if not found.verdict:
        raise typer.Exit(ANSWER_NO)


def _validated(package: Path | None, given: dict[str, Any], origins: Origins, outputs: Outputs) -> Report:
    """The report of the package, with the settings file that was obeyed."""
    obeyed = origins.config
    config_file, config_text = str(obeyed.file) if obeyed.file else None, _text_of(obeyed)
    with origins.named():
        settings = obeyed.settings(given)
        folder = _package(package, obeyed)
        outputs.require_writable()
        with told_of_interruption(lambda: "nothing was judged and no report was written"), shown_progress() as tell:
            report = validate(folder, settings, on_phase=tell)
    return report.model_copy(update={"config": config_file, "config_text": config_text})


def print_report(report: Report) -> None:
    """The report as tables for people."""
    for part in render_terminal(report):
        out.print(part)


def _package(package: Path | None, config: Config) -> Path:
    """The package: that of the command line, else that of the settings, which is looked at here to name the key."""
    if package is not None:
        return package
    folder: Path | None = first_set(config.validate_.package, config.export.out)
    if folder is None:
        raise EdgepackError(
            "no package was given: name its folder, or set package in the table [validate] of edgepack.toml"
        )
    with about("package" if config.validate_.package is not None else "out"):
        open_package(folder)
    return folder


@dataclass(frozen=True, slots=True)
class Origins:
    """Where settings were given.

    Attributes:
        config: the file.
        options: parameters that the command line gives.
        metrics: of the thresholds that the command line gives.
    """

    config: Config
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
            return f"{self.config.place(error.setting)}.{error.key}:"
        if error.key is None and error.setting not in self.options and self._in_file(error.setting):
            return self.config.place(error.setting)
        return OPTIONS.get(error.setting) or f"--{error.setting.replace('_', '-')}"

    def _in_file(self, setting: str) -> bool:
        if setting == "out":  # the package that `edgepack export` writes
            return True
        if setting == "target":
            return self.config.target is not None
        return setting in self.config.validate_.model_fields_set


def _text_of(settings: Config) -> str | None:
    """What stands in the settings file now; a report that is written later must not show what it was changed to."""
    if settings.file is None:
        return None
    try:
        return settings.file.read_text(encoding="utf-8")[:LONGEST_CONFIG]
    except OSError as error:
        raise EdgepackError(f"config {settings.file} cannot be read: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where the result is kept.

    Attributes:
        folder: of the reports.
        history: the file to which a line is added.
    """

    folder: Path | None
    history: Path | None

    def require_writable(self) -> None:
        """Refuse places that cannot be written: a verdict of many minutes is not to be lost over a path."""
        from edgepack.report.write import require_writable

        if self.folder is not None:
            with about("report"):
                require_writable("reports", self.folder)
        if self.history is None:
            return
        with about("history"):
            try:
                there = os.path.exists(self.history)
                if there:
                    self.history.open("a", encoding="utf-8").close()
            except OSError as error:
                raise EdgepackError(
                    f"history {self.history} cannot be written: {error.strerror}; choose another file"
                ) from error
            if not there:
                require_writable("the history", self.history.parent)

    def perhaps_old(self) -> str | None:
        """What an interruption of `write` leaves; None where nothing was to be kept."""
        places = [f"reports in {self.folder}"] if self.folder is not None else []
        places += [f"the last line of the history {self.history}"] if self.history is not None else []
        return f"{' and '.join(places)} may be of an earlier validation" if places else None

    def write(self, report: Report) -> None:
        """Write the reports, and the line of the history whatever becomes of them."""
        try:
            if self.folder is not None:
                from edgepack.report.write import write_reports

                write_reports(report, self.folder)
                err.print(f"reports written to {self.folder}")
        finally:
            if self.history is not None:
                append_history(report, self.history)
