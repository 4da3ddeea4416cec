"""Recipes: the built-in ones load and fit, files load, and every mistake in a file is named."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edgepack.errors import EdgepackError
from edgepack.model.spec import COMPONENTS, Component
from edgepack.quant import FloatScheme, IntScheme, Recipe, Storage, builtin_recipes, load_recipe


def recipe_data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(load_recipe("int8").model_dump_json())
    data["components"]["ffn"] = copy.deepcopy(data["default"])
    return data


def write(folder: Path, data: object) -> Path:
    path = folder / "mine.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


both_backends = pytest.mark.parametrize("backend", ["onnx", "litert"])


@both_backends
def test_built_in_recipes_are_complete(backend: str) -> None:
    assert {"fp32", "int4", "int8"} <= set(builtin_recipes(backend))
    for name in builtin_recipes(backend):
        recipe = load_recipe(name, backend)
        assert recipe.name == name
        assert recipe.storage("norm") == recipe.storage("altup") == Storage(scheme=FloatScheme())


@both_backends
def test_fp32_is_float_everywhere(backend: str) -> None:
    recipe = load_recipe("fp32", backend)
    assert {recipe.storage(component) for component in COMPONENTS} == {Storage(scheme=FloatScheme())}


@both_backends
def test_tied_and_untied_head_are_treated_alike(backend: str) -> None:
    for name in builtin_recipes(backend):
        recipe = load_recipe(name, backend)
        assert recipe.storage("head") == recipe.storage("embedding")


@pytest.mark.parametrize(("name", "limit_bytes"), [("e2b", 2_400_000_000), ("e4b", 3_850_000_000)])
def test_int4_fits_the_package_budget(name: str, limit_bytes: int) -> None:
    """The matrices of Gemma 3n by their published shapes: 50 MB of 2.45 and 3.9 GB are left for everything else."""
    layers, ffn = {"e2b": (30, 8192), "e4b": (35, 16384)}[name]
    hidden, ple_dim = 2048, 256
    matrices: list[tuple[Component, int, tuple[int, int]]] = [
        ("ffn", 2 * layers, (ffn, hidden)),
        ("ffn", layers, (hidden, ffn)),
        ("attention", 2 * layers, (2048, hidden)),
        ("attention", 20, (512, hidden)),  # 20 layers own keys and values
        ("attention_value", 20, (512, hidden)),
        ("embedding", 1, (262400, hidden)),
        ("ple", 1, (262144, layers * ple_dim)),
        ("per_layer", layers, (ple_dim, hidden)),
        ("per_layer", layers, (hidden, ple_dim)),
        ("per_layer", 1, (layers * ple_dim, hidden)),
        ("altup_projection", 6, (hidden, hidden)),
        ("laurel", layers, (64, hidden)),
        ("laurel", layers, (hidden, 64)),
    ]
    recipe = load_recipe("int4")
    total_bytes = sum(count * recipe.storage(component).scheme.nbytes(shape) for component, count, shape in matrices)
    assert total_bytes <= limit_bytes


def test_file_round_trip(tmp_path: Path) -> None:
    recipe = load_recipe("int4").model_copy(update={"name": "mine"})
    path = write(tmp_path, recipe.model_dump_json())
    assert load_recipe(path) == recipe
    assert load_recipe(str(path)) == recipe


def test_a_file_may_choose_every_field(tmp_path: Path) -> None:
    data = recipe_data()
    scheme = {"kind": "int", "bits": 2, "block": 32, "zero_point": True, "scale_dtype": "float16"}
    data["components"]["ffn"] = {"scheme": scheme, "rounding": "search"}
    data["components"]["norm"] = {"scheme": {"kind": "float", "dtype": "float16"}, "rounding": "nearest"}
    recipe = load_recipe(write(tmp_path, data))
    chosen = IntScheme(bits=2, block=32, zero_point=True, scale_dtype="float16")
    assert recipe.storage("ffn") == Storage(scheme=chosen, rounding="search")
    assert recipe.storage("norm") == Storage(scheme=FloatScheme(dtype="float16"))


def test_what_takes_a_calibration() -> None:
    gptq = Storage(scheme=IntScheme(bits=4, block=32), rounding="gptq")
    plain = load_recipe("int4")
    assert not plain.calibrated and not plain.model_copy(update={"folds": ("rotate_vo",)}).calibrated
    for changed in ({"default": gptq}, {"components": {"ffn": gptq}}, {"tensors": {"lm_head.weight": gptq}}):
        assert plain.model_copy(update=changed).calibrated, changed
    for fold in ("scale_up_down", "scale_ffn_norm"):
        assert plain.model_copy(update={"folds": (fold,)}).calibrated


def test_a_tensor_goes_before_its_component() -> None:
    gptq = Storage(scheme=IntScheme(bits=2, block=32), rounding="gptq")
    recipe = load_recipe("int4").model_copy(update={"tensors": {"layers.0.mlp.up_proj.weight": gptq}})
    assert recipe.storage("ffn", "layers.0.mlp.up_proj.weight") == gptq
    assert recipe.storage("ffn", "layers.1.mlp.up_proj.weight") == recipe.storage("ffn") != gptq


def test_unknown_name_lists_the_built_in_ones() -> None:
    with pytest.raises(EdgepackError, match=r"'int5' is neither a built-in recipe \(.*int4, .*\) nor a JSON file"):
        load_recipe("int5")


def test_a_default_stands_for_components_that_are_not_named(tmp_path: Path) -> None:
    rest, ple = FloatScheme(), IntScheme(bits=8, block=None)
    data = {"name": "mine", "description": "", "default": {"scheme": dict(rest)}}
    assert {load_recipe(write(tmp_path, data)).storage(name).scheme for name in COMPONENTS} == {rest}
    recipe = load_recipe(write(tmp_path, {**data, "components": {"ple": {"scheme": dict(ple)}}}))
    assert {name: recipe.storage(name).scheme for name in COMPONENTS} == dict.fromkeys(COMPONENTS, rest) | {"ple": ple}


def test_missing_component_is_named(tmp_path: Path) -> None:
    data = recipe_data()
    row = data.pop("default")
    data["components"] = rows = dict.fromkeys(COMPONENTS, row)
    assert load_recipe(write(tmp_path, data)).components.keys() == set(COMPONENTS)
    del rows["laurel"], rows["ple"]
    said = r"mine\.json: field components: no scheme for component ple, laurel: name each, or add a default$"
    with pytest.raises(EdgepackError, match=said):
        load_recipe(write(tmp_path, data))
    with pytest.raises(ValidationError):
        Recipe.model_validate(data)


def edit(*path: str, value: object) -> dict[str, Any]:
    data = recipe_data()
    target = data
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    return data


FFN = ("components", "ffn")
FLOAT_SEARCHED = {"scheme": {"kind": "float"}, "rounding": "search"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"name": "x",\n oops}', r"not valid JSON: .* line 2 column 2"),
        ("[]", r"a JSON object"),
        (edit(*FFN, "scheme", "bits", value=3), r"field components\.ffn\.scheme\.bits: "),
        (
            edit(*FFN, "scheme", "block", value=100),
            r"field components\.ffn\.scheme\.block: block must be a power",
        ),
        (edit(*FFN, "scheme", "group", value=1), r"field components\.ffn\.scheme\.group: Extra inputs"),
        (edit(*FFN, "scheme", "kind", value="q4"), r"field components\.ffn\.scheme: .*'float', 'int'"),
        (edit(*FFN, "scheme", value={"bits": 4, "block": 32}), r"field components\.ffn\.scheme: .*'kind'"),
        (edit(*FFN, value="int4"), r"field components\.ffn: "),
        (edit(*FFN, value={"kind": "int", "bits": 4, "block": 32}), r"field components\.ffn\.scheme: Field required"),
        (edit(*FFN, "rounding", value="up"), r"field components\.ffn\.rounding: .*'nearest', 'search' or 'gptq'"),
        (edit(*FFN, value=FLOAT_SEARCHED), r"field components\.ffn: rounding search needs an int scheme: leave it out"),
        (edit("default", "scheme", "bits", value=3), r"field default\.scheme\.bits: "),
        (edit("default", value=FLOAT_SEARCHED), r"field default: rounding search needs an int scheme"),
        (edit("components", "lm_head", value={"scheme": {"kind": "float"}}), r"field components\.lm_head: "),
        (edit("default", value=FLOAT_SEARCHED | {"rounding": "gptq"}), r"field default: rounding gptq needs an int"),
        (
            edit("tensors", value={"lm_head.weight": FLOAT_SEARCHED}),
            r"field tensors\.lm_head.weight: rounding search ne",
        ),
        (edit("folds", value=["rotate_qk"]), r"field folds\.0: .*'rotate_vo', 'scale_up_down' or 'scale_ffn_norm'"),
        (edit("name", value=7), r"field name: "),
        (edit("typo", value=1), r"field typo: Extra inputs"),
        ("\udcff", r"not valid JSON: 'utf-8' codec"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, data: object, message: str) -> None:
    path = tmp_path / "mine.json"
    if data == "\udcff":
        path.write_bytes(b"\xff\xfe{}")
    else:
        write(tmp_path, data)
    with pytest.raises(EdgepackError, match=message) as caught:
        load_recipe(path)
    assert "mine.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(EdgepackError, match="nor a JSON file"):
        load_recipe(tmp_path)
