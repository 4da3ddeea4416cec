"""Markdown of a report, made for a GitHub step summary: the verdict first, long parts folded, far below its 1 MiB.

Everything that came from outside (paths, prompts, answers, notes) is escaped: it shows as it is and formats nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from html import escape

from edgepack.report.tables import (
    CATEGORY_TITLES,
    Table,
    baseline_table,
    checks_table,
    fact_table,
    metric_table,
    phase_table,
    plan_table,
    prediction_table,
    process_table,
    quality_facts,
    text_table,
)
from edgepack.report.words import (
    clean,
    config_title,
    first_reason,
    limit_warning,
    one_line,
    prediction_words,
    size,
    verdict_word,
)
from edgepack.units import format_percent
from edgepack.validation.figures.collect import representative
from edgepack.validation.result import GoldenReport, QualityReport, Report

# GitHub cuts a step summary at 1 MiB. These bounds keep the longest report near a quarter of it.
LONGEST_CELL = 300
LONGEST_TEXT = 2000
LONGEST_CONFIG = 8000
MOST_ROWS = 100
MOST_ANSWERS = 25
# What Markdown and GitHub give a meaning to: markup, tables, formulas ($), emoji and links (:).
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#!|~$:])")
_MARKS = {"pass": "✅ pass", "fail": "❌ fail", "not judged": "⚪ not judged"}


def render_markdown(report: Report) -> str:
    """The whole document."""
    return "\n".join(_lines(report)).rstrip() + "\n"


def _lines(report: Report) -> Iterator[str]:
    mark = "✅" if report.verdict else "❌"
    yield f"## {mark} {verdict_word(report)}: {_text(first_reason(report))}"
    yield ""
    warning = limit_warning(report.limit)
    if warning:
        yield from ("> [!WARNING]", f"> {_text(warning)}", "")
    yield from (f"- {_text(reason)}" for reason in report.reasons[1:])
    if report.advice is not None:
        yield f"- Try next: {_text(report.advice.text, LONGEST_TEXT)}"
    yield ""
    checks = checks_table(report)
    yield from _table(checks, mark_first=True)
    for category in CATEGORY_TITLES:
        yield from _table(metric_table(report, category), level=3)
    yield from _memory(report)
    yield from _plan(report)
    if report.quality:
        yield from _quality(report.quality)
    if report.golden:
        yield from _golden(report.golden)
    yield from _baseline(report)
    yield from _predictions(report)
    if report.notes:
        yield from ("### Notes", "", *(f"- {_text(note)}" for note in report.notes[:MOST_ROWS]), "")
    yield from _folded("What ran where", _table(fact_table(report)))
    if report.config_text is not None:
        yield from _folded(config_title(report), _block(report.config_text, LONGEST_CONFIG))


def _memory(report: Report) -> Iterator[str]:
    most = representative(report.processes)
    if most and most.phases:
        yield from _table(phase_table(most), level=3)
    if report.processes:
        inner = list(_table(process_table(report)))
        for process in report.processes[:MOST_ANSWERS]:
            if process is not most and process.phases:
                inner += _table(phase_table(process), level=4)
        yield from _folded("All processes", inner)


def _plan(report: Report) -> Iterator[str]:
    plan = report.plan
    if plan is None:
        return
    yield from _table(plan_table(plan), level=3)
    yield f"For the {plan.filled_tokens:,} tokens that the runs filled. The whole context of "
    yield f"{report.subject.context_tokens:,} tokens is planned at {size(plan.full_context_total_bytes)}."
    yield ""


def _quality(quality: QualityReport) -> Iterator[str]:
    yield from _table(quality_facts(quality), level=3)
    yield from (f"- {_text(note)}" for note in quality.notes)
    yield ""
    if quality.texts:
        yield from _folded("Text by text", _table(text_table(quality)))


def _golden(golden: GoldenReport) -> Iterator[str]:
    yield from ("### Golden answers", "")
    passed = sum(answer.passed for answer in golden.answers)
    share = format_percent(100 * golden.pass_rate)
    yield f"{passed} of {len(golden.answers)} pass ({share}), from {_text(golden.file)}."
    yield ""
    # The failed ones first: they are what a reader came for.
    answers = sorted(golden.answers, key=lambda answer: answer.passed)
    for answer in answers[:MOST_ANSWERS]:
        inner = [f"- {_text(failure)}" for failure in answer.failures]
        inner += ["", "Prompt:", "", *_block(answer.prompt), "Answer:", "", *_block(answer.answer)]
        yield from _folded(f"{'✅' if answer.passed else '❌'} {answer.name}", inner)
    if len(answers) > MOST_ANSWERS:
        yield from (f"{len(answers) - MOST_ANSWERS} more are in report.json.", "")


def _baseline(report: Report) -> Iterator[str]:
    baseline = report.baseline
    if baseline is None:
        return
    yield from _table(baseline_table(baseline), level=3)
    allowed = f"more than {baseline.max_regression_percent:g} % worse counts as a regression"
    forced = " The comparison was forced: the two runs differ in what must be equal." if baseline.forced else ""
    yield from (f"Against {_text(baseline.file)}; {allowed}.{forced}", "")


def _predictions(report: Report) -> Iterator[str]:
    if not report.predictions:
        return
    yield from _table(prediction_table(report), level=3)
    yield from ("These figures are arithmetic about devices on which nothing ran.", "")
    yield from (line for said in prediction_words(report.prediction_basis) for line in (_text(said, LONGEST_TEXT), ""))


def _table(table: Table, level: int | None = None, *, mark_first: bool = False) -> Iterator[str]:
    """The table under a heading of `level`; nothing at all where it has no rows."""
    if not table.rows:
        return
    if level:
        yield from (f"{'#' * level} {_text(table.title)}", "")
    yield f"| {' | '.join(map(_text, table.headings))} |"
    yield f"|{'|'.join(' ---: ' if side == 'r' else ' --- ' for side in table.align)}|"
    for row in table.rows[:MOST_ROWS]:
        cells = [_MARKS[row[0]], *map(_text, row[1:])] if mark_first else list(map(_text, row))
        yield f"| {' | '.join(cells)} |"
    yield ""
    if len(table.rows) > MOST_ROWS:
        yield from (f"{len(table.rows) - MOST_ROWS} more rows are in report.json.", "")


def _folded(title: str, inner: Iterable[str]) -> Iterator[str]:
    said = escape(_cut(one_line(title), LONGEST_CELL)).replace("@", "@<!-- -->")  # as in _text
    yield from (f"<details><summary>{said}</summary>", "")
    yield from inner
    yield from ("", "</details>", "")


def _block(text: str, longest: int = LONGEST_TEXT) -> Iterator[str]:
    """Text as it is. `<pre>` needs no fence that the text could close, and a blank line does not end it."""
    yield from (f"<pre>{escape(_cut(clean(text), longest))}</pre>", "")


def _text(text: str, longest: int = LONGEST_CELL) -> str:
    """Text that formats nothing, on one line, safe in a table cell."""
    plain = _SPECIAL.sub(r"\\\1", escape(_cut(one_line(text), longest), quote=False))
    return plain.replace("@", "@<!-- -->")  # else GitHub calls whoever has that name


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
