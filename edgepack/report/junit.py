"""JUnit XML of a report: one test case a check, for the test tabs of GitLab, Jenkins and others.

The common subset of what both read: GitLab tells cases apart by class name and name, and Jenkins's schema knows
properties of a suite only. A metric is a property; predictions are neither and stay out.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from xml.etree import ElementTree

from edgepack.report.words import calibration_words, clean, first_reason, limit_warning, one_line
from edgepack.validation.result import Check, Report


def render_junit(report: Report) -> str:
    """The XML document as text."""
    failures = sum(check.passed is False for check in report.checks)
    skipped = sum(check.passed is None for check in report.checks)
    totals = {
        "tests": str(len(report.checks)),
        "failures": str(failures),
        "errors": "0",
        "skipped": str(skipped),
        "time": f"{report.duration_s:.3f}",
    }
    root = ElementTree.Element("testsuites", {"name": "edgepack validate", **totals})
    when = _timestamp(report.created)
    suite = ElementTree.SubElement(root, "testsuite", {"name": one_line(report.subject.path), **totals, **when})
    _properties(suite, report)
    seen: Counter[tuple[str, str]] = Counter()
    for check in report.checks:
        _case(suite, check, seen)
    said = [first_reason(report), *map(one_line, report.reasons[1:])]
    if report.advice is not None:
        said.append(f"try next: {one_line(report.advice.text)}")
    said += [f"note: {one_line(note)}" for note in report.notes]
    ElementTree.SubElement(suite, "system-out").text = "\n".join(said)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _timestamp(created: str) -> dict[str, str]:
    """The schema wants UTC without a zone; nothing where the text is no time."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return {}
    moment = moment if moment.tzinfo is None else moment.astimezone(UTC)
    return {"timestamp": moment.strftime("%Y-%m-%dT%H:%M:%S")}


def _properties(suite: ElementTree.Element, report: Report) -> None:
    subject = report.subject
    facts = {
        "model": subject.model,
        "backend": subject.backend,
        "recipe": subject.recipe,
        "fingerprint": subject.fingerprint,
        "runtime": report.runtime,
        "threads": str(report.threads),
        "cpu": report.machine.cpu,
        "target": report.target.name if report.target else "none",
        "limit.method": report.limit.method,
        "limit.enforced": str(report.limit.enforced).lower(),
    }
    if subject.calibration is not None:
        facts["calibration"] = calibration_words(subject.calibration)
    warning = limit_warning(report.limit)
    if warning:
        facts["limit.warning"] = warning
    for metric in report.metrics:
        facts[f"{metric.name}.value"] = repr(metric.figure)
        facts[f"{metric.name}.lowest"] = repr(metric.lowest)
        facts[f"{metric.name}.highest"] = repr(metric.highest)
    holder = ElementTree.SubElement(suite, "properties")
    for name, value in facts.items():
        ElementTree.SubElement(holder, "property", {"name": one_line(name), "value": one_line(value)})


def _case(suite: ElementTree.Element, check: Check, seen: Counter[tuple[str, str]]) -> None:
    name = one_line(check.name)
    seen[check.kind, name] += 1
    times = seen[check.kind, name]
    # GitLab ignores a second case of the same name.
    name = name if times == 1 else f"{name} ({times})"
    case = ElementTree.SubElement(suite, "testcase", {"classname": f"edgepack.{check.kind}", "name": name, "time": "0"})
    message = {"message": one_line(check.text)}
    if check.passed is None:
        ElementTree.SubElement(case, "skipped", message)
    elif not check.passed:
        ElementTree.SubElement(case, "failure", {**message, "type": check.kind}).text = clean(check.text)
    else:
        ElementTree.SubElement(case, "system-out").text = clean(check.text)
