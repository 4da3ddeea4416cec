"""What surrounds LiteRT: copies of parts of a bundle, captured stderr, spans of mapped files. No model is loaded."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
from pathlib import Path
from threading import Barrier, RLock, Thread

import pytest

from edgepack.errors import EdgepackError
from edgepack.system import libraries
from edgepack_runtimes.litert import prepack as litert_prepack
from edgepack_runtimes.native import mapped
from edgepack_runtimes.native.log import NativeLog, captured_log

BYTES = bytes(range(256)) * 40


def run(script: str, first: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    script = f"import atexit, os, sys\n{first}\nfrom edgepack_runtimes.native.log import *\n{script}"
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    path.write_bytes(BYTES)
    return path


@pytest.mark.parametrize("way", ["system", "missing", "zero", "EXDEV", "EINVAL", "ENOSYS", "EOPNOTSUPP"])
def test_a_part_is_copied_whatever_the_system_can(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(getattr(errno, way), "no")

    if way == "missing":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    elif way == "zero":
        monkeypatch.setattr(os, "copy_file_range", lambda *_: 0, raising=False)
    elif way != "system":
        monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    monkeypatch.setattr(litert_prepack, "COPY_BYTES", 1000)
    litert_prepack.extract(bundle, 77, 5003, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == BYTES[77:5080]
    with pytest.raises(OSError, match="ends before byte"):
        litert_prepack.extract(bundle, 77, len(BYTES), tmp_path / "long")


def test_a_full_disk_is_still_an_error(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "copy_file_range", full, raising=False)
    with pytest.raises(OSError, match="full"):
        litert_prepack.extract(bundle, 0, 10, tmp_path / "part")


def test_threads_that_overlap_give_stderr_back(capfd: pytest.CaptureFixture[str]) -> None:
    together, before = Barrier(8), os.fstat(2)
    logs: list[str] = []

    def load(number: int) -> None:
        for _ in range(20):
            together.wait(timeout=30)
            with captured_log() as log:
                os.write(2, f"INFO: {number}\n".encode())
            logs.append(log.text)
            assert f"INFO: {number}\n" in log.text

    threads = [Thread(target=load, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(logs) == 160
    assert os.path.samestat(before, os.fstat(2))
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_blocks_that_cross_restore_the_first_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    first, second = captured_log(), captured_log()
    one = first.__enter__()
    os.write(2, b"I0000 one\n")
    two = second.__enter__()
    os.write(2, b"I0000 both\n")
    first.__exit__(None, None, None)
    os.write(2, b"I0000 two\n")
    second.__exit__(None, None, None)
    os.write(2, b"after\n")
    assert (one.text, two.text) == ("I0000 one\nI0000 both\n", "I0000 both\nI0000 two\n")
    assert capfd.readouterr().err == "after\n"


def test_lines_of_others_are_written_after_all(capfd: pytest.CaptureFixture[str]) -> None:
    written = (
        "INFO: [environment.cc:36] Creating\nsomebody's line\n\nWARNING:app:by logging\n"
        "E0000 00:00:1.5 3 engine.cc:8] Failed\n=== Source Location Trace: ===\nthird_party/a.cc:83\n\n"
        "VERBOSE: x\nERROR: y\n└ below\nlast \N{SNOWMAN}, no line break"
    )
    with captured_log() as log:
        os.write(2, written.encode())
    assert log.text == written
    assert capfd.readouterr().err == ("somebody's line\n\nWARNING:app:by logging\nlast \N{SNOWMAN}, no line break")


def test_print_of_another_thread_reaches_stderr() -> None:
    done = run(
        "from threading import Thread\n"
        "with captured_log():\n"
        "    thread = Thread(target=lambda: print('theirs', file=sys.stderr)); thread.start(); thread.join()\n"
        "    os.write(2, b'INFO: noise\\n')\n"
        "    sys.stderr.write('half')\n"
        "sys.stderr.write(' line')\n"
    )
    assert (done.returncode, done.stderr) == (0, "theirs\nhalf line")


@pytest.mark.parametrize("broken", ["sys.stderr = None", "sys.stderr.close()", "os.close(2)"])
def test_no_stderr_is_no_obstacle(broken: str) -> None:
    script = f"{broken}\nsilence_exit()\nwith captured_log() as log: pass\nprint(repr(log.text))"
    done = run(script)
    assert (done.returncode, done.stdout) == (0, "''\n")


def test_no_place_for_a_file_is_no_obstacle(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "no usable temporary directory")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with captured_log() as log:
        os.write(2, b"INFO: seen\n")
    assert (log.text, capfd.readouterr().err) == ("", "INFO: seen\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", ""),
        ("INFO: [a.cc:1] all is well\nsomething\n└ odd", ""),
        ("WARNING: careful\nW0000 00:00:1 2 a.cc:3] careful", ""),
        ("ERROR: first\nERROR: second\nINFO: later\n", "second"),
        ("E0000 00:00:1.5 309 engine.cc:854] Failed to open\nI0000 x] y\n└ other's", "Failed to open"),
        ("ERROR: Failed to load\n└ ERROR: no file\n└ really\nINFO: bye", "Failed to load: no file: really"),
        ("ERROR:app:by logging", ""),
    ],
)
def test_reason(text: str, reason: str) -> None:
    assert NativeLog(text).reason() == reason


def test_an_error_at_exit_is_seen() -> None:
    at_exit = "def fail(): raise ValueError('a real error')\natexit.register(fail)\n"
    for script in (f"silence_exit()\n{at_exit}", f"{at_exit}silence_exit()"):
        assert "ValueError: a real error" in run(script).stderr


@pytest.mark.parametrize("silent", [True, False])
def test_what_comes_after_all_handlers_is_silenced_on_request_only(silent: bool) -> None:
    first = "atexit.register(lambda: os.write(2, b'noise'))"
    done = run(f"{'silence_exit()' * silent}\nsys.stderr.write('unfinished '); sys.stderr.flush()", first)
    assert done.stderr == ("unfinished " if silent else "unfinished noise")


def test_a_traceback_does_not_stay_with_a_thread_that_loads() -> None:
    done = run(
        "from threading import Event, Thread\nready = Event()\n"
        "def load():\n    with captured_log():\n        ready.set(); Event().wait()\n"
        "Thread(target=load, daemon=True).start(); ready.wait(); silence_exit()\n"
        "raise ValueError('a real error')"
    )
    assert done.returncode == 1
    assert "ValueError: a real error" in done.stderr


def test_spans_without_proc(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError(errno.ENOENT, "no /proc")

    monkeypatch.setattr(Path, "read_text", missing)
    assert mapped.mapped_spans([bundle]) == frozenset()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_spans_of_a_mapped_file(bundle: Path) -> None:
    assert mapped.mapped_spans([bundle]) == frozenset()
    with (
        mapped.opening_files,
        mapped.opening_files,
        bundle.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ),
    ):
        ((start, end),) = mapped.mapped_spans([bundle])
        assert end - start >= len(BYTES)
    assert isinstance(mapped.opening_files, type(RLock()))


def test_both_extras_are_named() -> None:
    both = r"no_such_library is not installed: .*'\.\[run\]'.* \(run-litert in place of run for LiteRT packages\)"
    with pytest.raises(EdgepackError, match=both):
        libraries.import_library("no_such_library")
