"""A calibration that is killed goes on where it was, and ends with the same bytes; the rest is refused in one line."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import edgepack.calibration.run
from edgepack.calibration.work import partial_folder
from edgepack.errors import EdgepackError
from tests.calibration.small import SENTENCE, calibrated
from tests.support.scratch import ROOT, clean_environment

# Kills itself at the n-th report of progress: there are four sequences and the blocks of a stage, five stages.
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.calibration.small import calibrated
left = int(sys.argv[2])
def progress(done, total, phase):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
calibrated(Path(sys.argv[1]), progress=progress)
"""


def kill_at(checkpoint: Path, report: int) -> None:
    paths = os.pathsep.join([*(str(ROOT / part) for part in (".", "converters", "runtimes")), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(checkpoint), str(report)],
        env=clean_environment() | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def partial(checkpoint: Path) -> Path:
    return partial_folder(checkpoint.parent / "out.safetensors")


def test_killed_at_any_layer_it_goes_on_and_the_bytes_are_the_same(small: Path) -> None:
    reports: list[tuple[float, str]] = []
    whole = calibrated(
        small,
        out=small.parent / "whole",
        progress=lambda done, total, phase: reports.append((done / total, phase.partition(",")[0])),
    )
    phases = [phase for _, phase in reports]
    assert list(dict.fromkeys(phases)) == ["embeddings", "layer 1 of 3", "layer 2 of 3", "layer 3 of 3", "head"]
    assert [share for share, _ in reports] == sorted(share for share, _ in reports)
    assert reports[-1][0] == pytest.approx(1)
    again = 0
    for stage in dict.fromkeys(phases):  # killed in each; a resumed run begins with the stage before once more
        kill_at(small, again + 2)
        again = phases.count(stage)
        assert partial(small).is_dir() and not (small.parent / "out.safetensors").exists()
    resumed: list[str] = []
    run = calibrated(small, progress=lambda done, total, phase: resumed.append(phase.partition(",")[0]))
    assert set(resumed) == {"head"}
    assert run.path.read_bytes() == whole.path.read_bytes()
    assert run.header == whole.header
    assert sorted(os.listdir(small.parent)) == ["out.safetensors", "small", "text.txt", "whole"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tokens": 48}, r"tokens was 96, now it is 48"),
        ({"sequence": 32}, r"sequence_tokens was 24, now it is 32"),
        ({"text": "other.txt"}, r"text was 'text.txt', now it is 'other.txt'"),
    ],
)
def test_work_of_another_job_is_refused_and_overwritten(small: Path, changed: dict[str, Any], said: str) -> None:
    (small.parent / "other.txt").write_text("Of another kind. " * 20)
    if "text" in changed:
        changed = {"text": small.parent / changed["text"]}
    kill_at(small, 12)
    kept = sorted(path.name for path in partial(small).iterdir())
    with pytest.raises(EdgepackError, match=f"unfinished calibration with other settings: {said}; .* --overwrite"):
        calibrated(small, **changed)
    assert sorted(path.name for path in partial(small).iterdir()) == kept
    run = calibrated(small, **changed, overwrite=True)
    assert run.path.read_bytes() == calibrated(small, **changed, out=small.parent / "fresh").path.read_bytes()
    assert not partial(small).exists()


def test_a_damaged_job_is_refused_and_overwritten(small: Path) -> None:
    kill_at(small, 12)
    (partial(small) / "job.json").write_text("{")
    with pytest.raises(EdgepackError, match=r"job\.json: .*--overwrite begins again"):
        calibrated(small)
    calibrated(small, overwrite=True)


def test_two_processes_do_not_write_one_file(small: Path) -> None:
    partial(small).mkdir()
    with (partial(small) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EdgepackError, match="another process calibrates into this file: wait for it, or choose"):
            calibrated(small)
    calibrated(small)


def test_a_finished_file_is_replaced_if_that_is_asked_for(small: Path) -> None:
    first = calibrated(small)
    before = first.path.read_bytes()
    with pytest.raises(EdgepackError, match=r"out\.safetensors exists: choose another, or pass --overwrite"):
        calibrated(small)
    (small.parent / "text.txt").write_text(SENTENCE[::-1] * 4)
    assert calibrated(small, overwrite=True).path.read_bytes() != before


def test_what_a_kill_behind_the_last_step_leaves_is_removed(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rmtree = shutil.rmtree

    def killed(folder: Path, **how: Any) -> None:
        if folder == partial(small):
            raise KeyboardInterrupt
        rmtree(folder, **how)

    with monkeypatch.context() as patch:
        patch.setattr("edgepack.calibration.work.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            calibrated(small)
    assert partial(small).exists() and (small.parent / "out.safetensors").exists()
    with pytest.raises(EdgepackError, match="exists"):
        calibrated(small)
    assert not partial(small).exists()


def test_a_full_disk_shows_before_the_first_layer(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    reports: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(EdgepackError, match=r"out\.safetensors: cannot be written: No space left on device; "):
            calibrated(small, progress=lambda done, total, phase: reports.append(phase))
    assert not reports
    calibrated(small)


def test_a_disk_that_fills_up_later_loses_no_layer(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = calibrated(small, out=small.parent / "whole").path.read_bytes()
    stages: list[int] = []
    scratch = edgepack.calibration.run.Scratch

    class Full(scratch):  # type: ignore[misc,valid-type]
        def write(self, *given: Any) -> Any:
            if len(stages) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(*given)

        def close(self) -> None:
            stages.append(1)
            super().close()

    with monkeypatch.context() as patch:
        patch.setattr(edgepack.calibration.run, "Scratch", Full)
        with pytest.raises(EdgepackError, match="No space left on device; what is done stays in out"):
            calibrated(small)
    resumed: list[str] = []
    run = calibrated(small, progress=lambda done, total, phase: resumed.append(phase.partition(",")[0]))
    assert set(resumed) == {"layer 3 of 3", "head"}
    assert run.path.read_bytes() == whole
