"""A report against an earlier one, and a history of reports.

A metric has regressed when its median is worse by more than the allowed share **and** the ranges of its repetitions do
not overlap. With three repetitions on each side, ranges of equal machines lie apart like that once in twenty times by
chance (one order in 20 of six values: Mann and Whitney, 1947), so noise alone seldom raises an alarm. A metric with
fewer repetitions is judged only where it does not vary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from edgepack.errors import EdgepackError
from edgepack.validation.machine import Machine
from edgepack.validation.measure import Measuring
from edgepack.validation.metrics import Metric, format_figure
from edgepack.validation.result import BaselineComparison, Check, MetricChange, Report, Subject

FEWEST_RUNS = 3


def parse_share(text: str) -> float:
    """``5%`` -> 5.0; a bare number is percent as well.

    Raises:
        EdgepackError: it is no share.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%?\s*", text)
    if match is None:
        raise EdgepackError(f"--max-regression {text!r} is not understood: expected a share such as 5%")
    return float(match.group(1))


def load_report(file: Path, what: str = "baseline") -> Report:
    """Read the JSON face of a report.

    Raises:
        EdgepackError: the file is missing or no report of this version.
    """
    try:
        return Report.model_validate_json(file.read_bytes())
    except OSError as error:
        hint = "write one with `edgepack validate --report DIR`"
        raise EdgepackError(f"{what} {file} cannot be read: {error.strerror}; {hint}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise EdgepackError(
            f"{what} {file} is no report of this version: {where}: {first['msg']}; write a new one with "
            "`edgepack validate --report DIR`"
        ) from error


def facts_of(report: Report) -> dict[str, object]:
    """What must be the same for figures of two reports to be compared."""
    return {
        **_common(report.machine, report.subject),
        "threads": report.threads,
        "runtime": report.runtime,
        "prompts": list(report.prompt_tokens),
        "new tokens": report.new_tokens,
        "memory limit": report.limit.limit_bytes,
        "limit enforced": report.limit.enforced,
        "texts": report.quality.text_set if report.quality else None,
    }


def facts_expected(
    machine: Machine, subject: Subject, runtime: str, asked: Measuring, limit_bytes: int | None
) -> dict[str, object]:
    """The same, as far as they are known before anything is measured."""
    steps, new_tokens = asked.steps(subject.context_tokens)
    return {
        **_common(machine, subject),
        "threads": asked.threads,
        "runtime": runtime,
        "prompts": [step.prompt_tokens for step in steps],
        "new tokens": new_tokens,
        "memory limit": limit_bytes,
    }


def _common(machine: Machine, subject: Subject) -> dict[str, object]:
    return {
        "CPU": machine.cpu,
        "architecture": machine.architecture,
        "cores": machine.cores,
        "model": subject.model,
        "context": subject.context_tokens,
    }


def differences(before: Report, facts: Mapping[str, object]) -> list[str]:
    """Why `before` cannot be compared with what has these `facts`; texts count only where both have some."""
    old = facts_of(before)
    return [
        f"{name}: {old[name]} then, {new} now"
        for name, new in facts.items()
        if old[name] != new and not (name == "texts" and None in (old[name], new))
    ]


def require_comparable(before: Report, facts: Mapping[str, object], file: Path) -> None:
    """Refuse a baseline that was measured otherwise.

    Raises:
        EdgepackError: with every difference.
    """
    if found := differences(before, facts):
        raise EdgepackError(
            f"baseline {file} is of another machine, model or measurement: {'; '.join(found)}; "
            "take a baseline here, or pass --force to compare all the same"
        )


def compare_reports(
    before: Report, after: Report, *, file: str, max_regression_percent: float, forced: bool = False
) -> BaselineComparison:
    """Every metric that both reports have."""
    then = {metric.name: metric for metric in before.metrics}
    changes = [
        _change(then[metric.name], metric, max_regression_percent) for metric in after.metrics if metric.name in then
    ]
    return BaselineComparison(
        file=file, max_regression_percent=max_regression_percent, forced=forced, changes=tuple(changes)
    )


def _change(before: Metric, after: Metric, allowed_percent: float) -> MetricChange:
    sign = 1.0 if before.better == "lower" else -1.0
    base = abs(before.median)
    if base:
        change = 100.0 * sign * (after.median - before.median) / base
        noise = 50.0 * max(metric.highest - metric.lowest for metric in (before, after)) / base
    elif before.kind.steady:  # none was lost before, for instance no KL: any amount is all of it
        change, noise = 100.0 * sign * ((after.median > 0) - (after.median < 0)), 0.0
    else:  # nothing before, for instance page faults: any amount is infinitely more, so it is told but not judged
        change, noise = 0.0, 0.0
    return MetricChange(
        name=before.name,
        better=before.better,
        before=before.median,
        after=after.median,
        change_percent=change,
        noise_percent=noise,
        regressed=_regressed(before, after, change, allowed_percent),
    )


def _regressed(before: Metric, after: Metric, change_percent: float, allowed_percent: float) -> bool | None:
    """Whether it is worse by more than allowed, beyond the noise; None where that cannot be told."""
    if change_percent <= allowed_percent:
        return False
    if before.kind.steady:
        return True
    if min(len(before.values), len(after.values)) < FEWEST_RUNS:
        return None
    if before.better == "lower":
        return after.lowest > before.highest
    return after.highest < before.lowest


def check_baseline(comparison: BaselineComparison, metrics: tuple[Metric, ...]) -> Iterator[Check]:
    """One check for each regressed metric, one for those that could not be judged, or one that all is well."""
    units = {metric.name: metric.unit for metric in metrics}
    regressed = [change for change in comparison.changes if change.regressed]
    for change in regressed:
        before, after = (format_figure(value, units[change.name]) for value in (change.before, change.after))
        text = (
            f"{change.name} was {before} and is {after}: {change.change_percent:.1f} % worse, "
            f"allowed are {comparison.max_regression_percent:g} % "
            f"(noise {change.noise_percent:.1f} %; {comparison.file})"
        )
        yield Check(kind="regression", name=f"no regression of {change.name}", passed=False, text=text)
    unclear = [change.name for change in comparison.changes if change.regressed is None]
    if unclear:
        text = (
            f"worse, but with fewer than {FEWEST_RUNS} runs a side this cannot be told from noise: {', '.join(unclear)}"
        )
        yield Check(kind="regression", name="metrics with too few runs", passed=None, text=text)
    if not regressed:
        text = f"no metric is more than {comparison.max_regression_percent:g} % worse than in {comparison.file}"
        yield Check(kind="regression", name="no regression", passed=True, text=text)


def append_history(report: Report, file: Path) -> None:
    """Add one line of JSON: when, what, where, the medians, the verdict.

    Raises:
        EdgepackError: the file cannot be written.
    """
    line = {
        "created": report.created,
        "verdict": report.verdict,
        "reason": report.reasons[0],
        "fingerprint": report.subject.fingerprint,
        "model": report.subject.model,
        "recipe": report.subject.recipe,
        "runtime": report.runtime,
        "target": report.target.name if report.target else None,
        "cpu": report.machine.cpu,
        "threads": report.threads,
        "versions": report.machine.versions,
        "metrics": {metric.name: metric.median for metric in report.metrics},
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")
    except OSError as error:
        raise EdgepackError(f"history {file} cannot be written: {error.strerror}") from error
