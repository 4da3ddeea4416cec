"""The order of the processes, what each of them is told, and what is made of how they end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import edgepack
from edgepack.errors import EdgepackError
from edgepack.package.folder import Package
from edgepack.validation import machine
from edgepack.validation.figures import schedule as measuring
from edgepack.validation.figures.schedule import FIRST_LOAD, Measurement, affordable, measure
from edgepack.validation.machine import usable_cores
from edgepack.validation.processes.job import WorkerJob
from edgepack.validation.processes.limit import MemoryLimit
from edgepack.validation.processes.memory import MemoryWatch
from edgepack.validation.processes.supervisor import WorkerRun
from edgepack.validation.records import LimitFacts
from edgepack.validation.settings import MeasureSettings
from tests.support.tiny import save

GONE = 2**22 + 1  # no process has this number, so it has no children either
ENFORCED = LimitFacts(method="cgroup v2", enforced=True, limit_bytes=1000)
WATCHED = LimitFacts(method="sampled", enforced=False, limit_bytes=1000, why="no right to")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("measured")
    save("shared", folder / "checkpoint")
    return edgepack.export(folder / "checkpoint", out=folder / "package", recipe="fp32", context=64).package


class Machine:
    """Stands for the supervisor and the limits: `ends` are the runs, `limits` the facts of each limit, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs: list[WorkerJob] = []
        self.ends: list[WorkerRun] = []
        self.limits: list[LimitFacts] = []
        self.made = 0
        monkeypatch.setattr(measuring, "supervise", self.supervise)
        monkeypatch.setattr(measuring, "memory_limit", self.memory_limit)

    def supervise(self, command: list[str], job: WorkerJob, **_: Any) -> WorkerRun:
        self.jobs.append(job)
        return self.ends.pop(0) if self.ends else WorkerRun(MemoryWatch(GONE))

    @contextmanager
    def memory_limit(self, *_: Any, **__: Any) -> Iterator[MemoryLimit]:
        facts = self.limits[min(self.made, len(self.limits) - 1)] if self.limits else ENFORCED
        self.made += 1
        yield MemoryLimit(facts)

    def measure(self, package: Package, repetitions: int = 2) -> Measurement:
        asked = MeasureSettings(threads=1, prompt_tokens=(4,), new_tokens=2, repeat=repetitions)
        return measure(package, asked, 1000, on_phase=lambda phase: None)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_only_the_first_load_packs_and_only_runs_have_steps(stage: Machine, package: Package) -> None:
    found = stage.measure(package)
    assert [purpose for purpose, _ in found.processes] == [FIRST_LOAD, "cold load 1", "run 1", "cold load 2", "run 2"]
    assert [job.rebuild_cache for job in stage.jobs] == [True, False, False, False, False]
    assert [len(job.steps) for job in stage.jobs] == [0, 0, 1, 0, 1]
    assert stage.made == 3  # each repetition in a limit of its own
    assert found.limit == ENFORCED
    assert len(found.readings) == 2  # of this machine's memory, before each repetition


def test_every_process_runs_what_the_package_was_planned_for(stage: Machine, package: Package) -> None:
    plan = package.manifest.plan.model_copy(update={"backend": "litert", "runtime": "litert-lm"})
    stage.measure(replace(package, manifest=package.manifest.model_copy(update={"plan": plan})))
    assert {job.runtime for job in stage.jobs} == {"litert-lm"}


@pytest.mark.parametrize("limits", [[ENFORCED, WATCHED], [ENFORCED, ENFORCED, WATCHED], [WATCHED, ENFORCED]])
def test_a_limit_that_held_only_sometimes_did_not_hold(
    stage: Machine, package: Package, limits: list[LimitFacts]
) -> None:
    stage.limits = limits
    assert stage.measure(package).limit == WATCHED


def test_what_the_runtime_refuses_is_an_error_but_not_at_the_limit(stage: Machine, package: Package) -> None:
    refused = "weights cannot be prepacked: exit code -9"
    stage.ends = [WorkerRun(MemoryWatch(GONE), failure="failed", refused=refused)]
    with pytest.raises(EdgepackError, match="cannot be prepacked"):
        stage.measure(package)
    stage.ends = [WorkerRun(MemoryWatch(GONE), failure="killed at 1,000 bytes", refused=refused, at_limit=True)]
    failure = stage.measure(package).failure
    assert failure is not None and (failure[0], failure[1].failure) == (FIRST_LOAD, "killed at 1,000 bytes")


def test_the_first_failure_ends_it(stage: Machine, package: Package) -> None:
    stage.ends = [
        WorkerRun(MemoryWatch(GONE)),
        WorkerRun(MemoryWatch(GONE)),
        WorkerRun(MemoryWatch(GONE), failure="gone"),
    ]
    found = stage.measure(package)
    assert [purpose for purpose, _ in found.processes] == [FIRST_LOAD, "cold load 1", "run 1"]
    assert found.failure == found.processes[-1]


@pytest.mark.parametrize("runtime", ["onnx", "litert", "litert-lm"])
def test_a_first_load_packs_again_what_was_packed(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    demo = Path(edgepack.__file__).parent / "assets" / "demo"
    to = runtime.partition("-")[0]
    made = edgepack.export(demo, to=to, out=tmp_path / "demo", recipe="int8", context=64, threads=1).package

    def entry(*, rebuild_cache: bool) -> tuple[str, int]:
        with edgepack.load(made.path, runtime=runtime, threads=1, rebuild_cache=rebuild_cache):
            pass
        (folder,) = (tmp_path / "cache").glob("[0-9a-f]*")
        return folder.name, folder.stat().st_ino

    packed = entry(rebuild_cache=True)
    assert entry(rebuild_cache=False) == packed
    again = entry(rebuild_cache=True)
    assert again[0] == packed[0] and again[1] != packed[1]


def test_a_cache_that_cannot_be_rebuilt_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: Package
) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    edgepack.load(package.path, threads=1).close()
    make = Path.mkdir

    def full(self: Path, *arguments: Any, **named: Any) -> None:
        if self.name.endswith(".partial"):
            raise OSError(28, "No space left on device")
        make(self, *arguments, **named)

    monkeypatch.setattr(Path, "mkdir", full)
    edgepack.load(package.path, threads=1).close()  # what is there will do
    with pytest.raises(EdgepackError, match="cannot be written: No space left on device"):
        edgepack.load(package.path, threads=1, rebuild_cache=True)


def test_long_prompts_are_left_out_when_time_runs_short() -> None:
    steps, _ = MeasureSettings(threads=1).steps(4096)
    assert [step.prompt_tokens for step in steps] == [128, 1024, 3840]
    costs = {"prefill 128": 5.0, "prefill 1024": 10.0, "prefill 3840": 40.0}
    assert affordable(steps, costs, 100.0) == steps
    assert affordable(steps, costs, 20.0) == steps[:2]
    assert affordable(steps, costs, 1.0) == steps[:1]
    assert affordable(steps, {}, 1.0) == steps  # nothing is known of them yet


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 4),
        ({"cpu.max": "max 100000\n"}, 4),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "800000 100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu.max": "odd\n"}, 4),
    ],
)
def test_cores_are_those_that_the_container_pays_for(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert usable_cores() == cores


def test_what_else_the_machine_did_is_what_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    stat = tmp_path / "stat"
    monkeypatch.setattr(machine, "STAT", stat)
    monkeypatch.setattr(machine.resource, "getrusage", lambda whose: SimpleNamespace(ru_utime=0.0, ru_stime=0.0))
    seconds = [40, 0, 10, 900, 30, 0, 0, 5, 40, 0]  # user, nice, system, idle, iowait, irq, softirq, steal, guests
    stat.write_text(f"cpu  {' '.join(str(value * tick) for value in seconds)}\ncpu0 1 2 3\n")
    before = machine.cpu_times()
    seconds = [70, 0, 20, 950, 32, 1, 1, 11, 60, 0]  # 42 s of work and 6 s of steal in 100 s
    stat.write_text(f"cpu  {' '.join(str(value * tick) for value in seconds)}\n")
    monkeypatch.setattr(machine.resource, "getrusage", lambda whose: SimpleNamespace(ru_utime=9.0, ru_stime=1.0))
    load = machine.load_between(before, machine.cpu_times())
    assert load is not None
    assert (load.others_share, load.steal_share) == (pytest.approx(0.22), pytest.approx(0.06))  # 20 s were ours
    assert machine.load_between(before, before) is None and machine.load_between(None, before) is None
    stat.write_text("cpu  1 2 3\n")
    assert machine.cpu_times() is None
    stat.unlink()
    assert machine.cpu_times() is None


def test_the_load_is_of_the_repetitions(stage: Machine, package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))

    def times() -> machine.CpuTimes:
        passed = float(next(clock))
        return machine.CpuTimes(total_s=4 * passed, busy_s=3 * passed, steal_s=0, own_s=2 * passed)

    monkeypatch.setattr(measuring, "cpu_times", times)
    found = stage.measure(package)
    assert found.load == machine.Load(others_share=0.25, steal_share=0.0)
