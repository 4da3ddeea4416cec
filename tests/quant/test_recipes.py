"""Recipes: the built-in ones load and fit, files load, and every mistake in a file is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edgepack.errors import EdgepackError
from edgepack.model.spec import COMPONENTS, Component
from edgepack.quant import FloatScheme, IntScheme, Recipe, builtin_recipes, load_recipe


def recipe_data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(load_recipe("int8").model_dump_json())
    return data


def write(folder: Path, data: object) -> Path:
    path = folder / "mine.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def test_built_in_recipes_are_complete() -> None:
    assert builtin_recipes() == ("fp32", "int4", "int8")
    for name in builtin_recipes():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert set(recipe.components) == set(COMPONENTS)
        assert recipe.components["norm"] == recipe.components["altup"] == FloatScheme()


def test_fp32_is_float_everywhere() -> None:
    assert set(load_recipe("fp32").components.values()) == {FloatScheme()}


def test_tied_and_untied_head_are_treated_alike() -> None:
    for name in builtin_recipes():
        components = load_recipe(name).components
        assert components["head"] == components["embedding"]


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
    components = load_recipe("int4").components
    total_bytes = sum(count * components[component].nbytes(shape) for component, count, shape in matrices)
    assert total_bytes <= limit_bytes


def test_file_round_trip(tmp_path: Path) -> None:
    recipe = load_recipe("int4").model_copy(update={"name": "mine"})
    path = write(tmp_path, recipe.model_dump_json())
    assert load_recipe(path) == recipe
    assert load_recipe(str(path)) == recipe


def test_a_file_may_choose_every_field(tmp_path: Path) -> None:
    data = recipe_data()
    data["components"]["ffn"] = {"kind": "int", "bits": 2, "block": 32, "zero_point": True, "search": True}
    data["components"]["norm"] = {"kind": "float", "dtype": "float16"}
    components = load_recipe(write(tmp_path, data)).components
    assert components["ffn"] == IntScheme(bits=2, block=32, zero_point=True, search=True)
    assert components["norm"] == FloatScheme(dtype="float16")


def test_unknown_name_lists_the_built_in_ones() -> None:
    with pytest.raises(
        EdgepackError, match=r"'int5' is neither a built-in recipe \(fp32, int4, int8\) nor a JSON file"
    ):
        load_recipe("int5")


def test_missing_component_is_named(tmp_path: Path) -> None:
    data = recipe_data()
    del data["components"]["laurel"], data["components"]["ple"]
    path = write(tmp_path, data)
    with pytest.raises(EdgepackError, match=r"mine\.json: field components: no scheme for component ple, laurel$"):
        load_recipe(path)
    with pytest.raises(ValidationError):
        Recipe.model_validate(data)


def edit(*path: str, value: object) -> dict[str, Any]:
    data = recipe_data()
    target = data
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"name": "x",\n oops}', r"invalid JSON at line 2, column 2"),
        ("[]", r"a JSON object"),
        (edit("components", "ffn", "bits", value=3), r"field components\.ffn\.bits: "),
        (edit("components", "ffn", "block", value=100), r"field components\.ffn\.block: block must be a power of two"),
        (edit("components", "ffn", "group", value=1), r"field components\.ffn\.group: Extra inputs"),
        (edit("components", "ffn", "kind", value="q4"), r"field components\.ffn: .*'float', 'int'"),
        (edit("components", "ffn", value="int4"), r"field components\.ffn: "),
        (edit("components", "lm_head", value={"kind": "float"}), r"field components\.lm_head: "),
        (edit("name", value=7), r"field name: "),
        (edit("typo", value=1), r"field typo: Extra inputs"),
        ("\udcff", r"UTF-8"),
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
