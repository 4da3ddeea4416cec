"""Components of a process: mappings are told apart by what is mapped, and every resident row of a plan is in one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgepack.planning.plan import Plan
from edgepack.planning.planner import make_plan
from edgepack.validation.figures.components import ComponentComparison, MappedMemory, compare_components
from edgepack.validation.processes.mappings import parse_smaps, read_mappings
from tests.support.specs import E2B, E4B, preset_spec
from tests.support.tiny import CONTEXT, TinyPackages

PACKAGE = Path("/models/my package")
LINUX = pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="no smaps")


def mapping(path: str, resident_kb: int, anonymous_kb: int = 0) -> str:
    address = "7f0000000000-7f0000001000 r--p 00000000 fe:00 12 "
    return (
        f"{address:<73}{path}\nSize: 9999 kB\nRss: {resident_kb} kB\nPss: 1 kB\nAnonymous: {anonymous_kb} kB\n"
        "THPeligible: 0\nVmFlags: rd mr mw me ac\n"
    )


ONNX = (
    mapping("", 100, 100)
    + mapping("[heap]", 30, 30)
    + mapping("/cache/0123/decoder.onnx.data", 500)
    + mapping("/cache/0123/decoder.onnx.data", 70, 20)
    + mapping(f"{PACKAGE}/onnx/embed_tokens_q4.onnx_data", 40)
    + mapping("/usr/lib/libonnx.so.1", 60, 5)
)
LITERT = (
    mapping("[heap]", 30, 30)
    + mapping("/cache/4567/decoder.tflite", 3)
    + mapping("/cache/4567/decoder.xnnpack", 500)
    + mapping("/cache/4567/embed.tflite", 4)
    + mapping("/cache/4567/per_layer_embed.tflite", 50)
    + mapping("/usr/lib/libLiteRt.so", 60, 5)
)
LITERT_LM = (
    mapping("[heap]", 30, 30)
    + mapping("/cache/89ab/model.litertlm_17_26.xnnpack_cache", 500)
    + mapping(f"{PACKAGE}/litert/model.litertlm", 90)
    + mapping("/usr/lib/liblitert-lm.so", 60, 5)
)


def parsed(text: str) -> MappedMemory:
    memory = parse_smaps(text)
    assert memory is not None
    return memory


def by_name(plan: Plan, start: str | None, end: str | None) -> dict[str, ComponentComparison]:
    at_load, at_end = (None if text is None else parsed(text) for text in (start, end))
    return {found.name: found for found in compare_components(plan, at_load, at_end, PACKAGE)}


def measured_kb(found: dict[str, ComponentComparison], name: str) -> float | None:
    size = found[name].measured_bytes
    return None if size is None else size / 1024


def test_mappings_of_a_file_are_added_up_and_written_pages_are_anonymous() -> None:
    memory = parsed(ONNX)
    assert memory.anonymous_bytes == (100 + 30 + 20 + 5) * 1024
    assert memory.files == {
        "/cache/0123/decoder.onnx.data": 550 * 1024,
        f"{PACKAGE}/onnx/embed_tokens_q4.onnx_data": 40 * 1024,
        "/usr/lib/libonnx.so.1": 55 * 1024,
    }


def test_no_text_is_no_memory() -> None:
    assert parse_smaps("") is None
    assert read_mappings(2**22 + 1) is None  # larger than any process id


@pytest.mark.parametrize(
    ("runtime", "text", "rows", "weights"),
    [("onnx", ONNX, 40, 550), ("litert", LITERT, 54, 503), ("litert-lm", LITERT_LM, 90, 500)],
)
def test_files_are_told_apart(runtime: str, text: str, rows: int, weights: int) -> None:
    found = by_name(make_plan(preset_spec(E2B), runtime=runtime), None, text)
    assert measured_kb(found, "looked-up rows") == rows
    assert measured_kb(found, "weights") == weights
    assert measured_kb(found, "runtime, code") == 55


def test_heap_and_growth_are_told_apart_where_caches_grow() -> None:
    found = by_name(make_plan(preset_spec(E2B)), mapping("[heap]", 120, 120), ONNX)
    assert measured_kb(found, "heap after the load") == 120
    assert measured_kb(found, "caches and activations") == 155 - 120
    assert found["heap after the load"].rows == ("runtime, heap", "runtime, graph")


def test_where_caches_come_with_the_load_anonymous_memory_is_one_component() -> None:
    found = by_name(make_plan(preset_spec(E2B), backend="litert"), mapping("[heap]", 12, 12), LITERT)
    assert [name for name, value in found.items() if value.kind == "anonymous"] == ["heap, caches and activations"]
    assert measured_kb(found, "heap, caches and activations") == 35


@pytest.mark.parametrize("runtime", ["onnx", "litert", "litert-lm"])
@pytest.mark.parametrize("preset", [E2B, E4B])
def test_every_resident_row_is_in_one_component(preset: str, runtime: str) -> None:
    plan = make_plan(preset_spec(preset), runtime=runtime, context_tokens=64)
    found = compare_components(plan, None, None, PACKAGE)
    rows = [row for component in found for row in component.rows]
    assert sorted(rows) == sorted(row.name for row in plan.rows if row.resident_bytes)
    assert sum(component.planned_bytes for component in found) == plan.total_bytes
    assert {(component.measured_bytes, component.difference_percent) for component in found} == {(None, None)}


def test_the_engines_tokenizer_is_anonymous_memory() -> None:
    found = by_name(make_plan(preset_spec(E2B), runtime="litert-lm"), None, LITERT_LM)
    assert found["runtime, code"].rows == ("runtime, code",)
    assert "runtime, tokenizer" in found["heap, caches and activations"].rows


def test_the_difference_is_that_of_the_measured_bytes() -> None:
    found = by_name(make_plan(preset_spec(E2B)), None, ONNX)["runtime, code"]
    assert found.difference_percent == pytest.approx(100 * (55 * 1024 / found.planned_bytes - 1))


CHILD = """
import sys
import edgepack
model = edgepack.load(sys.argv[1], runtime=sys.argv[2], threads=1)
for tokens in (None, range(3, 60)):
    if tokens:
        model.prefill(list(tokens))
    print("look", flush=True)
    sys.stdin.readline()
"""


@LINUX
def test_pages_of_a_mapped_file_are_seen_and_those_not_touched_are_not(tmp_path: Path) -> None:
    file = tmp_path / "decoder.xnnpack"
    file.write_bytes(bytes(16 << 20))
    mapped = np.memmap(file, np.uint8, "r")
    before = read_mappings(os.getpid())
    mapped[: 8 << 20].max()
    after = read_mappings(os.getpid())
    assert before is not None and after is not None
    assert before.files[str(file)] == 0
    assert 8 << 20 <= after.files[str(file)] < 12 << 20


@LINUX
@pytest.mark.parametrize("backend", ["onnx", "litert"])
def test_a_real_run(backend: str, tiny_packages: TinyPackages) -> None:
    options = {"to": "litert", "prefill": (4, 32)} if backend == "litert" else {}
    package = tiny_packages("shared", "int4", **options).package  # type: ignore[arg-type]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    seen = []
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(package.path), backend],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        for _ in child.stdout:
            seen.append(read_mappings(child.pid))
            child.stdin.write("\n")
            child.stdin.flush()
    assert child.returncode == 0
    at_load, at_end = seen
    plan = make_plan(package.manifest.plan.spec, backend=backend, context_tokens=CONTEXT)
    found = {component.name: component for component in compare_components(plan, at_load, at_end, package.path)}
    weights = sum(path.stat().st_size for path in map(Path, at_end.files if at_end else ()) if "decoder" in path.name)
    assert 0 < (found["weights"].measured_bytes or 0) <= weights
    # The libraries' code is nearly all of a tiny model's memory, and the plan knows it.
    assert found["runtime, code"].difference_percent == pytest.approx(0, abs=15)
    # One thread and two pieces of prefill are not what the plan's figures were measured with.
    heap = found["heap after the load" if backend == "onnx" else "heap, caches and activations"]
    assert heap.difference_percent == pytest.approx(0, abs=35)
