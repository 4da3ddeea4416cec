"""What the ONNX runtime layer refuses, and what its cache of prepacked weights survives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

import edgepack
from edgepack.errors import EdgepackError, PackageError
from edgepack.package.folder import MANIFEST, open_package
from edgepack_runtimes.cache import entry_key
from edgepack_runtimes.onnx import prepack as onnx_prepack
from edgepack_runtimes.onnx.entry import DATA
from edgepack_runtimes.onnx.runtime import OnnxRuntime, cache_spec, prepacked
from tests.support.tiny import Tiny, TinyPackages


@pytest.fixture
def shared(tiny_packages: TinyPackages) -> Tiny:
    return tiny_packages("shared")


def edited(source: Path, folder: Path, change: dict[str, Any]) -> Path:
    """A copy of a package whose manifest says something else about the model, or about the plan."""
    shutil.copytree(source, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    for key, value in change.items():
        *parts, last = key.split(".")
        reduce(lambda place, part: place[part], parts, manifest["plan"])[last] = value
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        ({"spec.vocab_size": 105}, "embed_tokens.weight .* expects .105, 64"),
        ({"spec.attention.full.num_kv_heads": 1}, "layers.2.self_attn.k_proj.weight .* expects .16, 64"),
        ({"spec.attention.sliding.head_dim": 32}, "layers.0.self_attn.q_proj.weight .* expects .128, 64"),
        ({"spec.hidden_size": 128}, "embed_tokens.weight .* expects .104, 128"),
        ({"context_tokens": 10**15}, "1000000000000000"),
    ],
)
def test_a_manifest_of_another_model_is_refused_before_anything_runs(
    shared: Tiny, tmp_path: Path, change: dict[str, Any], needle: str
) -> None:
    package = edited(shared.package.path, tmp_path / "pkg", change)
    with pytest.raises(EdgepackError, match=needle):
        edgepack.load(package)


@pytest.mark.parametrize("threads", [0, -3, 10**6])
def test_thread_counts_are_checked(shared: Tiny, threads: int) -> None:
    with pytest.raises(EdgepackError, match=f"threads is {threads}"):
        OnnxRuntime(shared.package, threads=threads)


def test_what_onnxruntime_refuses_in_a_step_is_one_line(shared: Tiny) -> None:
    with OnnxRuntime(shared.package, threads=1) as runtime:
        assert runtime._decoder is not None
        runtime._decoder.positions[:] = 10**9  # rows that the rotary tables do not have
        with pytest.raises(PackageError, match="refused a step") as caught:
            runtime.prefill([2, 3, 4])
    assert "\n" not in str(caught.value)


def test_a_copied_package_keeps_its_entry_when_the_original_is_gone(
    shared: Tiny, tiny_packages: TinyPackages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    original, copy = tmp_path / "original", tmp_path / "copy"
    shutil.copytree(shared.package.path, original)
    entry = prepacked(open_package(original)).path
    shutil.copytree(original, copy)
    assert prepacked(open_package(copy)).path == entry
    shutil.rmtree(original)
    prepacked(tiny_packages("gemma3").package)  # another package cleans the cache up
    assert (entry / DATA).is_file()
    assert entry.name == entry_key(open_package(copy), cache_spec(open_package(copy)))


def test_copying_weights_survives_short_reads_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(range(256)) * 40
    (tmp_path / "source").write_bytes(content)
    source, target = os.open(tmp_path / "source", os.O_RDONLY), os.open(tmp_path / "target", os.O_WRONLY | os.O_CREAT)
    pread, pwrite = os.pread, os.pwrite
    monkeypatch.setattr(os, "pread", lambda fd, length, at: pread(fd, min(length, 1000), at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:300], at))
    onnx_prepack._copy(source, 100, target, 50, 5000)
    with pytest.raises(OSError, match="too early"):
        onnx_prepack._copy(source, 10_000, target, 9000, 5000)
    os.close(source)
    os.close(target)
    assert (tmp_path / "target").read_bytes()[50 : 50 + 5000] == content[100:5100]


def test_an_export_that_would_miss_its_target_writes_nothing(shared: Tiny, tmp_path: Path) -> None:
    with pytest.raises(EdgepackError, match="largest"):
        edgepack.export(shared.checkpoint, out=tmp_path / "pkg", context=64, target="1MB")
    with pytest.raises(EdgepackError, match="either"):
        edgepack.export(shared.checkpoint, out=tmp_path / "pkg", plan=shared.package.manifest.plan, target="1GB")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_heap_goes_back_to_the_system() -> None:
    # In a process of its own: small blocks, so that they come from the heap; one at the end keeps its top in use.
    script = """
from edgepack_runtimes.native.heap import trimmed_heap
def anonymous():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) * 1024
with trimmed_heap():
    blocks = [bytearray(60_000) for _ in range(2_000)]
    held, last = anonymous(), blocks[-1]
    del blocks
print(held - anonymous())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100_000_000
