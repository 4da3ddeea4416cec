"""One peak: that of all cold loads and runs, in the metrics, the first line, the plan and the phases."""

from __future__ import annotations

import pytest

from edgepack.planning.plan import Target
from edgepack.units import format_bytes
from edgepack.validation.figures.collect import metrics_of, peak_rss_bytes
from edgepack.validation.figures.schedule import FIRST_LOAD, Measurement
from edgepack.validation.metrics import find_metric
from edgepack.validation.processes.job import Step
from edgepack.validation.processes.memory import MemoryWatch
from edgepack.validation.processes.supervisor import WorkerRun
from edgepack.validation.records import LimitFacts
from edgepack.validation.verdict.judge import check_target

GONE = 2**22 + 1
MB = 1_000_000
STEPS = (Step(prompt_tokens=4), Step(prompt_tokens=9))
WHOLE, SHORT = (4, 9), (4,)


def ran(peak_mb: int, lengths: tuple[int, ...] = (), failure: str | None = None) -> WorkerRun:
    figures = {f"prefill {n}": {"prompt_tokens": n, "prefill_ms": 1.0, "ttft_ms": 1.0} for n in lengths}
    return WorkerRun(MemoryWatch(GONE, peak_rss_bytes=peak_mb * MB), figures=figures, failure=failure)


def measurement(*pairs: tuple[WorkerRun, WorkerRun]) -> Measurement:
    facts = LimitFacts(method="none", enforced=False, limit_bytes=None)
    processes = [(FIRST_LOAD, ran(999))]
    for number, (cold, run) in enumerate(pairs, 1):
        processes += [(f"cold load {number}", cold), (f"run {number}", run)]
    return Measurement(STEPS, 2, facts, processes)


@pytest.mark.parametrize(
    ("pairs", "values"),
    [
        ([(ran(80), ran(101, WHOLE)), (ran(80), ran(104, WHOLE))], [101, 104]),
        ([(ran(140), ran(101, WHOLE)), (ran(80), ran(104, WHOLE))], [140, 104]),
        ([(ran(80), ran(101, WHOLE)), (ran(80), ran(97, SHORT))], [101]),
        ([(ran(80), ran(101, WHOLE)), (ran(80), ran(107, SHORT))], [101, 107]),
        ([(ran(80), ran(91, SHORT)), (ran(80), ran(97, SHORT))], [91, 97]),
    ],
)
def test_there_is_one_peak(pairs: list[tuple[WorkerRun, WorkerRun]], values: list[int]) -> None:
    found = measurement(*pairs)
    metric = find_metric(metrics_of(found, 1), "peak_rss_bytes")
    assert metric is not None and [value / MB for value in metric.values] == values
    assert metric.model_dump()["figure"] == max(values) * MB
    assert metric.figure == peak_rss_bytes(found) == max(values) * MB
    check = check_target(found, Target(name="x", limit_bytes=500 * MB))
    assert check is not None and f"peak RSS {format_bytes(max(values) * MB)} is within" in check.text


def test_the_peak_of_what_died_is_no_figure() -> None:
    metrics = metrics_of(measurement((ran(80), ran(60, SHORT, "killed"))), 1)
    assert find_metric(metrics, "peak_rss_bytes") is None
    assert find_metric(metrics, "ttft_ms@4") is not None
