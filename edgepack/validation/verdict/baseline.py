"""A report against an earlier one, and a history of reports.

Two reports are compared only where their figures mean the same: same machine, model, way of measuring, reference, texts
and golden prompts. What is known of that before measuring is refused before it. What a regression is: `regression.py`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from edgepack.errors import EdgepackError
from edgepack.reading import read_document, read_user_file
from edgepack.shown import printable, shown
from edgepack.validation.identity import Identity, file_sha256, reference_fingerprint
from edgepack.validation.metrics import GOLDEN_RATE, kind_of, require_metric_name
from edgepack.validation.processes.limit import memory_limit
from edgepack.validation.quality.texts import BUILTIN, builtin_texts, read_text, texts_sha256
from edgepack.validation.records import Machine
from edgepack.validation.result import Check, Report, Subject
from edgepack.validation.settings import MeasureSettings, QualityRequest
from edgepack.validation.verdict.judge import judge
from edgepack.validation.verdict.regression import check_baseline, compare_reports

# Facts of a part that not every validation has: they count only where both reports have it.
_OF_PARTS = ("reference", "reference numbers", "texts", "golden file")
_NOTHING = QualityRequest()


@dataclass(frozen=True, slots=True)
class Baseline:
    """An earlier report to compare with.

    Attributes:
        file: where it was read.
        allowed_percent: how much worse a metric may be.
        forced: compare whatever is different.
    """

    file: str
    report: Report
    allowed_percent: float
    forced: bool = False


def parse_share(text: str) -> float:
    """``5%`` -> 5.0; a bare number is percent as well.

    Raises:
        EdgepackError: it is no share.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%?\s*", text)
    if match is None:
        raise EdgepackError(f"max_regression {shown(text)} is not understood: expected a share such as 5%")
    return float(match.group(1))


def load_baseline(file: Path) -> Report:
    """Read the JSON face of a report that another one can be compared with.

    Raises:
        EdgepackError: the file is missing, no report of this version, or without the figures of a whole run.
    """
    report = load_report(file)
    hint = "take one of a package that runs, with `edgepack validate --report DIR`"
    if not report.metrics:
        raise EdgepackError(f"baseline {file} has no metrics to compare with: {hint}")
    if broken := next((process for process in report.processes if process.failure is not None), None):
        raise EdgepackError(f"baseline {file} is of a package that did not run ({broken.purpose} failed): {hint}")
    return report


def load_report(file: Path) -> Report:
    """Read the JSON face of a report.

    Raises:
        EdgepackError: the file is missing, no report of this version, or a figure is no finite number.
    """
    hint = "write a new one with `edgepack validate --report DIR`"
    first = "" if os.path.exists(file) else ", or for a first run, which has none yet, pass --baseline-missing ok"
    content = read_user_file(file, "baseline", f"{hint}{first}")
    report = read_document(Report, content, f"baseline {file} is no report of this version", hint)
    for metric in report.metrics:
        require_metric_name(metric.name, f"baseline {file}")
        figures = (metric.figure, metric.median, metric.lowest, metric.highest, *metric.values)
        if wrong := [figure for figure in figures if not isfinite(figure)]:
            raise EdgepackError(
                f"baseline {file}: the metric {printable(metric.name)} is {wrong[0]}, no finite number; {hint}"
            )
    return report


def facts_of(report: Report) -> dict[str, object]:
    """What must be the same for figures of two reports to be compared; None where a report lacks the part."""
    quality, golden = report.quality, report.golden
    return {
        **_common(report.machine, report.subject),
        "threads": report.threads,
        "runtime": report.runtime,
        "prompts": list(report.prompt_tokens),
        "new tokens": report.new_tokens,
        "memory limit": report.limit.limit_bytes,
        "limit enforced": report.limit.enforced,
        "reference": Identity(quality.reference_sha256, quality.reference) if quality else None,
        "reference numbers": quality.reference_dtype if quality else None,
        "texts": Identity(quality.text_sha256, quality.text_set) if quality else None,
        "golden file": Identity(golden.sha256, golden.file) if golden else None,
    }


def facts_expected(
    machine: Machine, subject: Subject, runtime: str, asked: MeasureSettings, limit_bytes: int | None
) -> dict[str, object]:
    """The same, as far as they are known before anything is measured; whether a limit is enforced is tried."""
    steps, new_tokens = asked.steps(subject.context_tokens)
    with memory_limit(limit_bytes, enforce=asked.enforce_limit) as limit:
        enforced = limit.facts.enforced
    return {
        **_common(machine, subject),
        "threads": asked.used_threads,
        "runtime": runtime,
        "prompts": [step.prompt_tokens for step in steps],
        "new tokens": new_tokens,
        "memory limit": limit_bytes,
        "limit enforced": enforced,
    }


def inputs_expected(before: Report, given: QualityRequest) -> dict[str, object]:
    """What the quality will be measured against, where `before` measured it too.

    Raises:
        EdgepackError: one of them cannot be read.
    """
    facts: dict[str, object] = {}
    if before.quality is not None and given.reference is not None:
        texts = builtin_texts() if given.text is None else (read_text(given.text),)
        facts["reference"] = Identity(reference_fingerprint(given.reference), given.reference)
        facts["texts"] = Identity(texts_sha256(texts), BUILTIN if given.text is None else str(given.text))
    if before.golden is not None and given.golden is not None:
        facts["golden file"] = Identity(file_sha256(given.golden), str(given.golden))
    return facts


def _common(machine: Machine, subject: Subject) -> dict[str, object]:
    return {
        "CPU": machine.cpu,
        "architecture": machine.architecture,
        "cores": machine.cores,
        "model": subject.model,
        "context": subject.context_tokens,
    }


def differences(before: Report, facts: Mapping[str, object]) -> dict[str, str]:
    """Why `before` cannot be compared with what has these `facts`, one line by the name of the fact."""
    old = facts_of(before)
    return {
        name: f"{name}: {old[name]} then, {new} now"
        for name, new in facts.items()
        if old[name] != new and not (name in _OF_PARTS and None in (old[name], new))
    }


def require_comparable(baseline: Baseline, facts: Mapping[str, object]) -> None:
    """Refuse a baseline that was measured otherwise.

    Raises:
        EdgepackError: with every difference.
    """
    if found := differences(baseline.report, facts):
        raise EdgepackError(
            f"baseline {baseline.file} is of another machine, model or measurement: {'; '.join(found.values())}; "
            "take a baseline here, or pass --force to compare all the same"
        )


def with_baseline(
    report: Report, baseline: Baseline, *, judged: Collection[str] = (), given: QualityRequest = _NOTHING
) -> Report:
    """`report` with its regressions against `baseline` among its checks, judged again.

    What is different though it was not before the measurement, such as a limit that was lost, is a failed check.

    Args:
        judged: metrics that are judged though no headline: the user has set a threshold on them.
        given: what the quality was asked of; a figure that is missing all the same has a failed check of its own.
    """
    before = baseline.report
    different = differences(before, facts_of(report))
    if different and not baseline.forced:
        text = (
            f"not comparable with {baseline.file}: {'; '.join(different.values())}; use --force to compare all the same"
        )
        found = [Check(kind="regression", name="comparable with the baseline", passed=False, text=text)]
        return _judged_again(report, found)
    comparison = compare_reports(
        before,
        report,
        file=baseline.file,
        max_regression_percent=baseline.allowed_percent,
        forced=baseline.forced,
        judged=judged,
        explained=[metric.name for metric in before.metrics if _explained(metric.name, different, given)],
    )
    notes = report.notes
    if different:
        notes = (*notes, f"compared by force with a baseline of another kind: {'; '.join(different.values())}")
    return _judged_again(report, check_baseline(comparison)).model_copy(update={"baseline": comparison, "notes": notes})


def _judged_again(report: Report, found: Iterable[Check]) -> Report:
    verdict, checks, reasons = judge([*report.checks, *found])
    return report.model_copy(update={"verdict": verdict, "checks": checks, "reasons": reasons})


def _explained(name: str, different: Collection[str], given: QualityRequest) -> bool:
    """Whether the metric `name` may be missing: it broke, or cannot be there by what differs in a forced comparison."""
    kind = kind_of(name)
    if kind.category == "quality":
        return (given.golden if name == GOLDEN_RATE else given.reference) is not None
    if name == "peak_charged_bytes" and {"memory limit", "limit enforced"} & set(different):
        return True
    return (kind.by_prompt or name.startswith("long_")) and bool({"prompts", "new tokens"} & set(different))


def without_comparison(report: Report, text: str, passed: bool | None) -> Report:
    """`report`, judged again with the reason why it was not compared.

    Args:
        passed: None for a first run, which spoils nothing; false where the comparison was asked and could not be made.
    """
    found = Check(kind="regression", name="no regression", passed=passed, text=text)
    return _judged_again(report, [found])


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
        "metrics": {metric.name: metric.figure for metric in report.metrics},
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        begin = "\n" if _breaks_off(file) else ""
        with file.open("a", encoding="utf-8") as lines:
            lines.write(f"{begin}{json.dumps(line)}\n")
    except OSError as error:
        raise EdgepackError(f"history {file} cannot be written: {error.strerror}") from error


def _breaks_off(file: Path) -> bool:
    """Whether the last line of `file` has no end, as an editor or a full disk leaves it."""
    if not file.is_file() or not file.stat().st_size or not os.access(file, os.R_OK):
        return False
    with file.open("rb") as lines:
        lines.seek(-1, os.SEEK_END)
        return lines.read(1) != b"\n"
