"""What a cache entry knows of the packages that were checked: none is checked twice, none is taken for another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

import edgepack
from edgepack.errors import PackageError
from edgepack.package.folder import ALWAYS_HASHED_BYTES, Package, open_package
from edgepack_runtimes import cache, cache_fill
from edgepack_runtimes.cache_fill import FAILED, REFUSED
from tests.support.malicious import copied, edit
from tests.support.paths import ROOT
from tests.support.tiny import TinyPackages

PATHS = os.pathsep.join(str(ROOT / part) for part in (".", "converters", "runtimes"))
BACKENDS = pytest.mark.parametrize("to", ["onnx", "litert"])


@pytest.fixture
def folder(tiny_packages: TinyPackages, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of this test's own, with its entry in a cache of this test's own."""
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    package = copied(tiny_packages("shared", to=to).package.path, tmp_path / "package")
    edgepack.load(package, threads=1).close()
    return package


def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of the processes that are started from now on."""
    commands: list[list[str]] = []
    run = cache.run_python

    def noted(*arguments: str, **options: Any) -> Any:
        commands.append(list(arguments))
        return run(*arguments, **options)

    monkeypatch.setattr(cache, "run_python", noted)
    return commands


def large_file(folder: Path) -> Path:
    """A file that is not hashed when a package is opened: weights of the decoder."""
    (found,) = [entry for entry in open_package(folder).manifest.files if entry.size_bytes > ALWAYS_HASHED_BYTES]
    return folder / found.path


@BACKENDS
def test_a_later_load_starts_no_process_and_imports_no_guard(folder: Path) -> None:
    script = (
        "import subprocess, sys, edgepack\n"
        "from edgepack_runtimes import cache\n"
        "cache.run_python = None\n"
        "edgepack.load(sys.argv[1], threads=1).close()\n"
        "print([name for name in sys.modules if name == 'onnx' or '.guards' in name or name == 'google.protobuf'])\n"
    )
    command, environment = [sys.executable, "-c", script, str(folder)], {**os.environ, "PYTHONPATH": PATHS}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


@BACKENDS
def test_weights_that_were_changed_after_the_entry_was_built_are_noticed(folder: Path) -> None:
    file = large_file(folder)
    with file.open("r+b") as opened:
        opened.seek(-5, os.SEEK_END)
        opened.write(b"other")
    with pytest.raises(PackageError, match=rf"^{file} was changed: its sha256 is not the manifest's"):
        edgepack.load(folder)


@BACKENDS
def test_a_package_that_was_only_touched_is_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large_file(folder).touch()
    commands = started(monkeypatch)
    for _ in range(2):
        edgepack.load(folder, threads=1).close()
    (command,) = commands
    assert command[-2:] == [str(folder), open_package(folder).fingerprint()]  # no folder to fill


@BACKENDS
def test_a_copy_is_checked_before_it_uses_the_entry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = copied(folder, folder.with_name("copy"))
    commands = started(monkeypatch)
    edgepack.load(copy, threads=1).close()
    assert [command[-2] for command in commands] == [str(copy)]
    lame = copied(folder, folder.with_name("lame"))  # with the hashes of the other, and its entry
    large_file(lame).write_bytes(bytes(large_file(folder).stat().st_size))
    with pytest.raises(PackageError, match="was changed"):
        edgepack.load(lame)


@BACKENDS
def test_a_manifest_that_says_otherwise_of_the_same_weights_is_refused(folder: Path) -> None:
    edit(folder, lambda data: data["plan"].update(context_tokens=64, prefill_tokens=[32]))
    with pytest.raises(PackageError, match=r"where the manifest says|not in both"):
        edgepack.load(folder)


@pytest.mark.parametrize("to", ["onnx"])
def test_the_process_says_in_one_line_what_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def packs(package: Package, out: Path) -> None:
        raise RuntimeError("cannot\nbe packed")

    def refuses(package: Package) -> NoReturn:
        raise PackageError("not this one")

    seen = open_package(folder).fingerprint()
    assert cache_fill.fill(lambda package: None, packs, [str(folder), "0" * 64, "out"]) == REFUSED
    assert capsys.readouterr().err == f"{folder} was changed while it was loaded: load it again\n"
    assert cache_fill.fill(refuses, packs, [str(folder), seen, "out"]) == REFUSED
    assert capsys.readouterr().err == "not this one\n"
    assert cache_fill.fill(lambda package: None, packs, [str(folder), seen, "out"]) == FAILED
    assert capsys.readouterr().err == "cannot be packed\n"
    assert cache_fill.fill(lambda package: None, packs, [str(folder), seen]) == 0
    assert cache_fill.fill(refuses, packs, [str(folder / "none"), seen]) == REFUSED
    assert capsys.readouterr().err.startswith(f"{folder / 'none'} is not a package: no such folder")
