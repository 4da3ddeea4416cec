"""Ctrl-C and SIGTERM in real processes: one line that is true, the exit code of shells, and nothing half done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import psutil
import pytest

import edgepack
from edgepack.cli import cache
from edgepack.cli.console import Interrupted, told_of_interruption
from edgepack.cli.validating.validate import Outputs
from edgepack.synth import write_synthetic_checkpoint
from tests.cli.test_cli import CONFIG
from tests.support.paths import ROOT

MOST_S = 90.0
SIGNALS = [signal.SIGINT, signal.SIGTERM]
# The command line, whose exports take seconds: a half-written package of this size stands for half a second else.
SLOW = """
import time
from edgepack.checkpoint.folder import Checkpoint
from edgepack.cli.main import main
read_rows = Checkpoint.read_rows
def slow(self, *arguments, **options):
    time.sleep(0.1)
    return read_rows(self, *arguments, **options)
Checkpoint.read_rows = slow
main()
"""


# The command line, which a signal reaches in the callback of a weak reference: Python drops what is raised there.
DROPPED = """
import os, signal, time, weakref
import edgepack.exporting as exporting
from edgepack.cli.main import main
class Thing: pass
def reached(reference):
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(1000): pass
def check(path):
    thing = Thing()
    kept = weakref.ref(thing, reached)
    del thing
    time.sleep(60)
exporting.check_text_files = check
main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a checkpoint, and a package of it that can speak for a long time."""
    folder = tmp_path_factory.mktemp("interrupted")
    write_synthetic_checkpoint({**CONFIG, "max_position_embeddings": 1 << 16}, folder / "checkpoint")
    edgepack.export(folder / "checkpoint", out=folder / "package", context=1 << 15)
    return folder


@contextmanager
def started(folder: Path, *arguments: object, script: str = SLOW) -> Iterator[subprocess.Popen[bytes]]:
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "converters", "runtimes"))
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "EDGEPACK_CACHE": str(folder / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until(ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + MOST_S
    while not ready():
        assert time.monotonic() < deadline, "the process did not come that far"
        time.sleep(0.002)


def interrupted(process: subprocess.Popen[bytes], number: signal.Signals) -> tuple[str, str]:
    """Send the signal; stdout and stderr of a process that leaves with the code for it."""
    process.send_signal(number)
    out, errors = process.communicate(timeout=MOST_S)
    assert process.returncode == 128 + number, errors.decode()
    return out.decode(), errors.decode()


@pytest.mark.parametrize("number", SIGNALS)
def test_export(number: signal.Signals, folder: Path) -> None:
    before = sorted(folder.iterdir())
    with started(folder, "export", "checkpoint", "--out", "new", "--context", 256) as process:
        wait_until(lambda: list(folder.glob("new.partial-*")))
        assert interrupted(process, number) == ("", "interrupted: nothing was written\n")
    assert sorted(folder.iterdir()) == before


def test_a_signal_in_a_callback_is_not_lost(folder: Path) -> None:
    with started(folder, "export", "checkpoint", "--out", "lost", "--context", 64, script=DROPPED) as process:
        out, errors = process.communicate(timeout=MOST_S)
    assert (process.returncode, out, errors) == (143, b"", b"interrupted: nothing was written\n")


def test_export_over_an_older_package(folder: Path) -> None:
    manifest = (folder / "package" / "manifest.json").read_bytes()
    with started(folder, "export", "checkpoint", "--out", "package", "--overwrite", "--context", 64) as process:
        wait_until(lambda: list(folder.glob("package.partial-*")))
        assert interrupted(process, signal.SIGTERM)[1] == "interrupted: nothing was written\n"
    assert (folder / "package" / "manifest.json").read_bytes() == manifest


def test_demo(folder: Path) -> None:
    with started(folder, "demo", "--out", "kept") as process:
        wait_until(lambda: list(folder.glob("kept.partial-*")))
        assert interrupted(process, signal.SIGINT)[1].endswith("interrupted: nothing is kept\n")
    assert not (folder / "kept").exists()


@pytest.mark.parametrize("dry", [False, True])
def test_cache_prune(dry: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(*_: object, **__: object) -> NoReturn:
        raise Interrupted(130)

    monkeypatch.setattr(cache, "prune", leave)
    with pytest.raises(Interrupted) as caught:
        cache.prune_command(dry_run=dry)
    assert caught.value.said == (None if dry else "what was removed is gone, and the rest is whole")


@pytest.mark.parametrize(
    ("reports", "history", "said"),
    [
        ("out", None, "reports in out may be of an earlier validation"),
        (None, "all", "the last line of the history all may be of an earlier validation"),
        ("out", "all", "reports in out and the last line of the history all may be of an earlier validation"),
        (None, None, None),
    ],
)
def test_what_may_be_of_an_earlier_validation(reports: str | None, history: str | None, said: str | None) -> None:
    assert Outputs(Path(reports) if reports else None, Path(history) if history else None).perhaps_old() == said


def test_generate(folder: Path) -> None:
    ids = ("--token-ids", "2,7,9", "--max-new-tokens", 30_000)
    with started(folder, "generate", "package", *ids) as process:
        assert process.stdout is not None
        first = process.stdout.read(2).decode()
        out, errors = interrupted(process, signal.SIGINT)
    assert (first + out).endswith("\n")
    assert all(word.isdecimal() for word in (first + out).split())
    assert errors == "interrupted: the answer is not complete\n"


def test_generate_as_json(folder: Path) -> None:
    ids = ("--token-ids", "2,7,9", "--max-new-tokens", 30_000, "--json")
    with started(folder, "generate", "package", *ids) as process:
        wait_until(lambda: maps(process.pid, "decoder"))  # it loads, or has begun
        assert interrupted(process, signal.SIGINT) == ("", "interrupted: no answer was printed\n")


def maps(pid: int, name: str) -> bool:
    return any(name in Path(entry.path).name for entry in psutil.Process(pid).memory_maps())


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_validate(folder: Path) -> None:
    settings = ("--report", "reports", "--prompt-tokens", 30_000)
    with started(folder, "validate", "package", *settings) as process:
        wait_until(lambda: psutil.Process(process.pid).children())
        children = psutil.Process(process.pid).children()
        out, errors = interrupted(process, signal.SIGTERM)
    assert (out, errors) == ("", "interrupted: nothing was judged and no report was written\n")
    assert not (folder / "reports").exists()
    # One that was only just started sees that nobody asks it anything, and leaves by itself.
    wait_until(lambda: not any(map(alive, children)))


def test_the_innermost_block_that_knows_says_it() -> None:
    outer, inner = told_of_interruption(lambda: "outer"), told_of_interruption(lambda: "inner")
    with pytest.raises(Interrupted) as caught, outer, inner:
        raise Interrupted(130)
    assert (caught.value.said, caught.value.code) == ("inner", 130)
