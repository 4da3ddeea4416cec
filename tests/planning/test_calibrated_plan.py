"""Plans of recipes that take a calibration: made without one, and refused where a rounding or a fold has no place."""

from __future__ import annotations

from typing import Any

import pytest

from edgepack.errors import UnsupportedError
from edgepack.model.spec import ModelSpec
from edgepack.planning.planner import default_recipe, make_plan
from edgepack.planning.runtime_costs import EXPORT_BASE_BYTES
from edgepack.quant import FloatScheme, IntScheme, Recipe, Storage
from tests.support.specs import E2B, preset_spec

INT4 = IntScheme(bits=4, block=32, scale_dtype="float32")
GPTQ = Storage(scheme=INT4, rounding="gptq")
UP = "layers.0.mlp.up_proj.weight"


def recipe(**rows: Any) -> Recipe:
    default = Storage(scheme=FloatScheme())
    return Recipe.model_validate({"name": "mine", "description": "test", "default": default, **rows})


@pytest.fixture(scope="module")
def e2b() -> ModelSpec:
    return preset_spec(E2B)


def test_it_needs_no_calibration(e2b: ModelSpec) -> None:
    plan = make_plan(e2b, recipe=recipe(components={"ffn": GPTQ}, folds=["rotate_vo", "scale_up_down"]))
    assert plan.recipe.calibrated
    rounded = {tensor.component for tensor in plan.tensors if tensor.rounding == "gptq"}
    assert rounded == {"ffn"}


def test_a_single_tensor_is_stored_in_its_own_way(e2b: ModelSpec) -> None:
    plan = make_plan(e2b, recipe=recipe(tensors={UP: GPTQ}))
    assert [(tensor.name, tensor.scheme) for tensor in plan.tensors if tensor.rounding == "gptq"] == [(UP, INT4)]


@pytest.mark.parametrize("backend", ["onnx", "litert"])
def test_a_table_that_is_only_looked_up_is_refused(backend: str, e2b: ModelSpec) -> None:
    said = r"recipe mine, embed_tokens_per_layer\.weight: rounding gptq is for matrices of products, and this table is "
    with pytest.raises(UnsupportedError, match=said + "only looked up: expected nearest or search$"):
        make_plan(e2b, backend=backend, recipe=recipe(components={"ple": GPTQ}))


def test_an_embedding_that_is_no_head_is_searched(e2b: ModelSpec) -> None:
    """A recipe has one row for the embedding, whether or not it is the head too."""
    mine = recipe(components={"embedding": GPTQ, "head": GPTQ})
    untied = e2b.model_copy(update={"tied_head": False})
    roundings = [
        {t.component: t.rounding for t in make_plan(spec, recipe=mine).tensors if t.component in ("embedding", "head")}
        for spec in (e2b, untied)
    ]
    assert roundings == [{"embedding": "gptq"}, {"embedding": "search", "head": "gptq"}]


def test_the_default_takes_a_calibration_where_there_is_one(e2b: ModelSpec) -> None:
    plain, calibrated = (make_plan(e2b, recipe=default_recipe(calibrated=given)) for given in (False, True))
    assert (plain.recipe.calibrated, calibrated.recipe.calibrated) == (False, True)
    assert plain.rows == calibrated.rows
    assert [t.scheme for t in plain.tensors] == [t.scheme for t in calibrated.tensors]


@pytest.mark.parametrize("name", ["layers.99.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight", ""])
def test_a_tensor_that_there_is_not_is_named(name: str, e2b: ModelSpec) -> None:
    said = rf"recipe mine: '{name}' is no tensor of this model: expected a canonical name such as embed_tokens\.weight"
    with pytest.raises(UnsupportedError, match=said):
        make_plan(e2b, recipe=recipe(tensors={name: GPTQ}))


def test_a_scheme_that_the_backend_lacks_is_refused_of_a_tensor_as_well(e2b: ModelSpec) -> None:
    zeros = Storage(scheme=IntScheme(bits=4, block=32, zero_point=True), rounding="gptq")
    with pytest.raises(UnsupportedError, match=rf"recipe mine, {UP}: scheme int4-b32-zp .* is not possible in LiteRT"):
        make_plan(e2b, backend="litert", recipe=recipe(tensors={UP: zeros}))


def test_the_export_holds_second_moments(e2b: ModelSpec) -> None:
    """Those of the widest input and their factor, beside the factor of the one before; more than one chunk a thread."""
    plain, ffn = make_plan(e2b, recipe=recipe()), make_plan(e2b, recipe=recipe(components={"ffn": GPTQ}))
    chunks = 8 * (44 - 12) * 2**20
    assert ffn.export_peak_bytes - plain.export_peak_bytes == chunks + 4 * (2 * 8192**2 + 2048**2)
    one = make_plan(e2b, recipe=recipe(tensors={UP: GPTQ}))
    assert one.export_peak_bytes == EXPORT_BASE_BYTES + 8 * 44 * 2**20 + 4 * 2 * 2048**2
