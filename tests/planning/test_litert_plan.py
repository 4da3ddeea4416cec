"""What LiteRT costs by arithmetic, and recipes and options of that backend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgepack
from edgepack.errors import EdgepackError, UnsupportedError
from edgepack.model.spec import ModelSpec
from edgepack.planning.backends import backend_named
from edgepack.planning.plan import Plan, Target
from edgepack.planning.planner import make_plan, replan
from edgepack.planning.runtime_costs import LITERT_LM_RUNTIME
from edgepack.quant.recipes import builtin_recipes, load_recipe
from tests.support.specs import E2B, preset_spec
from tests.support.tiny import TinyPackages


@pytest.fixture(scope="module")
def e2b() -> ModelSpec:
    return preset_spec(E2B)


def row(plan: Plan, name: str) -> int:
    return next(row.resident_bytes for row in plan.rows if row.name == name)


def on_disk(plan: Plan, name: str) -> int:
    return next(row.disk_bytes for row in plan.rows if row.name == name)


def test_e2b_fits_2gb(e2b: ModelSpec) -> None:
    plan = make_plan(e2b, backend="litert")
    assert 1_550_000_000 < plan.total_bytes < 1_750_000_000
    assert plan.anonymous_bytes < 450_000_000


def test_sliding_caches_hold_one_window_and_full_ones_the_context(e2b: ModelSpec) -> None:
    plan = make_plan(e2b, backend="litert", context_tokens=4096)
    row_bytes = 2 * 2 * 256 * 4  # keys and values, two heads
    assert row(plan, "KV cache, sliding layers") == 16 * 512 * row_bytes
    assert row(plan, "KV cache, full layers") == 4 * 4096 * row_bytes


def test_the_embedding_is_stored_for_both_its_uses(e2b: ModelSpec) -> None:
    plan = make_plan(e2b, backend="litert")
    assert on_disk(plan, "embedding rows") == on_disk(plan, "embedding")
    untied = e2b.model_copy(update={"tied_head": False})
    assert "embedding rows" not in {row.name for row in make_plan(untied, backend="litert").rows}


def test_the_weight_cache_is_counted_on_disk_and_not_twice_in_memory(e2b: ModelSpec) -> None:
    plan = make_plan(e2b, backend="litert")
    # Measured: E2B's file of packed weights has 1,316,903,096 bytes.
    assert on_disk(plan, "weight cache") == pytest.approx(1_316_903_096, rel=0.01)
    assert row(plan, "weight cache") == 0


def test_longer_pieces_of_prefill_cost_memory(e2b: ModelSpec) -> None:
    short, long, both = (
        make_plan(e2b, backend="litert", prefill_tokens=pieces) for pieces in ((128,), (1024,), (128, 1024))
    )
    assert long.anonymous_bytes > short.anonymous_bytes + 300_000_000
    assert both.anonymous_bytes == long.anonymous_bytes
    assert both.prefill_tokens == (128, 1024) and both.chunk_tokens == 1024


def test_masks_scores_and_repacked_caches_grow_with_the_context(e2b: ModelSpec) -> None:
    short, long = (make_plan(e2b, backend="litert", context_tokens=context) for context in (1024, 4096))
    # Measured: 96 MB of anonymous memory from 1024 to 4096 tokens, of which 50 MB are caches of full layers.
    assert long.anonymous_bytes - short.anonymous_bytes == pytest.approx(96_400_000, rel=0.1)
    caches = row(long, "KV cache, full layers") - row(short, "KV cache, full layers")
    assert caches == 4 * 3072 * 2 * 2 * 256 * 4
    assert row(long, "activations") - row(short, "activations") == pytest.approx(96_400_000 - caches, rel=0.15)


def test_litert_lm_has_more_code_and_a_tokenizer_of_its_own(e2b: ModelSpec) -> None:
    plan = make_plan(e2b, backend="litert", context_tokens=4096)
    engine = make_plan(e2b, runtime="litert-lm", context_tokens=4096)
    assert (engine.backend, engine.runtime, plan.runtime) == ("litert", "litert-lm", "litert")
    assert engine.tensors == plan.tensors  # of one package
    assert (replan(plan, runtime="litert-lm"), replan(engine, runtime="litert")) == (engine, plan)
    assert row(engine, "runtime, tokenizer") == LITERT_LM_RUNTIME.tokenizer_piece_bytes * e2b.vocab_size
    assert {row.name for row in plan.rows} - {row.name for row in engine.rows} == {"models in the cache"}
    # Measured: 1.80 GB at a prompt of 1024 tokens.
    assert engine.total_bytes == pytest.approx(1_800_000_000, rel=0.05)


def test_a_target_is_judged_by_the_runtime(e2b: ModelSpec) -> None:
    room = Target(name="phone", limit_bytes=make_plan(e2b, runtime="litert").total_bytes + 10_000_000)
    assert make_plan(e2b, runtime="litert", target=room).fits
    engine = make_plan(e2b, runtime="litert-lm", target=room)
    assert not engine.fits and engine.suggestions
    for found in engine.suggestions:
        again = make_plan(e2b, runtime="litert-lm", recipe=found.recipe, context_tokens=found.context_tokens)
        assert again.total_bytes == found.total_bytes <= room.limit_bytes


@pytest.mark.parametrize(
    ("backend", "runtime", "said"),
    [
        ("onnx", "litert-lm", "litert-lm does not run what is exported for onnx: expected onnx.*, or --to litert"),
        ("litert", "onnx", "runtime onnx does not run what is exported for litert: expected litert or litert-lm, or"),
        (None, "litertlm", "runtime 'litertlm' is not known: expected one of onnx, "),
    ],
)
def test_a_runtime_that_does_not_run_it_is_refused(
    e2b: ModelSpec, backend: str | None, runtime: str, said: str
) -> None:
    with pytest.raises(UnsupportedError, match=said) as caught:
        make_plan(e2b, backend=backend, runtime=runtime)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, -1, 129])
def test_a_piece_that_does_not_fit_the_context_is_refused(e2b: ModelSpec, length: int) -> None:
    with pytest.raises(UnsupportedError, match=f"prefill of {length} tokens"):
        make_plan(e2b, backend="litert", context_tokens=128, prefill_tokens=(length,))


def test_tflite_is_another_word_for_litert(e2b: ModelSpec) -> None:
    assert backend_named("tflite") is backend_named("litert")
    assert make_plan(e2b, backend="tflite") == make_plan(e2b, backend="litert")


@pytest.mark.parametrize("backend", ["onnx", "litert"])
def test_every_builtin_recipe_suits_its_backend(e2b: ModelSpec, backend: str) -> None:
    for name in builtin_recipes(backend):
        assert load_recipe(name, backend).name == name
        plan = make_plan(e2b, backend=backend, recipe=name)
        assert not [t for t in plan.tensors if t.reason and len(t.shape) > 1 and t.component in ("ffn", "ple")]


def test_a_plan_is_followed(tiny_packages: TinyPackages) -> None:
    package = tiny_packages("shared", "int4", to="litert", prefill=(4, 32)).package
    plan = package.manifest.plan
    assert plan.backend == "litert" and plan.prefill_tokens == (4, 32)
    assert set(package.manifest.spans) == {"decoder", "embed", "per_layer_embed"}
    stored = plan.disk_bytes - on_disk(plan, "weight cache") - on_disk(plan, "models in the cache")
    assert on_disk(plan, "models in the cache") == stored
    assert stored < package.file("decoder").stat().st_size < stored + 1_000_000


@pytest.mark.parametrize("module", ["ai_edge_litert", "litert_lm_builder", "flatbuffers"])
def test_a_missing_library_of_the_converter_says_what_to_install(
    tiny_packages: TinyPackages, tmp_path: Path, module: str
) -> None:
    script = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "import edgepack\n"
        f"edgepack.export({str(tiny_packages('shared').checkpoint)!r}, to='litert', out={str(tmp_path / 'out')!r})\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert f"{module} is not installed: pip install -c constraints.txt '.[litert]'" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("runtime", "module", "ours"),
    [
        ("litert", "ai_edge_litert", "edgepack_runtimes.litert.runtime"),
        ("litert-lm", "litert_lm", "edgepack_runtimes.litert_lm.runtime"),
    ],
)
def test_a_missing_runtime_says_what_to_install(
    tiny_packages: TinyPackages, monkeypatch: pytest.MonkeyPatch, runtime: str, module: str, ours: str
) -> None:
    package = tiny_packages("shared", "int4", to="litert", prefill=(4, 32)).package
    loaded = (ours, "edgepack_runtimes.litert.api", module)
    for name in [name for name in sys.modules if name in loaded or name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EdgepackError, match=r"'\.\[run-litert\]'"):
        edgepack.load(package.path, runtime=runtime)
