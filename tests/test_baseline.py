"""Baselines: what is a regression, what is noise, and what cannot be told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgepack.validation.baseline import append_history, compare_reports, parse_share
from edgepack.validation.metrics import measured
from edgepack.validation.result import Report
from edgepack.validation.run import with_baseline
from tests.report_sample import passing


def report_with(name: str, *values: float) -> Report:
    return passing().model_copy(update={"metrics": (measured(name, values),), "baseline": None})


@pytest.mark.parametrize(
    ("name", "before", "after", "regressed"),
    [
        ("ttft_ms@128", (100, 101, 102), (110, 111, 112), True),
        ("ttft_ms@128", (100, 101, 102), (104, 105, 106), False),  # within 5 %
        ("ttft_ms@128", (100, 101, 130), (110, 120, 125), False),  # the ranges overlap: noise
        ("ttft_ms@128", (100, 101, 102), (90, 91, 92), False),
        ("ttft_ms@128", (100,), (150,), None),  # one run each: nobody can tell
        ("decode_tokens_per_s", (10, 10, 10), (8, 8.5, 9), True),
        ("decode_tokens_per_s", (10, 10, 10), (12, 12, 13), False),
        ("kl_mean", (0.1,), (0.2,), True),  # the same in every run
        ("kl_mean", (0.0,), (0.3,), True),
    ],
)
def test_regressions(name: str, before: tuple[float, ...], after: tuple[float, ...], regressed: bool | None) -> None:
    comparison = compare_reports(
        report_with(name, *before), report_with(name, *after), file="x", max_regression_percent=5
    )
    assert [change.regressed for change in comparison.changes] == [regressed]


def test_an_alarm_names_the_metric_before_and_after() -> None:
    before, after = report_with("ttft_ms@128", 100, 101, 102), report_with("ttft_ms@128", 200, 201, 202)
    judged = with_baseline(after, before, file="base.json", max_regression_percent=5)
    assert not judged.verdict
    assert judged.reasons[0].startswith("ttft_ms@128 was 101 ms and is 201 ms: 99.0 % worse, allowed are 5 %")
    assert judged.checks[0].kind == "regression"


def test_shares() -> None:
    assert parse_share("5%") == 5.0
    assert parse_share(" 2.5 ") == 2.5


def test_history_is_one_line_each(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "history.jsonl"
    for _ in range(2):
        append_history(report_with("ttft_ms@128", 100), file)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 2
    assert lines[0]["metrics"] == {"ttft_ms@128": 100.0} and lines[0]["verdict"] is True
