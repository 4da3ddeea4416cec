"""Plans: every tensor gets a scheme that its shape and the backend allow, sums add up, suggestions really fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from edgepack.errors import EdgepackError, UnsupportedError
from edgepack.loading import RUNTIMES
from edgepack.model.families import family_of
from edgepack.model.spec import ModelSpec
from edgepack.planning.backends import BACKENDS, BackendName, RuntimeName
from edgepack.planning.plan import Plan, Target, load_plan
from edgepack.planning.planner import DEFAULT_RECIPE, make_plan
from edgepack.planning.runtime_costs import ONNX_RUNTIME, RUNTIME_COSTS
from edgepack.quant import FloatScheme, IntScheme, Recipe, Storage, builtin_recipes
from tests.support.specs import E2B, E4B, preset_spec, recipe_with

FLOAT16, FLOAT32 = FloatScheme(dtype="float16"), FloatScheme()


@pytest.fixture(scope="module")
def e2b() -> ModelSpec:
    return preset_spec(E2B)


# -- schemes


@pytest.mark.parametrize("name", ["fp32", "int8", "int4"])
def test_every_tensor_is_planned_once_and_can_be_stored(name: str, e2b: ModelSpec) -> None:
    plan = make_plan(e2b, recipe=name)
    table = family_of(e2b).tensor_table(e2b)
    assert [(t.name, t.shape, t.component) for t in plan.tensors] == [(t.name, t.shape, t.component) for t in table]
    for tensor in plan.tensors:
        tensor.scheme.nbytes(tensor.shape)
        row = plan.recipe.storage(tensor.component)
        if (tensor.scheme, tensor.rounding) != (row.scheme, row.rounding):
            assert tensor.reason


def test_a_narrow_matrix_gets_a_smaller_block_and_says_so(e2b: ModelSpec) -> None:
    plan = make_plan(e2b, recipe=recipe_with("int4", laurel=IntScheme(bits=4, block=128)))
    planned = {t.name: t for t in plan.tensors}
    left, right = planned["layers.3.laurel.linear_left.weight"], planned["layers.3.laurel.linear_right.weight"]
    assert (left.scheme, left.reason) == (IntScheme(bits=4, block=128), None)
    assert right.scheme == IntScheme(bits=4, block=64)
    assert right.reason == "64 columns are no multiple of block 128"


def test_a_matrix_that_no_block_fits_stays_float_and_says_so() -> None:
    spec = preset_spec(E2B, laurel_rank=24)
    row = Storage(scheme=IntScheme(bits=4, block=64), rounding="search")
    mine = Recipe(name="mine", description="test", default=row)
    tensor = next(t for t in make_plan(spec, recipe=mine).tensors if t.name.endswith("linear_right.weight"))
    assert (tensor.scheme, tensor.rounding) == (FLOAT32, "nearest")
    assert tensor.reason == "24 columns are no multiple of the smallest block, 16"


def test_vectors_are_float32_whatever_the_recipe_says(e2b: ModelSpec) -> None:
    plan = make_plan(
        e2b, recipe=recipe_with("int4", norm=IntScheme(bits=8, block=64), altup=IntScheme(bits=8, block=16))
    )
    for tensor in plan.tensors:
        if len(tensor.shape) == 1:
            assert tensor.scheme == FLOAT32
            assert tensor.reason == "a vector: float32 costs nothing and norms need it"


@pytest.mark.parametrize("component", ["ffn", "attention", "embedding", "per_layer", "altup_projection"])
def test_float16_matrices_are_refused_for_onnx(component: str, e2b: ModelSpec) -> None:
    with pytest.raises(UnsupportedError, match=r"recipe mine, .*: float16 is not possible in ONNX .*") as caught:
        make_plan(e2b, recipe=recipe_with("int4", **{component: FLOAT16}))
    assert "\n" not in str(caught.value)


def test_value_projections_have_a_scheme_of_their_own(e2b: ModelSpec) -> None:
    def bits(*projections: str) -> set[int]:
        names = tuple(f"self_attn.{projection}_proj.weight" for projection in projections)
        schemes = [tensor.scheme for tensor in make_plan(e2b).tensors if tensor.name.endswith(names)]
        return {scheme.bits for scheme in schemes if isinstance(scheme, IntScheme)}

    assert (bits("v"), bits("q", "k", "o")) == ({8}, {4})


def test_a_float16_table_is_fine(e2b: ModelSpec) -> None:
    plan = make_plan(e2b, recipe=recipe_with("int4", ple=FLOAT16))
    assert {t.scheme for t in plan.tensors if t.component == "ple"} == {FLOAT16}
    untied = make_plan(e2b.model_copy(update={"tied_head": False}), recipe=recipe_with("int4", embedding=FLOAT16))
    assert {t.scheme for t in untied.tensors if t.component == "embedding"} == {FLOAT16}


def test_unknown_backends_list_the_known_ones(e2b: ModelSpec) -> None:
    with pytest.raises(UnsupportedError, match="backend 'coreml' is not known") as caught:
        make_plan(e2b, backend="coreml")
    assert all(name in str(caught.value) for name in BACKENDS)


def test_every_backend_and_runtime_stands_in_all_tables() -> None:
    rows = {row.name: row for row in BACKENDS.values()}
    assert rows.keys() == set(get_args(BackendName))
    assert all(DEFAULT_RECIPE in builtin_recipes(name) for name in rows)
    # Each runtime in one row alone: it stands for its backend where nobody names one.
    run = sorted(runtime for row in rows.values() for runtime in row.runtimes)
    assert run == sorted(get_args(RuntimeName)) == sorted(RUNTIMES) == sorted(RUNTIME_COSTS)


@pytest.mark.parametrize("context", [0, -1, 32769])
def test_a_context_that_the_model_cannot_hold_is_refused(context: int, e2b: ModelSpec) -> None:
    with pytest.raises(UnsupportedError, match=f"context of {context} tokens is not possible: expected 1 to 32768"):
        make_plan(e2b, context_tokens=context)


@pytest.mark.parametrize("context", [1, 5, 127, 32768])
def test_every_context_that_it_can_hold_is_planned(context: int, e2b: ModelSpec) -> None:
    plan = make_plan(e2b, context_tokens=context)
    assert 1 <= plan.chunk_tokens <= context


# -- bytes


@pytest.mark.parametrize(("name", "limit_bytes"), [(E2B, 2_450_000_000), (E4B, 3_900_000_000)])
def test_int4_packages_stay_under_the_bar(name: str, limit_bytes: int) -> None:
    plan = make_plan(preset_spec(name))
    assert plan.recipe.name == "int4"
    assert plan.disk_bytes <= limit_bytes


@pytest.mark.parametrize(("name", "limit_bytes"), [(E2B, 2 * 10**9), (E4B, 3 * 10**9)])
def test_the_published_models_fit_their_phones(name: str, limit_bytes: int) -> None:
    plan = make_plan(preset_spec(name), target=Target(name="phone", limit_bytes=limit_bytes))
    assert plan.fits
    assert plan.blame is None
    assert plan.suggestions == ()


@pytest.mark.parametrize("name", ["fp32", "int8", "int4"])
def test_totals_are_sums(name: str, e2b: ModelSpec) -> None:
    plan = make_plan(e2b, recipe=name)
    assert plan.total_bytes == sum(row.resident_bytes for row in plan.rows)
    file_bytes = sum(row.resident_bytes for row in plan.rows if row.kind == "file")
    assert plan.total_bytes - plan.anonymous_bytes == file_bytes
    assert plan.disk_bytes == sum(t.scheme.nbytes(t.shape) for t in plan.tensors)
    for component in {t.component for t in plan.tensors}:
        expected = sum(t.scheme.nbytes(t.shape) for t in plan.tensors if t.component == component)
        assert sum(row.disk_bytes for row in plan.rows if row.name == component) == expected
    assert len({row.name for row in plan.rows}) == len(plan.rows)


def test_key_and_value_bytes_are_those_of_the_table(e2b: ModelSpec) -> None:
    # GEMMA3N.md: 20 owners, 16 sliding with window 512 (and some slack), 4 full; K and V, 2 heads of 256 float32.
    rows = {row.name: row for row in make_plan(e2b, context_tokens=4096).rows}
    row_bytes, slack = 2 * 2 * 256 * 4, ONNX_RUNTIME.window_slack_tokens
    assert rows["KV cache, full layers"].resident_bytes == 4 * 4096 * row_bytes
    assert rows["KV cache, sliding layers"].resident_bytes == 16 * (512 + slack) * row_bytes
    assert rows["KV cache, full layers"].kind == "anonymous"
    short = {row.name: row for row in make_plan(e2b, context_tokens=100).rows}
    assert short["KV cache, sliding layers"].resident_bytes == 16 * 100 * row_bytes


def test_the_per_layer_table_stays_on_file(e2b: ModelSpec) -> None:
    plans = {context: make_plan(e2b, context_tokens=context) for context in (1, ONNX_RUNTIME.lookup_tokens, 4096)}
    for plan in plans.values():
        rows = {row.name: row for row in plan.rows}
        assert (rows["ple"].kind, rows["ple"].resident_bytes) == ("file", 0)
        assert rows["ple"].disk_bytes > 1_000_000_000
    # What is resident of it are the pages around looked-up rows, until the runtime gives them back.
    touched = [next(r.resident_bytes for r in p.rows if r.name == "looked-up rows") for p in plans.values()]
    assert 0 < touched[0] < touched[1] == touched[2] < 100_000_000


def test_a_step_reads_what_is_multiplied_whole_windows_and_half_the_rest(e2b: ModelSpec) -> None:
    plan = make_plan(e2b)
    components = {t.component for t in plan.tensors}
    weights = sum(row.resident_bytes for row in plan.rows if row.name in components)
    cache = {row.name: row.resident_bytes for row in plan.rows if row.name.startswith("KV cache")}
    windows, full = cache["KV cache, sliding layers"], cache["KV cache, full layers"]
    assert plan.read_per_token_bytes == weights + windows + full // 2
    assert 1_000_000_000 < weights < plan.disk_bytes - 900_000_000  # the table is over 1 GB


# -- against measurement (docs/benchmarks.md; benchmarks/plan_table.py prints the table)


@pytest.mark.parametrize(
    ("name", "backend", "context", "measured_bytes"),
    [
        (E2B, "onnx", 1024, 1_691_900_000),
        (E2B, "onnx", 4096, 1_734_400_000),
        (E2B, "litert", 1024, 1_558_000_000),
        (E2B, "litert", 4096, 1_657_000_000),
        (E4B, "onnx", 1024, 2_889_700_000),
        (E4B, "onnx", 4096, 2_889_700_000),
        (E4B, "litert", 1024, 2_657_200_000),
        (E4B, "litert", 4096, 2_747_300_000),
    ],
)
def test_totals_are_those_that_were_measured(name: str, backend: str, context: int, measured_bytes: int) -> None:
    plan = make_plan(preset_spec(name), backend=backend, context_tokens=context)
    assert plan.total_bytes == pytest.approx(measured_bytes, rel=0.02)


def test_the_load_is_the_peak_of_a_large_vocabulary_and_of_a_short_run(e2b: ModelSpec) -> None:
    """While weights are packed, raw scales and zero points are resident, and caches and activations are not."""

    def loading(context: int) -> int:
        rows = {row.name: row.resident_bytes for row in make_plan(preset_spec(E4B), context_tokens=context).rows}
        return rows.get("loading", 0)

    assert loading(512) > loading(1024) > 0  # E4B's peak did not change from 1024 to 4096 tokens
    assert loading(8192) == 0
    short, shorter = (make_plan(preset_spec(E4B), context_tokens=context) for context in (1024, 512))
    assert short.total_bytes == shorter.total_bytes
    assert "loading" not in {row.name for row in make_plan(e2b, backend="litert", context_tokens=128).rows}


def test_a_head_in_slices_is_packed_beside_its_first_ones(e2b: ModelSpec) -> None:
    # A head of two products of 84 MB each: while the second is packed, all of the first is resident.
    small = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0}
    spec = preset_spec(
        E2B, hidden_size=640, intermediate_size=[256] * 2, activation_sparsity_pattern=[0.0] * 2, **small
    )
    plan = make_plan(spec, recipe="int8", context_tokens=16)
    head = next(tensor for tensor in plan.tensors if tensor.component == "embedding" and tensor.gathered)
    raw = head.scheme.nbytes(head.shape)
    assert 1.9 * raw < plan.total_bytes - plan.anonymous_bytes - ONNX_RUNTIME.library_file_bytes < 2.3 * raw


def test_graphs_cost_heap_by_layer() -> None:
    for backend in ("onnx", "litert"):
        e2b, e4b = (
            next(
                row.resident_bytes for row in make_plan(preset_spec(name), backend=backend).rows if "graph" in row.name
            )
            for name in (E2B, E4B)
        )
        assert e4b * 30 == e2b * 35 > 0


# -- over the target


@pytest.mark.parametrize(("name", "limit_bytes", "context"), [(E4B, 3 * 10**9, 32768), (E2B, 1_900_000_000, 32768)])
def test_over_the_target_the_suggestions_really_fit(name: str, limit_bytes: int, context: int) -> None:
    spec, target = preset_spec(name), Target(name="phone", limit_bytes=limit_bytes)
    plan = make_plan(spec, recipe="int8", context_tokens=context, target=target)
    assert not plan.fits
    assert plan.blame == max(plan.rows, key=lambda row: row.resident_bytes).name
    assert plan.suggestions
    for suggestion in plan.suggestions:
        again = make_plan(spec, recipe=suggestion.recipe, context_tokens=suggestion.context_tokens, target=target)
        assert again.fits
        assert again.total_bytes == suggestion.total_bytes
        assert suggestion.context_tokens <= context
    contexts = [suggestion.context_tokens for suggestion in plan.suggestions]
    assert contexts == sorted(contexts, reverse=True)


def test_where_nothing_fits_nothing_is_suggested(e2b: ModelSpec) -> None:
    plan = make_plan(e2b, target=Target(name="watch", limit_bytes=100_000_000))
    assert not plan.fits
    assert plan.blame is not None
    assert plan.suggestions == ()


def test_below_the_smallest_context_the_asked_one_is_still_tried(e2b: ModelSpec) -> None:
    spec = preset_spec(E2B)
    needed = make_plan(spec, recipe="int4", context_tokens=128).total_bytes
    plan = make_plan(spec, recipe="int8", context_tokens=128, target=Target(name="t", limit_bytes=needed))
    assert [(s.recipe, s.context_tokens, s.total_bytes) for s in plan.suggestions] == [("int4", 128, needed)]


def test_a_recipe_of_ones_own_is_suggested_at_a_smaller_context(e2b: ModelSpec) -> None:
    mine = recipe_with("int4", embedding=IntScheme(bits=8, block=128))
    needed = make_plan(e2b, recipe=mine, context_tokens=1024).total_bytes
    plan = make_plan(e2b, recipe=mine, context_tokens=4096, target=Target(name="t", limit_bytes=needed))
    assert ("mine", 1024) in [(s.recipe, s.context_tokens) for s in plan.suggestions]


def test_a_target_of_exactly_the_total_fits(e2b: ModelSpec) -> None:
    total = make_plan(e2b).total_bytes
    assert make_plan(e2b, target=Target(name="exact", limit_bytes=total)).fits
    assert not make_plan(e2b, target=Target(name="less", limit_bytes=total - 1)).fits


# -- on disk


def test_a_plan_survives_json(e2b: ModelSpec, tmp_path: Path) -> None:
    plan = make_plan(e2b, recipe="int8", target=Target(name="2GB", limit_bytes=2 * 10**9))
    path = tmp_path / "plan.json"
    path.write_text(plan.model_dump_json(), "utf-8")
    assert load_plan(path) == plan
    assert Plan.model_validate(json.loads(path.read_text("utf-8"))) == plan


def test_a_plan_that_is_not_there_or_no_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(EdgepackError, match=rf"plan {path} cannot be read: .*edgepack plan --save"):
            load_plan(path)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"backend": "coreml"}, "backend"),
        ({"context_tokens": "many"}, "context_tokens"),
        ({"extra": 1}, "extra"),
        ({"schema_version": 99}, "schema_version"),
        ({"chunk_tokens": 0}, "chunk_tokens"),
        ({"tensors": None}, "tensors"),
    ],
)
def test_a_wrong_field_of_a_plan_is_named(
    change: dict[str, object], field: str, e2b: ModelSpec, tmp_path: Path
) -> None:
    data = {**json.loads(make_plan(e2b).model_dump_json()), **change}
    (tmp_path / "plan.json").write_text(json.dumps(data), "utf-8")
    with pytest.raises(EdgepackError, match=rf"plan .*plan.json: {field}: ") as caught:
        load_plan(tmp_path / "plan.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_file_that_is_no_plan_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(EdgepackError, match=r"plan .*plan.json: the document: ") as caught:
        load_plan(tmp_path / "plan.json")
    assert "\n" not in str(caught.value)
