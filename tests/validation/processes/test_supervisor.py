"""Every way in which a worker can end, and what is said of it; the worker's own side of the talk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter, sleep
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from edgepack.validation.processes import worker
from edgepack.validation.processes.job import DECODE, LONG_DECODE, Step, WorkerJob, plan_steps
from edgepack.validation.processes.limit import V1, MemoryLimit
from edgepack.validation.processes.memory import MemoryWatch
from edgepack.validation.processes.supervisor import supervise, worker_command
from edgepack.validation.result import LimitFacts
from edgepack_runtimes.base import TokenRuntime
from tests.support.scripted import JOB, run_script


@pytest.mark.parametrize(
    ("ending", "failure"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by signal 11 (SIGSEGV) in phase prefill 4"),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            (
                "killed by signal 9 (SIGKILL), which is how a system that is out of memory ends a process, "
                "in phase prefill 4"
            ),
        ),
        ("os.kill(os.getpid(), 40)", "killed by signal 40 in phase prefill 4"),
        ("sys.stderr.write('first\\nlast words\\n'); sys.exit(3)", "exited with code 3 in phase prefill 4: last words"),
        ("os._exit(7)", "exited with code 7 in phase prefill 4"),
        ("send(error='RuntimeError: bad', ours=False); sys.exit(1)", "failed in phase prefill 4: RuntimeError: bad"),
        # Half a line is no message.
        (
            'sys.stdout.write(\'{"begin": "dec\'); sys.stdout.flush(); os._exit(5)',
            "exited with code 5 in phase prefill 4",
        ),
        # An error counts, whatever the exit code says.
        ("send(error='bad', ours=False)", "failed in phase prefill 4: bad"),
    ],
)
def test_every_end_has_its_words(ending: str, failure: str) -> None:
    run = run_script(ending)
    assert run.failure == failure
    assert run.figures == {"load": {"load_ms": 1.5}}
    assert (run.refused, run.at_limit) == (None, False)


def test_our_own_error_is_told_apart() -> None:
    run = run_script("send(error='no such runtime', ours=True); sys.exit(1)")
    assert run.refused == "no such runtime"
    assert run.failure == "failed in phase prefill 4: no such runtime"


def test_a_good_end() -> None:
    phases: list[str] = []
    run = run_script("send(end='prefill 4', prefill_ms=2.5); assert wait()", on_phase=phases.append)
    assert (run.failure, run.refused, run.phase) == (None, None, "prefill 4")
    assert run.figures == {"load": {"load_ms": 1.5}, "prefill 4": {"prefill_ms": 2.5}}
    assert phases == ["load", "prefill 4"]


def test_noise_before_the_first_message_is_no_message() -> None:
    assert run_script("print('welcome', flush=True); send(end='prefill 4')").failure is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what memory is made of")
def test_memory_is_watched_phase_by_phase() -> None:
    run = run_script("held = bytearray(b'x' * 30_000_000); send(end='prefill 4'); wait()")
    load, prefill = run.memory.phases()[-2:]
    assert [phase.phase for phase in run.memory.phases()] == ["start", "load", "prefill 4"]
    assert load.anonymous_bytes is not None and prefill.anonymous_bytes is not None
    assert prefill.anonymous_bytes - load.anonymous_bytes > 25_000_000
    assert prefill.start_ms >= load.end_ms
    assert load.pss_bytes is not None and load.major_faults is not None
    assert run.mappings.keys() == {"load", "prefill 4"}
    assert run.mappings["prefill 4"].anonymous_bytes - run.mappings["load"].anonymous_bytes > 25_000_000
    assert run.memory.peak_rss_bytes is not None and run.memory.peak_rss_bytes >= prefill.rss_bytes
    assert run.memory.timeline()[0].time_ms < run.memory.timeline()[-1].time_ms


def test_a_hanging_worker_and_its_children_are_stopped(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    sleeper = (
        f"child = subprocess.Popen(['sleep', '60']); open({str(note)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    start = perf_counter()
    run = run_script(sleeper, timeout_s=1.5)
    assert perf_counter() - start < 30
    assert run.failure == "stopped in phase prefill 4: no result within 1.5 s"
    child, end = int(note.read_text()), perf_counter() + 10  # a killed process is gone soon, not at once
    while _alive(child):
        assert perf_counter() < end


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_children_of_a_worker_that_ended_well_are_stopped(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    run = run_script(
        "child = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL); "
        f"open({str(note)!r}, 'w').write(str(child.pid))"
    )
    assert run.failure is None
    child, end = int(note.read_text()), perf_counter() + 10
    while _alive(child):
        assert perf_counter() < end


def test_a_worker_that_closes_its_output_and_stays_is_stopped() -> None:
    run = run_script("os.close(1); time.sleep(60)", timeout_s=1.0)
    assert run.failure == "stopped in phase prefill 4: no result within 1 s"


def limit_that_counts(folder: Path, method: str = "cgroup v1") -> MemoryLimit:
    """A limit whose group is a folder: the test plays the kernel."""
    (folder / V1.kills).write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    (folder / V1.usage).write_text("123456\n")
    facts = LimitFacts.model_validate({"method": method, "enforced": True, "limit_bytes": 2_000_000_000})
    return MemoryLimit(facts, ("/usr/bin/env", "IN=side"), folder, V1)


def test_a_kill_at_the_limit_names_the_limit(tmp_path: Path) -> None:
    limit = limit_that_counts(tmp_path)
    kill = f"open({str(tmp_path / V1.kills)!r}, 'w').write('oom_kill 3\\n'); os.kill(os.getpid(), 9)"
    run = run_script(kill, limit=limit)
    assert run.failure == "killed at 2,000,000,000 bytes (2.00 GB) in phase prefill 4"
    assert run.at_limit


def test_an_earlier_kill_is_not_this_one(tmp_path: Path) -> None:
    run = run_script("os.kill(os.getpid(), 9)", limit=limit_that_counts(tmp_path))
    assert not run.at_limit
    assert run.failure is not None and run.failure.startswith("killed by signal 9 (SIGKILL)")


def test_a_child_killed_at_the_limit_explains_the_workers_error(tmp_path: Path) -> None:
    limit = limit_that_counts(tmp_path)
    ending = f"open({str(tmp_path / V1.kills)!r}, 'w').write('oom_kill 3'); send(error='a child is gone', ours=True)"
    run = run_script(ending, limit=limit)
    assert run.failure == "killed at 2,000,000,000 bytes (2.00 GB) in phase prefill 4"


def test_a_child_killed_at_the_limit_is_a_failure_though_the_worker_goes_on(tmp_path: Path) -> None:
    limit = limit_that_counts(tmp_path)
    ending = f"open({str(tmp_path / V1.kills)!r}, 'w').write('oom_kill 3'); send(end='prefill 4'); wait()"
    run = run_script(ending, limit=limit)
    assert (run.failure, run.at_limit) == ("killed at 2,000,000,000 bytes (2.00 GB) in phase prefill 4", True)


def test_a_kill_far_from_the_limit_is_not_the_packages_fault(tmp_path: Path) -> None:
    limit = limit_that_counts(tmp_path)
    (tmp_path / V1.limit).write_text("2000000000\n")
    (tmp_path / "memory.max_usage_in_bytes").write_text("60000000\n")
    kill = f"open({str(tmp_path / V1.kills)!r}, 'w').write('oom_kill 3\\n'); os.kill(os.getpid(), 9)"
    run = run_script(kill, limit=limit)
    assert run.at_limit is False
    assert run.failure == (
        "killed in phase prefill 4 for want of memory, but not at the limit of 2,000,000,000 bytes (2.00 GB): "
        "a tighter limit around it, or the machine itself, had none left"
    )


def test_what_is_no_message_is_passed_over() -> None:
    run = run_script("""print('{hello'); print('7'); print('{"a": 1}'); send(note='prefill 4', tokens=4)""")
    assert (run.failure, run.figures["prefill 4"]) == (None, {"tokens": 4})


def test_a_worker_that_is_gone_is_not_waited_for() -> None:
    start = perf_counter()
    child = "subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])"
    run = run_script(f"{child}; sys.exit(3)", timeout_s=40.0)
    assert run.failure == "exited with code 3 in phase prefill 4"
    assert perf_counter() - start < 20


def test_what_a_worker_says_as_it_leaves_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may write and end between the look for news and the look whether it is still there."""
    child = "subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(20)'])"
    look = MemoryWatch.look

    def slow(self: MemoryWatch) -> None:
        look(self)
        sleep(0.3)

    monkeypatch.setattr(MemoryWatch, "look", slow)
    run = run_script(f"{child}; time.sleep(0.9); send(error='last words', ours=False); sys.exit(1)", timeout_s=15.0)
    assert run.failure == "failed in phase prefill 4: last words"


def test_modules_of_the_users_folder_are_none_of_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('not this one')\n")
    monkeypatch.chdir(tmp_path)
    job: WorkerJob = JOB.model_copy(update={"package": str(tmp_path)})
    run = supervise(worker_command(), job, timeout_s=60.0)
    assert run.failure is not None and "manifest.json" in run.failure


def test_a_worker_begins_inside_its_limit_and_its_account_is_read(tmp_path: Path) -> None:
    run = run_script("sys.exit(0 if os.environ.get('IN') == 'side' else 1)", limit=limit_that_counts(tmp_path))
    assert run.failure is None
    assert {phase.charged_bytes for phase in run.memory.phases()} == {123456}


def test_pages_that_others_paid_for_are_taken_off_the_limit(tmp_path: Path) -> None:
    limit = limit_that_counts(tmp_path)
    (tmp_path / "memory.stat").write_text("cache 1\nmapped_file 4096\nfile_mapped 1\n")
    run = run_script("", limit=limit)
    # A bare interpreter maps a few MB of itself; one page of that is on the account.
    assert run.uncharged_bytes is not None and 1_000_000 < run.uncharged_bytes < 20_000_000
    assert int((tmp_path / V1.limit).read_text()) == 2_000_000_000 - run.uncharged_bytes


def test_without_an_account_the_limit_stays(tmp_path: Path) -> None:
    run = run_script("", limit=limit_that_counts(tmp_path))
    assert (run.failure, run.uncharged_bytes) == (None, None)
    assert not (tmp_path / V1.limit).exists()


def test_a_scope_of_systemd_is_gone_with_its_account() -> None:
    facts = LimitFacts(method="systemd-run", enforced=True, limit_bytes=1000)
    run = run_script("os.kill(os.getpid(), 9)", limit=MemoryLimit(facts))
    assert (run.at_limit, run.failure) == (True, "killed at 1,000 bytes (1.00 kB) in phase prefill 4")
    assert not run_script("os.kill(os.getpid(), 11)", limit=MemoryLimit(facts)).at_limit


def test_lengths_are_cut_and_decoded_behind_the_ends() -> None:
    assert plan_steps(64, (128, 8, 1024), 16) == (
        Step(prompt_tokens=8, decode=DECODE),
        Step(prompt_tokens=48, decode=LONG_DECODE),
    )
    assert plan_steps(2048, (1024, 128, 1024, 256), 128) == (
        Step(prompt_tokens=128, decode=DECODE),
        Step(prompt_tokens=256),
        Step(prompt_tokens=1024, decode=LONG_DECODE),
    )
    assert plan_steps(64, (8,), 16) == (Step(prompt_tokens=8, decode=DECODE),)
    assert plan_steps(16, (8,), 16) == (Step(prompt_tokens=1, decode=DECODE),)


class Log:
    """What a worker tells, in order."""

    def __init__(self) -> None:
        self.ended: dict[str, dict[str, Any]] = {}
        self.told: list[str] = []

    def begin(self, phase: str) -> None:
        self.told.append(f"begin {phase}")

    def note(self, phase: str, **figures: Any) -> None:
        self.told.append(f"note {phase}")
        self.ended[phase] = figures

    def end(self, phase: str, **figures: Any) -> None:
        self.told.append(f"end {phase}")
        self.ended[phase] = figures


@TokenRuntime.register
class Tokens:
    """A model that answers with a fixed token and counts what it is asked."""

    vocab_size = 8

    def __init__(self, logits: list[float]) -> None:
        self.logits, self.past, self.longest = np.array(logits, np.float32), 0, 0

    def __enter__(self) -> Tokens:
        return self

    def __exit__(self, *_: object) -> None: ...

    def reset(self) -> None:
        self.past = 0

    def prefill(self, token_ids: list[int]) -> Any:
        assert token_ids and all(0 <= token < self.vocab_size for token in token_ids)
        self.past += len(token_ids)
        self.longest = max(self.longest, self.past)
        return self.logits

    def decode(self, token_id: int) -> Any:
        assert token_id == int(self.logits.argmax())
        return self.prefill([token_id])


STEPS = plan_steps(64, (4, 20), 3)


def do(model: object, monkeypatch: pytest.MonkeyPatch, steps: tuple[Step, ...] = STEPS) -> Log:
    log = Log()
    monkeypatch.setattr(worker, "load", lambda *_, **__: model)
    worker.run(JOB.model_copy(update={"new_tokens": 3, "steps": steps}), log)  # type: ignore[arg-type]
    return log


def test_the_worker_tells_its_phases_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tokens([0.0, 2.0, 1.0])
    log = do(model, monkeypatch)
    names = ["load", "warm-up", "prefill 4", "decode", "prefill 20", "long decode"]
    assert log.told == ["end start", *(f"{word} {name}" for name in names for word in ("begin", "end"))]
    assert log.ended["prefill 20"]["prompt_tokens"] == 20
    assert [len(log.ended[phase]["steps_ms"]) for phase in (DECODE, LONG_DECODE)] == [3, 3]
    assert log.ended["prefill 4"]["ttft_ms"] >= log.ended["prefill 4"]["prefill_ms"]
    assert model.longest == 23  # each prompt into an empty cache


def test_without_steps_the_worker_only_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert do(Tokens([0.0, 1.0]), monkeypatch, ()).told == ["end start", "begin load", "end load"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_a_failure(monkeypatch: pytest.MonkeyPatch, bad: float) -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        do(Tokens([0.0, 1.0, bad]), monkeypatch, (Step(prompt_tokens=4),))


class Text:
    """An engine that takes text: `pieces` of an answer that it counts as `tokens`."""

    def __init__(self, pieces: int, tokens: int) -> None:
        self.pieces, self.tokens = pieces, tokens

    def __enter__(self) -> Text:
        return self

    def __exit__(self, *_: object) -> None: ...

    def prompt_of(self, tokens: int) -> str:
        return "word " * tokens

    def generate_text(self, prompt: str, *, max_new_tokens: int) -> Any:
        stats = SimpleNamespace(
            prompt_tokens=prompt.count("word") + 1,
            prefill_tokens_per_s=100.0,
            new_tokens=self.tokens,
            decode_tokens_per_s=50.0,
        )

        class Answer:
            def __init__(self, pieces: int) -> None:
                self.left, self.stats = pieces, stats

            def __iter__(self) -> Answer:
                return self

            def __next__(self) -> str:
                if not self.left:
                    raise StopIteration
                self.left -= 1
                return "piece"

        return Answer(self.pieces)


def test_an_engine_of_text_counts_its_own_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    log = do(Text(pieces=3, tokens=3), monkeypatch)
    # The engine does not stop between prompt and answer, so nobody looks closely there.
    order = ["begin prefill 4", "begin decode", "note prefill 4", "end decode"]
    assert [word for word in log.told if word in order] == order
    assert log.ended["prefill 4"]["prompt_tokens"] == 5
    assert log.ended["prefill 4"]["prefill_ms"] == pytest.approx(50.0)
    assert (len(log.ended[DECODE]["steps_ms"]), log.ended[DECODE]["even"]) == (2, False)
    held = do(Text(pieces=2, tokens=4), monkeypatch)  # half a character was held back
    assert held.ended[DECODE] == {"steps_ms": [20.0, 20.0, 20.0], "even": True}


def real_worker(job: str) -> tuple[int, list[dict[str, Any]]]:
    """The worker's exit code and messages, with a supervisor that lets it begin and says nothing more."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        worker_command(), input=f"{job}\ngo on\n", capture_output=True, text=True, env=environment, check=False
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_the_worker_calls_its_errors_ours_or_not(tmp_path: Path) -> None:
    job: WorkerJob = JOB.model_copy(update={"package": str(tmp_path)})
    code, messages = real_worker(job.model_dump_json())
    assert (code, messages[:2], messages[-1]["ours"]) == (1, [{"end": "start"}, {"begin": "load"}], True)
    assert "is not a package: the folder is empty" in messages[-1]["error"]
    code, messages = real_worker("no job")
    assert (code, messages[-1]["ours"]) == (1, False)
    assert messages[-1]["error"].startswith("ValidationError: ")
