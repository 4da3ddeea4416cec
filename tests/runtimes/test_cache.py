"""The cache folder among processes: who uses an entry keeps it, who is killed leaves nothing behind."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from edgepack.errors import PackageError
from edgepack.package.folder import Package
from edgepack_runtimes.cache import cached_entry
from edgepack_runtimes.cache_prune import list_entries, prune
from tests.support.cache_stand_in import build, spec
from tests.support.paths import ROOT
from tests.support.tiny import TinyPackages

PATHS = os.pathsep.join(str(ROOT / part) for part in (".", "converters", "runtimes"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EDGEPACK_CACHE_LIMIT", "0")
    return tmp_path / "cache"


@pytest.fixture
def package(tiny_packages: TinyPackages) -> Package:
    return tiny_packages("gemma3").package


def wait_for(found: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not found():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def loaded(package: Package, cache: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has a package open in ONNX Runtime."""
    script = (
        "import sys, edgepack\n"
        "with edgepack.load(sys.argv[1], threads=1) as model:\n"
        "    print('open', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    print(model.logits([2, 3]).shape, flush=True)\n"
        "    sys.stdin.readline()\n"
        "print('closed', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(package.path)],
        env={**os.environ, "PYTHONPATH": PATHS},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        yield process
        process.kill()


def test_an_entry_that_a_process_has_open_stays(loaded: subprocess.Popen[str], package: Package, cache: Path) -> None:
    assert loaded.stdin is not None and loaded.stdout is not None
    (entry,) = list_entries(cache)
    assert entry.in_use and entry.runtime == "onnx" and entry.packages == (str(package.path),)
    done = prune(cache, limit=1, everything=True)
    assert (done.removed, done.kept) == ((), (entry,)) and done.left_bytes == entry.size_bytes
    loaded.stdin.write("\n")
    loaded.stdin.flush()
    assert loaded.stdout.readline() == "(2, 104)\n"  # it opens another graph of the entry now
    loaded.stdin.write("\n")
    loaded.stdin.flush()
    assert loaded.stdout.readline() == "closed\n"
    assert prune(cache, limit=1).removed[0].path == entry.path  # its process lives on, without it


def test_a_process_that_is_killed_keeps_nothing(loaded: subprocess.Popen[str], cache: Path) -> None:
    loaded.send_signal(signal.SIGKILL)
    loaded.wait()
    (entry,) = list_entries(cache)
    assert not entry.in_use and entry.status == "complete"
    assert len(prune(cache, limit=None, everything=True).removed) == 1 and list_entries(cache) == []


def test_a_build_that_is_killed_is_begun_anew_once_its_child_has_ended(
    package: Package, cache: Path, tmp_path: Path
) -> None:
    # The process that packs outlives its parent for a while, and still writes.
    go, begun = tmp_path / "go", tmp_path / "begun"
    slow = spec("r", before=f"open({str(begun)!r}, 'w')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)")
    script = (
        "import sys\n"
        "from edgepack.package.folder import open_package\n"
        "from edgepack_runtimes.cache import CacheSpec, cached_entry\n"
        "cached_entry(open_package(sys.argv[1]), CacheSpec.model_validate_json(sys.argv[2]))\n"
    )
    arguments = [sys.executable, "-c", script, str(package.path), slow.model_dump_json()]
    builder = subprocess.Popen(arguments, env={**os.environ, "PYTHONPATH": PATHS})
    wait_for(begun.exists)
    builder.kill()
    builder.wait()
    assert [entry.status for entry in list_entries(cache)] == ["building"]
    assert prune(cache, limit=1, everything=True).removed == ()
    built: list[Path] = []
    waiting = Thread(target=lambda: built.append(build(package, "r", 77)))
    waiting.start()
    time.sleep(0.2)
    assert not built
    go.touch()
    waiting.join(60)
    assert [entry.path for entry in list_entries(cache)] == built
    assert (built[0] / "w").read_bytes() == bytes(77)


def test_who_waits_for_a_build_uses_it(package: Package, cache: Path, tmp_path: Path) -> None:
    log, go = tmp_path / "log", tmp_path / "go"
    before = f"open({str(log)!r}, 'a').write('x')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)"
    found: list[Path] = []
    threads = [
        Thread(target=lambda: found.append(cached_entry(package, spec("r", before=before)).path)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    wait_for(log.exists)
    go.touch()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4 and len(set(found)) == 1 and log.read_text() == "x"


def test_a_build_that_fails_leaves_nothing_and_blocks_nobody(package: Package, cache: Path) -> None:
    with pytest.raises(PackageError, match=r"weights cannot be prepacked: .*no more"):
        cached_entry(package, spec("r", before="raise SystemExit('no more')"))
    assert list_entries(cache) == []
    assert build(package, "r").is_dir()


def test_a_rebuild_beside_a_user_replaces_the_entry(package: Package, cache: Path) -> None:
    held = cached_entry(package, spec("r", 10))
    with (held.path / "w").open("rb") as mapped:
        again = cached_entry(package, spec("r", 20), rebuild=True)
        assert again.path == held.path and (again.path / "w").stat().st_size == 20
        assert len(mapped.read()) == 10
    assert [entry.in_use for entry in list_entries(cache)] == [True]


# -- file systems


def test_a_cache_that_is_read_only_is_used(package: Package, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, opened = build(package, "r"), os.open

    def read_only(path: str, flags: int, *mode: int) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY) and str(path).startswith(str(cache)):
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", read_only)
    assert cached_entry(package, spec("r")).path == entry
    assert cached_entry(Package(package.path.parent, package.manifest), spec("r")).path == entry
    with pytest.raises(PackageError, match=r"cannot be written: Read-only file system; .*EDGEPACK_CACHE"):
        cached_entry(package, spec("another"))


def test_without_locks_entries_are_used_and_never_removed(
    package: Package, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = build(package, "r")

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert cached_entry(package, spec("r")).path == entry
    with pytest.raises(OSError, match="No locks"):
        prune(cache, limit=1, everything=True)
    assert (entry / "w").is_file()
