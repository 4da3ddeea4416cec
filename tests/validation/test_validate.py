"""Validation: a real run of a tiny package, and every way in which a run can end."""

from __future__ import annotations

import html
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

import edgepack
from edgepack.cli.validating.validate import print_report
from edgepack.errors import EdgepackError, PackageError
from edgepack.package.folder import list_files, open_package, write_manifest
from edgepack.report.html import render_html
from edgepack.report.junit import render_junit
from edgepack.report.markdown import render_markdown
from edgepack.validation import answers as quality_run
from edgepack.validation import run as running
from edgepack.validation.figures import bandwidth
from edgepack.validation.figures import schedule as measuring
from edgepack.validation.metrics import find_metric
from edgepack.validation.processes.job import WorkerJob
from edgepack.validation.processes.protocol import FailedRunError
from edgepack.validation.processes.supervisor import WorkerRun
from edgepack.validation.progress import Progress
from edgepack.validation.records import Load
from edgepack.validation.result import Report
from edgepack.validation.verdict import notes
from tests.support.report_sample import failing
from tests.support.tiny import TinyPackages, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("validate")
    save("shared", root / "checkpoint")
    edgepack.export(root / "checkpoint", to="onnx", out=root / "package", recipe="int8", context=64, target="1GB")
    return root


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    result: Report = edgepack.validate(folder / "package", threads=1, repeat=1)
    return result


def quick(folder: Path, **arguments: Any) -> Report:
    """A validation with one repetition and few tokens."""
    chosen: dict[str, Any] = {"threads": 1, "repeat": 1, "prompt_tokens": 32, "new_tokens": 4} | arguments
    return edgepack.validate(folder / "package", **chosen)


def test_a_package_that_fits(report: Report) -> None:
    assert report.verdict
    assert report.target is not None
    assert report.target.name == "1GB"
    assert "1GB (1,000,000,000 bytes)" in report.reasons[0]
    assert (report.prompt_tokens, report.new_tokens, report.threads, report.repetitions) == ((32,), 32, 1, 1)
    assert report.subject.context_tokens == 64
    assert "the answer was cut from 128 to 32 tokens: the context is 64" in report.notes


def test_every_figure_is_there(report: Report) -> None:
    metrics = {metric.name: metric for metric in report.metrics}
    assert {
        "package_bytes", "peak_rss_bytes", "first_load_ms", "cold_load_ms", "warm_load_ms", "warm_up_ms", "ttft_ms@32",
        "prefill_tokens_per_s@32", "decode_tokens_per_s", "itl_p50_ms", "itl_p95_ms", "itl_p99_ms",
    } <= metrics.keys()  # fmt: skip
    assert all(metric.lowest <= metric.median <= metric.highest for metric in report.metrics)
    steps = report.decode_steps_ms["decode"]
    assert len(steps) == 32
    assert metrics["decode_tokens_per_s"].median == pytest.approx(1e3 * len(steps) / sum(steps), rel=0.01)
    assert metrics["itl_p50_ms"].median <= metrics["itl_p95_ms"].median <= metrics["itl_p99_ms"].median
    assert metrics["package_bytes"].median == sum(
        entry.size_bytes for entry in open_package(report.subject.path).manifest.files
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what a resident set is made of")
def test_memory_is_split_and_adds_up(report: Report) -> None:
    assert [process.purpose for process in report.processes] == ["first load", "cold load 1", "run 1"]
    run = report.processes[-1]
    assert [phase.phase for phase in run.phases] == ["start", "load", "warm-up", "prefill 32", "decode"]
    for phase in run.phases:
        assert phase.anonymous_bytes is not None and phase.file_bytes is not None and phase.shared_bytes is not None
        assert phase.anonymous_bytes + phase.file_bytes + phase.shared_bytes == phase.rss_bytes
        assert phase.start_ms <= phase.end_ms
    assert run.peak_rss_bytes is not None
    assert run.peak_rss_bytes == max(phase.peak_rss_bytes for phase in run.phases)
    assert all(phase.peak_rss_bytes >= phase.rss_bytes for phase in run.phases)
    assert max(moment.rss_bytes for moment in run.timeline) == max(phase.rss_bytes for phase in run.phases)
    assert run.phases[-1].pss_bytes is not None and run.phases[-1].major_faults is not None


def test_the_plan_stands_beside_the_measurement(report: Report) -> None:
    assert report.plan is not None
    assert report.plan.filled_tokens == 64
    peak = find_metric(report.metrics, "peak_rss_bytes")
    assert peak is not None and report.plan.total.measured_bytes == peak.figure
    planned, measured = report.plan.total.planned_bytes, report.plan.total.measured_bytes
    assert report.plan.total.difference_percent == pytest.approx(100 * (measured / planned - 1))
    assert sum(part.planned_bytes for part in report.plan.components) == planned


def test_the_machine_is_named_and_json_keeps_everything(report: Report) -> None:
    assert report.machine.cpu
    assert report.machine.cores >= 1
    assert {"python", "numpy", "onnxruntime"} <= report.machine.versions.keys()
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_a_package_that_does_not_fit(folder: Path) -> None:
    report = quick(folder, target="1MB", enforce_limit=False)
    assert not report.verdict
    assert report.reasons[0].startswith("peak RSS ")
    assert "is over the target 1MB (1,000,000 bytes) by " in report.reasons[0]
    assert report.notes[0].startswith("limit not enforced")
    assert any("the plan for the whole context of 64 tokens" in note for note in report.notes)
    assert find_metric(report.metrics, "decode_tokens_per_s") is not None  # the figures are there all the same


def test_a_machine_that_is_not_quiet_is_called_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = bandwidth.measure_bandwidth(1)
    rates = iter([25e9, 26e9, 25e9, 43.5e9])

    def read(threads: int) -> bandwidth.Bandwidth:
        return reading.model_copy(update={"threads": threads, "median_bytes_per_s": next(rates)})

    monkeypatch.setattr(measuring, "measure_bandwidth", read)
    monkeypatch.setattr(measuring, "load_between", lambda before, after: None)
    quiet, loud = (quick(folder, repeat=2) for _ in range(2))
    assert quiet.memory_read_bytes_per_s == (25e9, 26e9)
    assert not any("quiet" in note for note in quiet.notes)
    assert any("it read its own memory at 25.0 GB/s to 43.5 GB/s" in note for note in loud.notes)
    monkeypatch.setattr(measuring, "load_between", lambda before, after: Load(others_share=0.46, steal_share=0.0))
    rates = iter([25e9])
    busy = quick(folder)
    assert busy.load == Load(others_share=0.46, steal_share=0.0)
    assert any("other processes took 46.0 % of its cores' time" in note for note in busy.notes)


def test_an_answer_that_ends_early_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes, "fewest_steps", lambda measurement: {"decode": 2, "long decode": 0})
    told = quick(folder).notes
    assert (
        "the model ended an answer in phase decode after 2 of 4 tokens: decode_tokens_per_s is of fewer steps" in told
    )
    assert (
        "the model ended an answer in phase long decode after 0 of 4 tokens: long_decode_tokens_per_s was not measured"
    ) in told


@pytest.mark.parametrize(
    ("threshold", "missing"),
    [
        ("golden_pass_rate >= 90%", "golden answers: give --golden FILE"),
        ("kl_mean <= 1", "a reference: give --reference with a checkpoint or a package"),
        ("kl_mean@hindi <= 1", "a reference: give --reference with a checkpoint or a package"),
        ("ttft_ms@9999 <= 1s", "a prompt of 9999 tokens: those are of 32; give --prompt-tokens"),
        ("long_decode_tokens_per_s >= 1", "a second, longer prompt: give --prompt-tokens with two lengths"),
    ],
)
def test_a_threshold_on_what_is_not_measured_is_refused_before(
    folder: Path, threshold: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(running, "measure")  # would be called too late
    with pytest.raises(EdgepackError, match=f"^threshold .* needs {re.escape(missing)}"):
        quick(folder, thresholds=[threshold])


def test_a_worker_that_is_killed(folder: Path) -> None:
    def kill_in(progress: Progress) -> None:
        if progress.phase == "run 1: prefill 32":
            for child in psutil.Process().children():
                if "edgepack.validation.processes.worker" in child.cmdline():
                    child.kill()

    report = quick(folder, on_phase=kill_in, new_tokens=32)
    assert not report.verdict
    assert report.reasons[0].startswith("killed by signal 9 (SIGKILL)")
    assert report.reasons[0].endswith("in phase prefill 32 (run 1)")
    assert find_metric(report.metrics, "warm_load_ms") is not None
    assert find_metric(report.metrics, "itl_p50_ms") is None
    assert report.plan is None


def ask_everything(folder: Path, report: Report, scratch: Path) -> dict[str, Any]:
    """Arguments that ask for every kind of check."""
    (scratch / "golden.jsonl").write_text('{"prompt": "Once", "max_new_tokens": 2, "must_not_contain": ["never"]}')
    machine = report.model_copy(update={"prompt_tokens": (32,), "new_tokens": 4})
    (scratch / "before.json").write_text(machine.model_dump_json())
    limits = ["itl_p95_ms <= 9s", "peak_rss_bytes <= 900MB", "kl_p99 <= 2", "golden_pass_rate >= 50%"]
    return {
        "thresholds": [*limits, "package_bytes <= 1GB"],
        "reference": folder / "package",
        "golden": scratch / "golden.jsonl",
        "baseline": scratch / "before.json",
        "max_regression": "8%",
        "force": True,
    }


@pytest.mark.parametrize("purpose", ["first load", "cold load 1", "run 1"])
def test_what_was_asked_of_a_package_that_dies_is_in_every_face(
    folder: Path, report: Report, tmp_path: Path, purpose: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    supervise = measuring.supervise

    def dying(command: list[str], job: WorkerJob, **options: Any) -> WorkerRun:
        doomed = {"first load": job.rebuild_cache, "run 1": bool(job.steps)}
        if doomed.get(purpose, not job.rebuild_cache and not job.steps):
            return supervise([sys.executable, "-S", "-c", "raise SystemExit(3)"], job, **options)
        return supervise(command, job, **options)

    monkeypatch.setattr(measuring, "supervise", dying)
    died = quick(folder, target="700MB", **ask_everything(folder, report, tmp_path))
    assert not died.verdict and died.reasons[0].startswith("exited with code 3 in phase start")
    failed = {check.name: check.text for check in died.checks if check.passed is False}
    assert failed.keys() == {
        "every process comes to its end", "memory within 700MB", "peak_rss_bytes <= 900 MB", "itl_p95_ms <= 9,000 ms",
        "comparison with the reference", "golden answers", "kl_p99 <= 2.00 nats", "golden_pass_rate >= 50.0 %",
        "no regression",
    }  # fmt: skip
    assert [check.name for check in died.checks if check.passed] == ["package_bytes <= 1.00 GB"]
    ended = f"{purpose} did not come to its end"
    assert all(ended in text for name, text in failed.items() if name != "every process comes to its end")
    print_report(died)
    page = re.sub("<[^>]*>", "", render_html(died))
    faces = (render_markdown(died).replace("\\", ""), render_junit(died), page, died.model_dump_json())
    for text in (capsys.readouterr().out, *(html.unescape(face) for face in faces)):
        assert all(said in text for said in failed.values())


def test_a_part_of_the_quality_that_breaks_off_fails_its_thresholds_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, report: Report, tmp_path: Path
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise FailedRunError("the package did not run: killed")

    monkeypatch.setattr(quality_run, "compare_quality", broken)
    asked = ask_everything(folder, report, tmp_path)
    (tmp_path / "golden.jsonl").write_text('{"prompt": "x", "must_match": ".*", "may_be_empty": true}')
    monkeypatch.setattr(quality_run, "run_golden", lambda *_, **__: failing().golden)
    found = {check.name: check for check in quick(folder, **asked).checks}
    assert found["kl_p99 <= 2.00 nats"].text.startswith("kl_p99 was not measured: the comparison with the reference br")
    assert found["golden_pass_rate >= 50.0 %"].text.endswith("33.3 % misses the limit >= 50.0 %")
    assert found["itl_p95_ms <= 9,000 ms"].passed and found["peak_rss_bytes <= 900 MB"].passed


def test_a_killed_package_is_told_what_would_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supervise = measuring.supervise

    def killed(command: list[str], job: WorkerJob, **options: Any) -> WorkerRun:
        run = supervise([sys.executable, "-S", "-c", ""], job, **options)
        run.failure, run.at_limit = "killed at 90,000,000 bytes", True
        return run

    monkeypatch.setattr(measuring, "supervise", killed)
    plan = open_package(folder / "package").manifest.plan
    report = quick(folder, target=str(plan.total_bytes - 1))
    assert report.reasons[0].startswith("killed at 90,000,000 bytes")
    assert report.advice is not None and report.advice.suggestions
    said = report.advice.text
    assert f"--to onnx --recipe {report.advice.suggestions[0].recipe} --context" in said
    assert said in html.unescape(render_html(report)) and said in html.unescape(render_junit(report))
    assert said in html.unescape(render_markdown(report)).replace("\\", "")


def test_a_first_run_judges_everything_but_the_regression(folder: Path, tmp_path: Path) -> None:
    gone = tmp_path / "main.json"
    report = quick(folder, baseline=gone, baseline_missing="ok", max_regression="2%")
    assert report.verdict and report.baseline is None
    (check,) = (check for check in report.checks if check.kind == "regression")
    assert check.passed is None and check.text.startswith(f"first run: {str(gone)!r} is not there yet")
    gone.write_text(report.model_dump_json())
    assert quick(folder, baseline=gone, baseline_missing="ok", max_regression="900%").baseline is not None


def test_a_worker_that_takes_too_long(folder: Path) -> None:
    report = quick(folder, timeout_s=0.05)
    assert not report.verdict
    assert report.reasons[0].startswith("stopped in phase start: no result within 0.05 s")
    assert "(the first load, which prepares the runtime's cache, did not work)" in report.reasons[0]
    assert find_metric(report.metrics, "warm_load_ms") is None


@pytest.mark.parametrize(
    ("threshold", "kind"), [("decode_tokens_per_s >= 1000000", "latency"), ("peak_rss_bytes <= 1MB", "ram")]
)
def test_a_missed_threshold_is_the_first_reason(folder: Path, threshold: str, kind: str) -> None:
    report = quick(folder, thresholds=[threshold])
    assert not report.verdict
    assert report.checks[0].kind == kind and report.checks[0].passed is False
    assert threshold.split()[0] in report.reasons[0] and "misses the limit" in report.reasons[0]


def test_a_regression_is_the_reason(folder: Path, report: Report, tmp_path: Path) -> None:
    smaller = [
        metric.model_copy(update={"figure": metric.figure / 2}) if metric.name == "package_bytes" else metric
        for metric in report.metrics
    ]
    before = tmp_path / "before.json"
    before.write_text(report.model_copy(update={"metrics": tuple(smaller)}).model_dump_json())
    again = quick(folder, target="1GB", baseline=before, new_tokens=128, prompt_tokens=None)
    assert not again.verdict
    assert again.reasons[0].startswith("package_bytes was ") and "100.0 % worse" in again.reasons[0]


def test_a_baseline_of_another_machine_is_refused_before_measuring(
    folder: Path, report: Report, tmp_path: Path
) -> None:
    before = tmp_path / "before.json"
    machine = report.machine.model_copy(update={"cpu": "abacus"})
    before.write_text(report.model_copy(update={"machine": machine}).model_dump_json())
    phases: list[Progress] = []
    with pytest.raises(EdgepackError, match=r"CPU: abacus then, .* now.*--force"):
        quick(folder, baseline=before, on_phase=phases.append)
    assert [progress.phase for progress in phases] == ["verify"]


def test_a_changed_file_is_refused(folder: Path, tmp_path: Path) -> None:
    package = _copy(folder / "package", tmp_path / "package")
    graph = open_package(package).file("decoder")
    graph.write_bytes(bytes(graph.stat().st_size))
    with pytest.raises(PackageError, match="was changed: its sha256 is not the manifest's"):
        edgepack.validate(package)


def test_a_graph_that_the_runtime_does_not_take_is_refused(folder: Path, tmp_path: Path) -> None:
    package = _copy(folder / "package", tmp_path / "package")
    opened = open_package(package)
    graph = opened.file("decoder")
    graph.write_bytes(b"\xff" * graph.stat().st_size)
    write_manifest(package, opened.manifest.model_copy(update={"files": list_files(package, 1)}))
    with pytest.raises(EdgepackError, match="is no ONNX graph") as caught:
        edgepack.validate(package)
    assert "\n" not in str(caught.value)


def _copy(source: Path, target: Path) -> Path:
    """Copy by hard link would change the original when a test writes: copy the bytes."""
    for file in source.rglob("*"):
        if file.is_file():
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_tokens": 0}, "prompt_tokens is 0: expected a list of whole numbers of at least 1, such as"),
        ({"threads": 0}, "threads is 0: expected 1"),
        ({"timeout_s": 0.0}, "timeout_s is 0: expected more than 0 seconds"),
        ({"thresholds": ["speed >= 1"]}, "'speed' is no metric: expected one of package_bytes"),
        ({"max_regression": "much"}, "max_regression 'much' is not understood"),
        ({"max_regression": "4%"}, "max_regression is for the comparison with a baseline, and none was given"),
        ({"baseline_missing": "yes"}, "baseline_missing is 'yes': expected \"ok\" for a first run"),
        ({"baseline": "/no/such/file"}, "baseline /no/such/file cannot be read"),
        ({"target": "watch"}, "target 'watch' is not understood"),
        ({"runtime": "abacus"}, "runtime 'abacus' is not known"),
    ],
)
def test_wrong_arguments_are_refused(folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgepackError, match=message):
        edgepack.validate(folder / "package", **arguments)


def test_weights_that_were_changed_are_refused_before_anything_is_measured(
    tiny_packages: TinyPackages, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_packages("shared").package.path, tmp_path / "package"))
    file = max(folder.rglob("*_data"), key=lambda path: path.stat().st_size)
    with file.open("r+b") as opened:
        opened.write(b"other")
    with pytest.raises(PackageError, match="was changed: its sha256 is not the manifest's"):
        edgepack.validate(folder, threads=1)
