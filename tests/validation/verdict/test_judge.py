"""From what the processes did to the verdict and its first line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgepack.planning.plan import Target
from edgepack.report.words import limit_words
from edgepack.system.process_memory import MemorySample
from edgepack.validation.figures.schedule import FIRST_LOAD, Measurement
from edgepack.validation.processes import memory
from edgepack.validation.processes.job import Step
from edgepack.validation.processes.memory import MemoryWatch
from edgepack.validation.processes.supervisor import WorkerRun
from edgepack.validation.records import LimitFacts, LimitMethod
from edgepack.validation.result import Check, GoldenAnswer, GoldenReport
from edgepack.validation.thresholds import parse_threshold
from edgepack.validation.verdict.judge import check_run, check_target, judge
from edgepack.validation.verdict.quality import check_golden, check_quality
from tests.support.report_sample import failing

GONE = 2**22 + 1  # no process has this number, so it has no children either
TARGET = Target(name="2GB", limit_bytes=2_000_000_000)
MB = 1_000_000


def ran(peak_bytes: int, failure: str | None = None, *, at_limit: bool = False) -> WorkerRun:
    return WorkerRun(MemoryWatch(GONE, peak_rss_bytes=peak_bytes), failure=failure, at_limit=at_limit)


def measurement(method: LimitMethod, *processes: tuple[str, WorkerRun]) -> Measurement:
    facts = LimitFacts(method=method, enforced=method != "sampled", limit_bytes=TARGET.limit_bytes)
    return Measurement((Step(prompt_tokens=4),), 2, facts, list(processes))


def target_check(found: Measurement) -> Check:
    check = check_target(found, TARGET)
    assert check is not None and (check.kind, check.name) == ("ram", "memory within 2GB")
    return check


def test_within_a_hard_limit() -> None:
    check = target_check(measurement("cgroup v2", (FIRST_LOAD, ran(1500 * MB)), ("run 1", ran(1740 * MB))))
    assert check.passed
    assert check.text == "ran within a hard limit of 2GB (2,000,000,000 bytes), peak RSS 1.74 GB, 260 MB to spare"


@pytest.mark.parametrize("method", ["cgroup v1", "sampled"])
@pytest.mark.parametrize("purpose", ["cold load 1", "run 2"])
def test_an_rss_over_the_target_has_failed_even_where_the_limit_held(method: LimitMethod, purpose: str) -> None:
    check = target_check(measurement(method, (FIRST_LOAD, ran(MB)), (purpose, ran(2010 * MB))))
    assert not check.passed
    assert check.text == "peak RSS 2.01 GB is over the target 2GB (2,000,000,000 bytes) by 10.0 MB"


def test_packing_is_judged_by_what_it_cannot_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a real limit surviving is enough. Else its anonymous memory counts, and what a bare Python maps."""

    def found(method: LimitMethod, anonymous_bytes: int) -> Check:
        samples = iter(
            MemorySample(rss_bytes=anonymous + file, anonymous_bytes=anonymous, file_bytes=file)
            for anonymous, file in ((30 * MB, 20 * MB), (anonymous_bytes, 3000 * MB))
        )
        monkeypatch.setattr(memory, "sample_tree", lambda pid: next(samples))
        packing = WorkerRun(MemoryWatch(GONE))
        for phase in ("start", "load"):
            packing.memory.enter(phase)
        return target_check(measurement(method, (FIRST_LOAD, packing), ("run 1", ran(1000 * MB))))

    assert found("sampled", 1980 * MB).passed
    assert found("cgroup v1", 2500 * MB).passed
    check = found("sampled", 2000 * MB)
    assert not check.passed
    assert check.text == (
        "the first load, which packs the weights, needs 2.02 GB: 20.0 MB over 2GB (2,000,000,000 bytes)"
    )


def test_no_target_or_nothing_to_judge() -> None:
    assert check_target(measurement("sampled", ("run 1", ran(MB))), None) is None
    assert check_target(measurement("sampled"), TARGET) is None


@pytest.mark.parametrize("method", ["cgroup v1", "sampled"])
def test_what_does_not_come_to_its_end_never_stays_within_the_target(method: LimitMethod) -> None:
    killed = target_check(measurement(method, (FIRST_LOAD, ran(MB, "killed", at_limit=True))))
    assert (killed.passed, killed.text) == (False, "does not run within a hard limit of 2GB (2,000,000,000 bytes)")
    crashed = target_check(measurement(method, (FIRST_LOAD, ran(MB)), ("cold load 2", ran(30 * MB, "gone"))))
    assert not crashed.passed
    assert crashed.text == (
        "whether it stays within 2GB (2,000,000,000 bytes) was not measured: cold load 2 did not come to its end"
    )
    over = target_check(measurement(method, (FIRST_LOAD, ran(MB)), ("run 1", ran(2010 * MB, "gone"))))
    assert over.text.startswith("peak RSS 2.01 GB is over the target")


@pytest.mark.parametrize(("at_limit", "kind"), [(True, "ram"), (False, "run")])
def test_a_process_that_did_not_end_well(at_limit: bool, kind: str) -> None:
    check = check_run(measurement("cgroup v1", (FIRST_LOAD, ran(MB)), ("run 1", ran(MB, "gone", at_limit=at_limit))))
    assert (check.kind, check.passed, check.text) == (kind, False, "gone (run 1)")
    first = check_run(measurement("cgroup v1", (FIRST_LOAD, ran(MB, "gone"))))
    assert first.text == "gone (the first load, which prepares the runtime's cache, did not work)"
    good = check_run(measurement("cgroup v1", (FIRST_LOAD, ran(MB))))
    assert (good.passed, good.text) == (True, "1 processes came to their end")


def answer(name: str, *failures: str) -> GoldenAnswer:
    return GoldenAnswer(name=name, prompt="p", answer="a", passed=not failures, failures=failures)


def test_golden_answers_name_the_first_failures() -> None:
    def found(*answers: GoldenAnswer) -> Check:
        check = check_golden(GoldenReport(file="g.jsonl", sha256="", pass_rate=0.5, answers=answers))
        assert check is not None and check.kind == "quality"
        return check

    assert check_golden(None) is None
    assert found(answer("a")).text == "all 1 golden answers of g.jsonl passed"
    bad = found(answer("a"), *(answer(name, f"{name} missed", "and more") for name in "bcde"))
    assert not bad.passed
    assert bad.text == ("4 of 5 golden answers of g.jsonl failed: b: b missed; c: c missed; d: d missed and 1 more")


CHECKS: dict[str, Callable[..., Check]] = {
    kind: lambda passed, kind=kind: Check(kind=kind, name=kind, passed=passed, text=f"{kind} {passed}")
    for kind in ("regression", "quality", "latency", "ram", "run")
}


def test_failures_come_first_in_order_of_importance() -> None:
    verdict, checks, reasons = judge([make(kind in ("quality", "regression")) for kind, make in CHECKS.items()])
    assert not verdict
    assert reasons == ("run False", "ram False", "latency False")
    assert [check.kind for check in checks] == ["run", "ram", "latency", "quality", "regression"]
    assert [check.passed for check in checks] == [False, False, False, True, True]


def test_what_could_not_be_judged_spoils_nothing() -> None:
    verdict, checks, reasons = judge([CHECKS["regression"](None), CHECKS["ram"](True), CHECKS["run"](True)])
    assert (verdict, reasons) == (True, ("ram True",))
    assert [check.kind for check in checks] == ["run", "ram", "regression"]
    assert judge([CHECKS["run"](True)])[2] == ("the runs came to their end; no target or threshold was given",)
    assert not judge([CHECKS["regression"](False), CHECKS["ram"](None)])[0]


def test_the_report_tells_what_the_last_process_had_for_nothing() -> None:
    found = measurement("cgroup v1", (FIRST_LOAD, ran(MB)), ("run 1", ran(MB)), ("run 2", ran(MB)))
    assert found.limit_facts == found.limit
    for (_, run), uncharged_bytes in zip(found.processes, (400 * MB, 21 * MB, None), strict=True):
        run.uncharged_bytes = uncharged_bytes
    assert found.limit_facts.uncharged_bytes == 21 * MB
    assert "lowered by 21.0 MB of pages" in limit_words(found.limit_facts)


def test_the_reason_says_what_the_memory_was_and_whose(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = MemorySample(rss_bytes=2010 * MB, anonymous_bytes=1500 * MB, file_bytes=510 * MB)
    monkeypatch.setattr(memory, "sample_tree", lambda pid: sample)
    run = WorkerRun(MemoryWatch(GONE))
    run.memory.enter("load")
    check = target_check(measurement("sampled", (FIRST_LOAD, ran(MB)), ("cold load 1", run)))
    assert check.text == (
        "peak RSS 2.01 GB is over the target 2GB (2,000,000,000 bytes) by 10.0 MB; 1.50 GB of it anonymous and 510 MB "
        "file-backed, in phase load (cold load 1)"
    )


def test_a_comparison_that_nobody_judges_says_so() -> None:
    quality = failing().quality
    assert quality is not None and check_quality(None, []) is None
    enough = quality.model_copy(update={"tokens": 100})
    worst = max(quality.texts, key=lambda text: text.kl_mean).name
    for limits in ([], [parse_threshold("golden_pass_rate >= 90%"), parse_threshold("ttft_ms <= 1s")]):
        check = check_quality(enough, limits)
        assert check is not None and check.passed is None
        assert f"(worst text: {worst}, " in check.text
        assert check.text.endswith("over 100 positions: no threshold was set on its figures")
    limit = [parse_threshold("kl_mean <= 1")]
    assert check_quality(enough, limit) is None
    few = check_quality(quality.model_copy(update={"tokens": 1}), limit)
    assert few is not None and few.passed is None
    assert few.text.endswith("over 1 positions: with fewer than 100 positions its figures say little")
