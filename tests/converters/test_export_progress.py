"""What an export says of itself: the phase that runs, its share, and memory with the processes that it starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

import edgepack
from edgepack.planning.planner import make_plan
from edgepack.planning.runtime_costs import EXPORT_BASE_BYTES
from edgepack.system.peak_memory import PeakWatch, peak_rss_bytes
from edgepack_converters.phases import Phases
from tests.support.paths import DEMO, ROOT
from tests.support.specs import E2B, preset_spec

SIZE = 150_000_000
HUNGRY = "import sys; held = b'x' * {size}; print(flush=True); sys.stdin.readline(); held = None; sys.stdin.readline()"


def test_phases_are_shares_of_the_whole_and_end_at_it() -> None:
    seen: list[tuple[float, float, str]] = []
    phases = Phases(lambda *told: seen.append(told), {"one": 30, "two": 60, "three": 10})
    phases.begin("one")
    phases.begin("not here")  # an export without it
    phases.advance(5)
    phases.begin("two")
    phases.advance(20)
    phases.advance(40)
    phases.begin("three")
    phases.end()
    assert seen == [
        (0, 100, "one"), (30, 100, "two"), (50, 100, "two"), (90, 100, "two"), (90, 100, "three"), (100, 100, "three"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("to", "tokenizer", "phases"),
    [
        ("litert", True, ["converting the tokenizer", "checking the chat template", "weights", "hashing"]),
        ("litert", False, ["weights", "hashing"]),
        ("onnx", True, ["weights", "hashing"]),
    ],
)
def test_an_export_names_its_phases(to: str, tokenizer: bool, phases: list[str], tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(DEMO, checkpoint)
    if not tokenizer:
        (checkpoint / "tokenizer.json").unlink()
    seen: list[tuple[float, str]] = []
    edgepack.export(
        checkpoint, to=to, out=tmp_path / "package", context=64, threads=1,
        progress=lambda done, total, phase: seen.append((done / total, phase)),
    )  # fmt: skip
    assert list(dict.fromkeys(phase for _, phase in seen)) == phases
    shares = [share for share, _ in seen]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system keeps no record of a running process")
@pytest.mark.parametrize("in_thread", [False, True])
def test_memory_of_children_counts_at_the_same_time_and_not_one_after_the_other(in_thread: bool) -> None:
    # In a process of its own: this one may have had a peak that hides what the children need.
    code = f"from tests.converters.test_export_progress import peaks_of_children as p; print(*p({in_thread}))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    together, one_after_the_other, own = map(int, done.stdout.split())
    assert together - one_after_the_other > 0.8 * SIZE
    assert one_after_the_other >= own


def peaks_of_children(in_thread: bool) -> tuple[int, int, int]:
    """Peaks with two hungry children at once and one after the other, and that of this process."""

    def run(together: bool) -> None:
        command = [sys.executable, "-c", HUNGRY.format(size=SIZE)]
        started: list[subprocess.Popen[bytes]] = []
        for _ in range(2):
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe)
            started.append(process)
            assert process.stdout is not None
            process.stdout.readline()
            if not together:
                process.communicate(b"\n\n")
        for process in started:
            if together:
                process.communicate(b"\n\n")

    peaks = []
    for together in (True, False):
        with PeakWatch() as watch:
            if in_thread:
                thread = Thread(target=run, args=(together,))
                thread.start()
                thread.join()
            else:
                run(together)
        peaks.append(watch.peak_bytes)
    return peaks[0], peaks[1], peak_rss_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it() -> None:
    held = bytearray(os.urandom(1) * 300_000_000)
    script = "from edgepack.system.peak_memory import peak_rss_bytes; print(peak_rss_bytes())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert len(held) == 300_000_000 and int(done.stdout) < 150_000_000


def test_the_plan_counts_the_process_that_converts_the_tokenizer() -> None:
    onnx, litert = (make_plan(preset_spec(E2B), backend=name) for name in ("onnx", "litert"))
    assert onnx.export_peak_bytes == EXPORT_BASE_BYTES + 8 * 12 * 2**20
    # 346 MB on Gemma 3 270M, which has as many tokens.
    assert 346e6 < litert.export_peak_bytes < 1.1 * 346e6
