"""The memory watch: phases, page faults, and timelines that keep their peaks."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgepack.system import process_memory
from edgepack.system.process_memory import (
    MemorySample,
    major_faults,
    parse_status,
    sample_memory,
    sample_tree,
    tree_samples,
)
from edgepack.validation.processes import memory
from edgepack.validation.processes.memory import MemoryWatch, thin
from edgepack.validation.records import Moment

GONE = 2**22 + 1  # no process has this number, so it has no children either


def moments(*sizes: int) -> list[Moment]:
    return [
        Moment(time_ms=index, rss_bytes=size, anonymous_bytes=None, file_bytes=None, charged_bytes=None)
        for index, size in enumerate(sizes)
    ]


def test_thinning_keeps_peaks_and_order() -> None:
    kept = thin(moments(1, 2, 9, 1, 1, 1, 7, 1), 4)
    assert [moment.rss_bytes for moment in kept] == [2, 9, 1, 7]
    assert [moment.time_ms for moment in kept] == sorted(moment.time_ms for moment in kept)
    assert thin(moments(1, 2), 4) == moments(1, 2)


def test_page_faults_of_a_program_with_an_odd_name(monkeypatch: pytest.MonkeyPatch) -> None:
    stat = "42 (a) b (c) R 1 2 3 4 5 6 7 8 9123 10 11\n"
    monkeypatch.setattr(process_memory, "_proc_text", lambda pid, name: stat if name == "stat" else None)
    assert major_faults(42) == 9123


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="no /proc")
def test_page_faults_of_this_process() -> None:
    found = major_faults(os.getpid())
    assert found is not None and found >= 0


def test_each_phase_has_its_largest_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([10, 30, 20, 5, 6, 6])
    monkeypatch.setattr(memory, "sample_tree", lambda pid: MemorySample(rss_bytes=next(sizes), peak_rss_bytes=31))
    monkeypatch.setattr(memory, "sample_pss", lambda pid: 4)
    faults = iter([100, 107, 107, 107])
    monkeypatch.setattr(memory, "major_faults", lambda pid: next(faults))
    watch = MemoryWatch(GONE, lambda: 77)
    watch.enter("load")
    watch.look()
    watch.leave()
    watch.enter("decode")
    watch.leave()
    load, decode = watch.phases()
    assert (load.phase, load.rss_bytes, load.pss_bytes, load.major_faults, load.charged_bytes) == ("load", 30, 4, 7, 77)
    assert (decode.phase, decode.rss_bytes, decode.major_faults) == ("decode", 6, 0)
    # The kernel's record was set between two looks of the load, so it is of that phase and of no later one.
    assert [phase.peak_rss_bytes for phase in (load, decode)] == [31, 6]
    assert watch.peak_rss_bytes == 31
    assert [moment.rss_bytes for moment in watch.timeline()] == [10, 30, 20, 5, 6]


def test_a_phase_that_nobody_waits_for_has_its_faults_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "sample_tree", lambda pid: MemorySample(rss_bytes=1))
    faults = iter([100, 130, 130, 135])
    monkeypatch.setattr(memory, "major_faults", lambda pid: next(faults))
    watch = MemoryWatch(GONE)
    watch.enter("prefill 4")
    watch.enter("decode")
    watch.leave()
    assert [phase.major_faults for phase in watch.phases()] == [30, 5]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc")
@pytest.mark.parametrize("has_proc", [True, False])
@pytest.mark.parametrize("in_thread", [True, False])
def test_children_of_all_threads_are_counted_with_their_parent(
    has_proc: bool, in_thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_memory, "HAS_PROC", has_proc)
    before = sample_tree(os.getpid())
    held = "x = b'x' * 50_000_000; print('there', flush=True); input()"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    pool = ThreadPoolExecutor(1)

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-S", "-c", held], **pipes)

    with pool, pool.submit(start).result() if in_thread else start() as child:
        assert child.stdout is not None and child.stdout.readline().strip() == b"there"
        alone, together = sample_memory(os.getpid()), sample_tree(os.getpid())
        child.communicate(b"\n")
    assert before is not None and alone is not None and together is not None
    assert together.rss_bytes - alone.rss_bytes > 50_000_000
    assert not has_proc or (together.anonymous_bytes or 0) - (alone.anonymous_bytes or 0) > 50_000_000


@pytest.mark.skipif(not hasattr(os, "fork") or not Path("/proc/self/task").is_dir(), reason="no /proc")
def test_a_child_that_is_still_its_parent_is_not_counted_twice() -> None:
    script = (
        "import os, sys; held = b'x' * 50_000_000; child = os.fork()\n"
        "if child: print('there', flush=True); sys.stdin.readline(); os.kill(child, 9)\n"
        "else: import time; time.sleep(60)"
    )
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-S", "-c", script], **pipes) as parent:
        assert parent.stdout is not None and parent.stdout.readline().strip() == b"there"
        alone, together = sample_memory(parent.pid), sample_tree(parent.pid)
        parent.communicate(b"\n")
    assert alone is not None and together is not None and together.rss_bytes == alone.rss_bytes


def test_parts_that_one_of_them_does_not_tell_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = {
        1: MemorySample(rss_bytes=5, anonymous_bytes=3, file_bytes=2, shared_bytes=0, peak_rss_bytes=9),
        2: MemorySample(rss_bytes=7, anonymous_bytes=4, file_bytes=3),
        3: None,  # it has ended between the two readings
    }
    monkeypatch.setattr(process_memory, "sample_memory", samples.get)
    monkeypatch.setattr(process_memory, "_children", lambda pid: {1: [2, 3]}.get(pid, []))
    monkeypatch.setattr(process_memory, "_proc_text", lambda pid, name: f"program {pid}")
    assert tree_samples(1) == [samples[1], samples[2]] and tree_samples(3) == []
    assert sample_tree(1) == MemorySample(rss_bytes=12, anonymous_bytes=7, file_bytes=5, peak_rss_bytes=9)


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
    monkeypatch.setattr("edgepack.system.process_memory.HAS_PROC", False)
    sample = sample_memory(os.getpid())
    assert sample is not None
    assert sample.rss_bytes > 1_000_000
    assert (sample.anonymous_bytes, sample.peak_rss_bytes) == (None, None)


def test_memory_of_a_process_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    child = psutil.Popen([sys.executable, "-c", ""])
    child.wait()
    assert sample_memory(child.pid) is None
    monkeypatch.setattr("edgepack.system.process_memory.HAS_PROC", False)
    assert sample_memory(child.pid) is None
