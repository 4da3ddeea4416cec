"""Baselines: what is a regression, what is noise, and what cannot be told."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import edgepack
from edgepack.errors import EdgepackError
from edgepack.validation.identity import file_sha256, reference_fingerprint
from edgepack.validation.metrics import Metric, measured
from edgepack.validation.processes.limit import MemoryLimit
from edgepack.validation.progress import Progress
from edgepack.validation.quality.texts import builtin_texts, read_text, texts_sha256
from edgepack.validation.records import LimitFacts
from edgepack.validation.result import Check, MetricChange, Report
from edgepack.validation.settings import MeasureSettings, QualityRequest
from edgepack.validation.verdict import baseline as baselines
from edgepack.validation.verdict.baseline import (
    Baseline,
    append_history,
    differences,
    facts_expected,
    facts_of,
    inputs_expected,
    load_baseline,
    load_report,
    parse_share,
    require_comparable,
    with_baseline,
)
from edgepack.validation.verdict.regression import compare_reports, student_limit
from tests.support.paths import DEMO, ROOT
from tests.support.report_sample import failing, passing


def report_of(*metrics: Metric) -> Report:
    return passing().model_copy(update={"metrics": metrics, "checks": (), "baseline": None})


def report_with(name: str, *values: float) -> Report:
    return report_of(measured(name, values))


def change_of(name: str, before: tuple[float, ...], after: tuple[float, ...], **options: Any) -> MetricChange:
    comparison = compare_reports(
        report_with(name, *before), report_with(name, *after), file="x", max_regression_percent=5, **options
    )
    return comparison.changes[0]


def judged(after: Report, before: Report, *, forced: bool = False, **options: Any) -> Report:
    return with_baseline(after, Baseline("base.json", before, 5, forced), **options)


def checks_of(report: Report) -> dict[str, Check]:
    return {check.name: check for check in report.checks if check.kind == "regression"}


@pytest.mark.parametrize(
    ("name", "before", "after", "regressed", "why"),
    [
        ("cold_load_ms", (100, 101, 102), (110, 111, 112), True, None),
        ("cold_load_ms", (100, 101, 102), (104, 105, 106), False, None),  # within 5 %
        ("cold_load_ms", (100, 101, 130), (110, 120, 125), None, "within noise"),
        ("cold_load_ms", (100, 110, 120), (121, 131, 141), None, "within noise"),  # apart, but by chance
        ("cold_load_ms", (100, 101, 102), (90, 91, 92), False, None),
        ("cold_load_ms", (100,), (150,), None, "few runs"),  # one run each: nobody can tell
        ("cold_load_ms", (10, 10, 10), (11, 11, 11), True, None),
        ("prefill_tokens_per_s@128", (100, 101, 102), (80, 81, 82), True, None),
        ("decode_tokens_per_s", (10, 10, 10), (8, 8.5, 9), True, None),
        ("decode_tokens_per_s", (10, 10, 10), (12, 12, 13), False, None),
        ("itl_p99_ms", (100, 101, 102), (200, 201, 202), None, "told only"),
        ("ttft_ms@128", (100, 101, 102), (104, 105, 106), False, None),
        # what is known of the noise of memory makes one run enough
        ("peak_rss_bytes", (1.2e9,), (1.9e9,), True, None),
        ("peak_rss_bytes", (1e9,), (1.07e9,), None, "within noise"),
        # these depend on who else maps the libraries
        ("peak_charged_bytes", (1.2e9, 1.2e9, 1.2e9), (1.3e9,), None, "told only"),
        ("peak_pss_bytes", (79e6,), (89.1e6,), None, "told only"),
        ("peak_anonymous_bytes", (1.1e8,), (1.8e8,), None, "told only"),  # glibc's heap alone does that
        # the same in every run
        ("kl_mean", (0.1,), (0.2,), True, None),
        ("kl_mean", (0.0,), (0.3,), True, None),
        ("kl_mean", (6.5e-11,), (7e-11,), False, None),  # more than 5 %, and nothing at all
        ("kl_p99", (6.5e-11,), (2e-6,), True, None),
        ("golden_pass_rate", (0.0,), (0.5,), False, None),
        ("decode_major_faults", (0, 0, 0), (100_000, 100_000, 100_000), None, "from zero"),
    ],
)
def test_regressions(
    name: str, before: tuple[float, ...], after: tuple[float, ...], regressed: bool | None, why: str | None
) -> None:
    change = change_of(name, before, after)
    assert (change.regressed, change.unjudged) == (regressed, why)


def test_a_threshold_makes_a_metric_a_judged_one() -> None:
    before, after = (100, 101, 102), (200, 201, 202)
    assert change_of("itl_p99_ms", before, after, judged=["itl_p99_ms"]).regressed
    assert change_of("ttft_ms@128", before, after, judged=["ttft_ms"]).regressed  # the shortest prompt


def test_the_limit_of_student_is_the_one_of_the_tables() -> None:
    exact = {4: 3.747, 5: 3.365, 6: 3.143, 8: 2.896, 18: 2.552}
    assert [student_limit(freedom) for freedom in exact] == pytest.approx(list(exact.values()), rel=0.002)


def test_false_alarms_are_few_and_slowdowns_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    noise = importlib.import_module("baseline_noise")
    assert noise.false_alarm_share(800, 3, 0.1) < 0.065  # 4.6 % and its own chance
    assert noise.false_alarm_share(400, 3, 0.1, asked=True) > 0.1  # why not every figure is judged
    assert noise.found_share(800, 3, 0.05, 1.3) > 0.9


def test_an_alarm_names_the_metric_before_and_after() -> None:
    before, after = report_with("cold_load_ms", 100, 101, 102), report_with("cold_load_ms", 200, 201, 202)
    report = judged(after, before)
    assert not report.verdict
    assert report.reasons[0].startswith("cold_load_ms was 101 ms and is 201 ms: 99.0 % worse, allowed are 5 %")
    assert report.checks[0].kind == "regression"


def test_what_is_worse_within_its_noise_is_not_called_no_worse() -> None:
    before = report_of(measured("cold_load_ms", [100, 101, 130]), measured("package_bytes", [10]))
    after = report_of(measured("cold_load_ms", [110, 120, 125]), measured("package_bytes", [10]))
    checks = checks_of(judged(after, before))
    unclear = checks["metrics within their noise"]
    assert unclear.passed is None
    assert unclear.text.endswith("not beyond their noise: cold_load_ms was 101 ms and is 120 ms: 18.8 % worse")
    assert checks["no regression"].text == (
        "no metric regressed beyond its noise (allowed 5 %; 1 judged, 1 not; base.json)"
    )
    # With nothing that could be judged nothing is said to be well.
    alone = checks_of(judged(report_of(after.metrics[0]), report_of(before.metrics[0])))
    assert [check.passed for check in alone.values()] == [None]


def test_from_zero_there_is_no_percentage() -> None:
    before, after = report_with("decode_major_faults", 0, 0, 0), report_with("decode_major_faults", *[100_000] * 3)
    report = judged(after, before)
    assert report.baseline is not None
    assert report.baseline.changes[0].change_percent is None
    (check,) = checks_of(report).values()
    assert check.passed is None and check.text.endswith("decode_major_faults was 0 and is 100,000")
    assert change_of("decode_major_faults", (0, 0, 0), (0, 0, 0)).change_percent == 0


def test_a_metric_that_vanished_is_a_failed_check() -> None:
    before = report_of(measured("package_bytes", [10]), measured("golden_pass_rate", [1]), measured("kl_mean", [0.1]))
    after = report_with("package_bytes", 10)
    report = judged(after, before)
    assert not report.verdict
    checks = checks_of(report)
    assert checks["golden_pass_rate is measured"].passed is False
    assert checks["golden_pass_rate is measured"].text == (
        "golden_pass_rate is in the baseline base.json and was not measured now: give the same file with --golden"
    )
    assert "--reference" in checks["kl_mean is measured"].text
    assert "no regression" not in checks
    # What was asked for and broke has a failed check that says so.
    given = QualityRequest(reference="checkpoint", golden=Path("golden.jsonl"))
    assert not checks_of(judged(after, before, given=given)).keys() & {
        "golden_pass_rate is measured", "kl_mean is measured",
    }  # fmt: skip


def test_other_lengths_may_be_missing_by_force() -> None:
    before = report_of(measured("package_bytes", [10]), measured("ttft_ms@16", [1]), measured("peak_pss_bytes", [1]))
    after = report_with("package_bytes", 10).model_copy(update={"prompt_tokens": (128,)})
    report = judged(after, before, forced=True)
    assert [name for name, check in checks_of(report).items() if check.passed is False] == [
        "peak_pss_bytes is measured"
    ]
    assert report.notes[-1].startswith("compared by force with a baseline of another kind: prompts: [16, 128, 1024]")


def test_what_differs_only_after_measuring_is_a_failed_check() -> None:
    before = report_with("cold_load_ms", 100, 101, 102)
    lost = LimitFacts(method="sampled", enforced=False, limit_bytes=before.limit.limit_bytes, why="gone after a run")
    after = before.model_copy(update={"limit": lost})
    report = judged(after, before)
    assert not report.verdict and report.baseline is None
    assert report.reasons == (
        "not comparable with base.json: limit enforced: True then, False now; use --force to compare all the same",
    )
    assert judged(after, before, forced=True).verdict


def test_a_limit_is_tried_before_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def limit(limit_bytes: int, *, enforce: bool) -> Iterator[MemoryLimit]:
        yield MemoryLimit(LimitFacts(method="sampled", enforced=False, limit_bytes=limit_bytes, why="none here"))

    monkeypatch.setattr(baselines, "memory_limit", limit)
    before = passing()
    asked = MeasureSettings(threads=4, prompt_tokens=(16, 128, 1024), new_tokens=64)
    facts = facts_expected(before.machine, before.subject, before.runtime, asked, before.limit.limit_bytes)
    with pytest.raises(EdgepackError, match=r"base\.json .*measurement: limit enforced: True then, False now; take"):
        require_comparable(Baseline("base.json", before, 5), facts)


def test_content_counts_and_not_names(tmp_path: Path) -> None:
    text, golden = tmp_path / "a.txt", tmp_path / "g.jsonl"
    text.write_text("some words")
    golden.write_text("{}")
    before = failing()
    assert before.quality is not None and before.golden is not None
    reference = _reference(tmp_path / "reference")
    quality = before.quality.model_copy(
        update={
            "reference_sha256": reference_fingerprint(reference),
            "text_sha256": texts_sha256([read_text(text)]),
        }
    )
    answers = before.golden.model_copy(update={"sha256": file_sha256(golden)})
    before = before.model_copy(update={"quality": quality, "golden": answers})
    given = QualityRequest(reference=str(reference), text=text.rename(tmp_path / "b.txt"), golden=golden)
    assert not differences(before, inputs_expected(before, given))
    (tmp_path / "b.txt").write_text("other words")
    golden.write_text("{ }")
    _change_one_weight(reference)
    assert list(differences(before, inputs_expected(before, given))) == ["reference", "texts", "golden file"]
    assert set(differences(before, inputs_expected(before, QualityRequest(reference=str(reference))))) == {
        "reference",
        "texts",
    }
    assert inputs_expected(before, QualityRequest()) == {}
    other = before.model_copy(update={"quality": quality.model_copy(update={"reference_dtype": "bfloat16"})})
    assert list(differences(before, facts_of(other))) == ["reference numbers"]
    assert not differences(before, facts_of(passing().model_copy(update={"limit": before.limit})))


def _reference(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"a": np.ones((64, 64), np.float32), "b": np.zeros(3, np.float32)}, folder / "model.safetensors")
    return folder


def _change_one_weight(folder: Path) -> None:
    weights = {name: values.copy() for name, values in load_file(folder / "model.safetensors").items()}
    weights["a"] += 0.5  # names, shapes and sizes stay
    save_file(weights, folder / "model.safetensors")


def test_the_builtin_texts_have_one_fingerprint() -> None:
    assert texts_sha256(builtin_texts()) == texts_sha256(builtin_texts())
    assert texts_sha256(builtin_texts()) != texts_sha256(builtin_texts()[1:])


def test_what_a_run_was_measured_against_is_known_before_the_next(tmp_path: Path) -> None:
    package, golden, before = tmp_path / "package", tmp_path / "golden.jsonl", tmp_path / "before.json"
    edgepack.export(DEMO, to="onnx", out=package, recipe="int8", context=128, threads=1)
    golden.write_text('{"prompt": "Once", "max_new_tokens": 2, "must_not_contain": ["never"], "may_be_empty": true}')
    asked: dict[str, Any] = {"threads": 1, "repeat": 1, "prompt_tokens": 16, "new_tokens": 2}
    report = edgepack.validate(package, reference=package, golden=golden, **asked)
    before.write_text(report.model_dump_json())
    expected = inputs_expected(report, QualityRequest(reference=str(package), golden=golden))
    assert expected == {name: facts_of(report)[name] for name in ("reference", "texts", "golden file")}
    golden.write_text('{"prompt": "Twice", "max_new_tokens": 2, "must_not_contain": ["never"], "may_be_empty": true}')
    phases: list[Progress] = []
    with pytest.raises(EdgepackError, match=r"golden file: .*golden\.jsonl \(sha256 .*then, .*golden\.jsonl .* now;"):
        edgepack.validate(package, golden=golden, baseline=before, on_phase=phases.append, **asked)
    assert [progress.phase for progress in phases] == ["verify"]


@pytest.mark.parametrize("figure", ["NaN", "Infinity", "-Infinity"])
def test_figures_that_are_no_numbers_are_refused(tmp_path: Path, figure: str) -> None:
    file = tmp_path / "base.json"
    document = json.loads(report_with("cold_load_ms", 100, 101, 102).model_dump_json())
    document["metrics"][0]["values"][1] = float(figure.replace("Infinity", "inf"))
    file.write_text(json.dumps(document))
    assert figure in file.read_text()
    with pytest.raises(EdgepackError, match=r"base\.json: the metric cold_load_ms is -?(nan|inf), no finite") as caught:
        load_report(file)
    assert "\n" not in str(caught.value)


def test_a_baseline_has_figures_of_a_whole_run(tmp_path: Path) -> None:
    file = tmp_path / "base.json"
    for report, message in (
        (report_of(), "has no metrics to compare with"),
        (failing(), r"is of a package that did not run \(run 3 failed\)"),
        (report_of(measured("package_bytes", [1]).model_copy(update={"name": "speed"})), "'speed' is no metric"),
    ):
        file.write_text(report.model_dump_json())
        with pytest.raises(EdgepackError, match=message):
            load_baseline(file)
    file.write_text(passing().model_dump_json())
    assert load_baseline(file) == passing()


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
