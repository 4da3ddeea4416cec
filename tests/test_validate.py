"""Validation: a real run of a tiny package, and every way in which a run can end."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import psutil
import pytest

import edgepack
from edgepack.errors import EdgepackError, PackageError
from edgepack.package import list_files, open_package, write_manifest
from edgepack.validation import Report, validate, worker
from edgepack.validation.job import Job
from edgepack.validation.memory import MemorySample, parse_status, sample_memory
from edgepack.validation.supervisor import WorkerRun, supervise
from tests.tiny import save

JOB = Job(package="pkg", runtime="onnx", threads=1, prompt_tokens=4, new_tokens=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("validate")
    save("shared", root / "checkpoint")
    edgepack.export(root / "checkpoint", to="onnx", out=root / "package", recipe="int8", context=64, target="1GB")
    return root


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    result: Report = edgepack.validate(folder / "package", threads=1)
    return result


def test_a_package_that_fits(report: Report) -> None:
    assert report.verdict
    assert report.target is not None
    assert report.target.name == "1GB"
    assert "is within the target 1GB (1,000,000,000 bytes)" in report.reasons[0]
    assert (report.context_tokens, report.prompt_tokens, report.new_tokens, report.threads) == (64, 32, 32, 1)
    assert "the prompt was cut from 128 to 32 tokens: the context is 64" in report.notes


def test_times_are_plausible(report: Report) -> None:
    assert report.first_load_ms is not None and report.load_ms is not None
    assert 0 < report.load_ms < 60_000
    assert report.first_load_ms > report.load_ms  # the first one also builds the cache
    assert report.ttft_ms is not None and report.prefill_tokens_per_s is not None
    assert report.ttft_ms >= 1e3 * report.prompt_tokens / report.prefill_tokens_per_s
    assert report.decode_tokens_per_s is not None and report.decode_tokens_per_s > 1
    assert report.decode_mean_tokens_per_s is not None and report.decode_mean_tokens_per_s > 1
    assert report.verify_ms > 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what a resident set is made of")
def test_memory_is_split_and_adds_up(report: Report) -> None:
    assert [sample.phase for sample in report.phases] == ["start", "load", "prefill", "decode"]
    for sample in report.phases:
        assert sample.anonymous_bytes is not None and sample.file_bytes is not None and sample.shared_bytes is not None
        assert sample.anonymous_bytes + sample.file_bytes + sample.shared_bytes == sample.rss_bytes
    assert report.peak is not None and report.peak_rss_bytes is not None and report.peak_anonymous_bytes is not None
    assert report.peak.rss_bytes == max(sample.rss_bytes for sample in report.phases)
    assert report.peak_rss_bytes >= report.peak.rss_bytes
    assert report.peak_anonymous_bytes == max(sample.most_anonymous_bytes or 0 for sample in report.phases)
    assert 20e6 < report.peak_anonymous_bytes < report.peak_rss_bytes < 500e6


def test_the_plan_stands_beside_the_measurement(report: Report) -> None:
    assert report.plan is not None
    assert report.plan.context_tokens == 64
    assert report.plan.total.measured_bytes == report.peak_rss_bytes
    planned, measured = report.plan.total.planned_bytes, report.plan.total.measured_bytes
    assert report.plan.total.difference_percent == pytest.approx(100 * (measured / planned - 1))
    assert report.plan.anonymous is not None and report.plan.file is not None
    assert report.plan.anonymous.planned_bytes + report.plan.file.planned_bytes == planned


def test_the_machine_is_named_and_json_keeps_everything(report: Report) -> None:
    assert report.machine.cpu
    assert report.machine.cores >= 1
    assert {"python", "numpy", "onnxruntime"} <= report.machine.versions.keys()
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_a_package_that_does_not_fit(folder: Path) -> None:
    report = validate(folder / "package", target="1MB", prompt_tokens=8, new_tokens=4, threads=1)
    assert not report.verdict
    assert report.reasons[0].startswith("peak RSS ")
    assert "is over the target 1MB (1,000,000 bytes) by " in report.reasons[0]
    assert any("the plan for the whole context of 64 tokens" in note for note in report.notes)
    assert report.decode_tokens_per_s is not None  # the figures are there all the same


def test_a_worker_that_is_killed(folder: Path) -> None:
    def kill_in(phase: str) -> None:
        if phase == "prefill":
            for child in psutil.Process().children():
                if "edgepack.validation.worker" in child.cmdline():
                    child.kill()

    report = validate(folder / "package", threads=1, on_phase=kill_in)
    assert not report.verdict
    assert report.reasons[0].startswith("killed by signal 9 (SIGKILL)")
    assert report.reasons[0].endswith("in phase prefill")
    assert report.load_ms is not None
    assert report.prefill_tokens_per_s is None or report.decode_tokens_per_s is None
    assert report.plan is None


def test_a_worker_that_takes_too_long(folder: Path) -> None:
    report = validate(folder / "package", threads=1, timeout_s=0.05)
    assert not report.verdict
    assert report.reasons[0].startswith("the first load, which prepares the runtime's cache, did not work: ")
    assert report.reasons[0].endswith("stopped in phase start: no result within 0.05 s")
    assert (report.load_ms, report.peak, report.phases) == (None, None, ())


def test_a_changed_file_is_refused(folder: Path, tmp_path: Path) -> None:
    package = _copy(folder / "package", tmp_path / "package")
    graph = open_package(package).file("decoder")
    graph.write_bytes(bytes(graph.stat().st_size))
    with pytest.raises(PackageError, match="was changed: its sha256 is not the manifest's"):
        validate(package)


def test_a_graph_that_the_runtime_does_not_take_is_refused(folder: Path, tmp_path: Path) -> None:
    package = _copy(folder / "package", tmp_path / "package")
    opened = open_package(package)
    graph = opened.file("decoder")
    graph.write_bytes(b"\xff" * graph.stat().st_size)
    write_manifest(package, opened.manifest.model_copy(update={"files": list_files(package, 1)}))
    with pytest.raises(EdgepackError, match="weights cannot be prepacked") as caught:
        validate(package)
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
        ({"prompt_tokens": 0}, "prompt_tokens is 0: expected at least 1"),
        ({"new_tokens": -1}, "new_tokens is -1: expected at least 1"),
        ({"threads": 0}, "threads is 0: expected at least 1"),
        ({"timeout_s": 0.0}, "timeout_s is 0: expected more than 0 seconds"),
        ({"target": "watch"}, "target 'watch' is not understood"),
        ({"runtime": "abacus"}, "runtime 'abacus' is not known"),
    ],
)
def test_wrong_arguments_are_refused(folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgepackError, match=message):
        validate(folder / "package", **arguments)


# A worker in a few lines: `send` and `wait` speak the protocol, the rest is the way it ends.
SCRIPT = """
import json, os, signal, subprocess, sys, time
sys.stdin.readline()
def send(**message): print(json.dumps(message), flush=True)
send(begin="load")
send(end="load", load_ms=1.5)
sys.stdin.readline()
send(begin="prefill")
"""


def run_script(ending: str, timeout_s: float = 20.0) -> WorkerRun:
    return supervise([sys.executable, "-c", SCRIPT + ending], JOB, timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("ending", "failure"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by signal 11 (SIGSEGV) in phase prefill"),
        ("sys.stderr.write('first\\nlast words\\n'); sys.exit(3)", "exited with code 3 in phase prefill: last words"),
        (
            "send(error='RuntimeError: bad', ours=False); sys.exit(1)",
            "failed in phase prefill: RuntimeError: bad",
        ),
    ],
)
def test_every_end_has_its_words(ending: str, failure: str) -> None:
    run = run_script(ending)
    assert run.failure == failure
    assert run.figures == {"load_ms": 1.5}
    assert run.refused is None
    assert "load" in run.memory.largest


def test_our_own_error_is_told_apart() -> None:
    assert run_script("send(error='no such runtime', ours=True); sys.exit(1)").refused == "no such runtime"


def test_a_good_end() -> None:
    run = run_script("send(end='prefill', prefill_ms=2.5); sys.stdin.readline()")
    assert (run.failure, run.phase, run.figures) == (None, "prefill", {"load_ms": 1.5, "prefill_ms": 2.5})


def test_a_hanging_worker_and_its_children_are_stopped(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    sleeper = (
        f"child = subprocess.Popen(['sleep', '60']); open({str(note)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    start = perf_counter()
    run = run_script(sleeper, timeout_s=1.0)
    assert perf_counter() - start < 10
    assert run.failure == "stopped in phase prefill: no result within 1 s"
    child, end = int(note.read_text()), perf_counter() + 10  # a killed process is gone soon, not at once
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert perf_counter() < end


def test_a_worker_that_closes_its_output_and_stays_is_stopped() -> None:
    run = run_script("os.close(1); time.sleep(60)", timeout_s=0.5)
    assert run.failure == "stopped in phase prefill: no result within 0.5 s"


def test_logits_that_are_not_finite_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        vocab_size = 8

        def __enter__(self) -> Silent:
            return self

        def __exit__(self, *_: object) -> None: ...

        def reset(self) -> None: ...

        def prefill(self, token_ids: list[int]) -> Any:
            assert len(token_ids) == JOB.prompt_tokens
            return np.full(8, np.nan, np.float32)

    class Log:
        def begin(self, phase: str) -> None: ...

        def end(self, phase: str, **figures: Any) -> None: ...

    monkeypatch.setattr(edgepack, "load", lambda *_, **__: Silent(), raising=False)
    with pytest.raises(FloatingPointError, match="not finite"):
        worker.run(JOB, Log())  # type: ignore[arg-type]


STATUS = """Name:\tpython
State:\tR (running)
Pid:\t42
VmPeak:\t 4000000 kB
VmHWM:\t    3000 kB
VmRSS:\t    2500 kB
RssAnon:\t    1000 kB
RssFile:\t    1400 kB
RssShmem:\t     100 kB
Threads:\t3
"""


def test_status_counts_kibibytes() -> None:
    assert parse_status(STATUS) == MemorySample(
        rss_bytes=2_560_000,
        anonymous_bytes=1_024_000,
        file_bytes=1_433_600,
        shared_bytes=102_400,
        peak_rss_bytes=3_072_000,
    )


def test_status_of_an_ended_process_and_of_an_old_kernel() -> None:
    assert parse_status("Name:\tpython\nState:\tZ (zombie)\nThreads:\t1\n") is None
    assert parse_status("VmRSS:\t 10 kB\n") == MemorySample(rss_bytes=10_240)


def test_memory_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack.validation.memory.HAS_PROC", False)
    sample = sample_memory(os.getpid())
    assert sample is not None
    assert sample.rss_bytes > 1_000_000
    assert (sample.anonymous_bytes, sample.peak_rss_bytes) == (None, None)


def test_memory_of_a_process_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    child = psutil.Popen([sys.executable, "-c", ""])
    child.wait()
    assert sample_memory(child.pid) is None
    monkeypatch.setattr("edgepack.validation.memory.HAS_PROC", False)
    assert sample_memory(child.pid) is None
