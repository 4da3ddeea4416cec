"""What ONNX Runtime keeps of a package: packed weights, built once, mended when damaged, shared by equal packages."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgepack
from edgepack.errors import PackageError
from edgepack.package.folder import open_package
from edgepack_runtimes import cache as cache_module
from edgepack_runtimes import cache_files
from edgepack_runtimes.cache import entry_key
from edgepack_runtimes.cache_files import RECORD, STAMP
from edgepack_runtimes.onnx import runtime as onnx
from edgepack_runtimes.onnx.entry import DATA, FULL, WINDOW
from edgepack_runtimes.onnx.runtime import OnnxRuntime, cache_spec
from tests.support.paths import ROOT
from tests.support.tiny import Tiny, TinyPackages
from tests.support.tolerances import SAME_GRAPH_LOGITS

PATHS = os.pathsep.join(str(ROOT / part) for part in (".", "converters", "runtimes"))


@pytest.fixture
def shared(tiny_packages: TinyPackages) -> Tiny:
    return tiny_packages("shared")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of this test's own."""
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entries(cache: Path) -> list[Path]:
    """Everything in the cache folder but its lock."""
    return sorted(path for path in cache.iterdir() if path.name != cache_files.FOLDER_LOCK)


def works(case: Tiny) -> None:
    with OnnxRuntime(case.package, threads=1) as runtime:
        assert np.isfinite(runtime.prefill([5, 6, 7])).all()


def test_an_entry_is_built_once(shared: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    works(shared)
    entry = cache / entry_key(shared.package, cache_spec(shared.package))
    assert entries(cache) == [entry]
    assert sorted(file.name for file in entry.iterdir()) == sorted([DATA, FULL, WINDOW, RECORD, STAMP])

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the entry was built again")

    monkeypatch.setattr(cache_module, "run_python", refuse)
    works(shared)


@pytest.mark.parametrize(
    ("file", "damage"),
    [(DATA, "truncated"), (DATA, "zeros"), (FULL, "truncated"), (WINDOW, "missing"), (RECORD, "truncated")],
)
def test_a_damaged_entry_is_rebuilt(shared: Tiny, cache: Path, file: str, damage: str) -> None:
    works(shared)
    entry = cache / entry_key(shared.package, cache_spec(shared.package))
    whole = {name: (entry / name).read_bytes() for name in (DATA, FULL, WINDOW)}
    if damage == "missing":
        (entry / file).unlink()
    else:
        content = (entry / file).read_bytes()
        (entry / file).write_bytes(content[: len(content) // 2] if damage == "truncated" else bytes(len(content)))
    works(shared)
    assert {name: (entry / name).read_bytes() for name in whole} == whole


@pytest.mark.parametrize("file", [FULL, WINDOW])
def test_an_entry_that_does_not_load_is_rebuilt(
    shared: Tiny, cache: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Damage that neither size nor time nor samples show.
    works(shared)
    path = cache / entry_key(shared.package, cache_spec(shared.package)) / file
    whole, stat = path.read_bytes(), path.stat()
    path.write_bytes(b"\xff" * len(whole))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    monkeypatch.setattr(cache_files, "_sampled_checksum", lambda file: "")
    record = cache_files.read_record(path.parent)
    assert record is not None
    cache_files.write_record(path.parent, replace(record, files=cache_files.stamps(path.parent)))
    with OnnxRuntime(shared.package, threads=1) as runtime:
        assert np.isfinite(runtime.logits([5, 6, 7])).all()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("eighth", [1, 7])
def test_a_lost_stretch_is_noticed_though_size_and_time_are_right(eighth: int, shared: Tiny, cache: Path) -> None:
    # ONNX Runtime compares what was packed, in the first half, but not the raw weights behind: wrong logits, no error.
    works(shared)
    path = cache / entry_key(shared.package, cache_spec(shared.package)) / DATA
    whole, stat = path.read_bytes(), path.stat()
    start, stop = len(whole) * eighth // 8, len(whole) * (eighth + 1) // 8
    path.write_bytes(whole[:start] + bytes(stop - start) + whole[stop:])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    works(shared)
    assert path.read_bytes() == whole


def test_threads_that_open_a_package_at_once_share_one_build(shared: Tiny, cache: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = [held.path for held in pool.map(lambda _: onnx.prepacked(shared.package), range(3))]
    assert found == [cache / entry_key(shared.package, cache_spec(shared.package))] * 3
    assert entries(cache) == found[:1]


def test_a_changed_package_gets_an_entry_of_its_own(shared: Tiny, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "package"
    edgepack.export(shared.checkpoint, out=out, recipe="fp32", context=64)
    with edgepack.load(out) as runtime:
        before = runtime.prefill([5, 6, 7])
    edgepack.export(shared.checkpoint, out=out, recipe="int8", context=64, overwrite=True)
    with edgepack.load(out) as runtime:
        assert np.abs(runtime.prefill([5, 6, 7]) - before).max() > SAME_GRAPH_LOGITS
    assert [path.name for path in entries(cache)] == [entry_key(open_package(out), cache_spec(open_package(out)))]


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_cache_that_cannot_be_written_is_named(
    shared: Tiny, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file where the folder should be: permissions mean nothing to root.
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / place))
    with pytest.raises(PackageError, match=r"cache .*file.* cannot be written: .*EDGEPACK_CACHE"):
        OnnxRuntime(shared.package)


def test_two_processes_build_the_same_entry_at_once(shared: Tiny, cache: Path) -> None:
    script = (
        "import sys, numpy as np\n"
        "from edgepack.package.folder import open_package\n"
        "from edgepack_runtimes.onnx.runtime import OnnxRuntime\n"
        "with OnnxRuntime(open_package(sys.argv[1]), threads=1) as runtime:\n"
        "    print(runtime.prefill([5, 6, 7]).argmax())\n"
    )
    command = [sys.executable, "-c", script, str(shared.package.path)]
    environment = {**os.environ, "PYTHONPATH": PATHS}
    runs = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    results = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], results
    assert results[0][0] == results[1][0]
    assert [path.name for path in entries(cache)] == [entry_key(shared.package, cache_spec(shared.package))]


def test_packages_for_other_targets_share_an_entry(shared: Tiny, cache: Path, tmp_path: Path) -> None:
    made = [
        edgepack.export(shared.checkpoint, out=tmp_path / name, recipe="fp32", context=64, target=target)
        for name, target in (("one", "1GB"), ("two", "2GB"), ("three", None))
    ]
    for done in made:
        edgepack.load(done.package.path).close()
    (entry,) = entries(cache)
    record = cache_files.read_record(entry)
    assert record is not None and set(record.owners) == {str(done.package.path) for done in made}


def test_an_embedder_of_other_bytes_changes_no_key(shared: Tiny) -> None:
    manifest = shared.package.manifest
    keys = {}
    for role in ("embed", "decoder"):
        changed = [
            entry.model_copy(update={"sha256": "0" * 64}) if entry.path.startswith(manifest.graphs[role]) else entry
            for entry in manifest.files
        ]
        other = replace(shared.package, manifest=manifest.model_copy(update={"files": tuple(changed)}))
        keys[role] = entry_key(other, cache_spec(other))
    own = entry_key(shared.package, cache_spec(shared.package))
    assert keys["embed"] == own != keys["decoder"]


def test_weights_that_are_not_those_of_the_manifest_are_not_packed(shared: Tiny, cache: Path, tmp_path: Path) -> None:
    # A package with the hashes of another one would be packed under the other one's key.
    out = edgepack.export(shared.checkpoint, out=tmp_path / "package", recipe="fp32", context=64).package
    weights = out.file("decoder").with_name(f"{out.file('decoder').name}_data")
    weights.write_bytes(bytes(weights.stat().st_size))
    with pytest.raises(PackageError, match="was changed"):
        OnnxRuntime(out)
    assert entries(cache) == []
