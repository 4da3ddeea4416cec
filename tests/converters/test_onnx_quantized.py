"""T3: a quantized package computes what the fp32 package of the dequantized weights computes.

This tests the emission (codes, scales and zero points in the right order and place), not the rounding, which
`test_layout.py` tests. The dequantized weights are written as a checkpoint of their own and exported as fp32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgepack
from edgepack.model.spec import Component
from edgepack.package.folder import Package
from edgepack.quant import FloatScheme, IntScheme, Recipe, Rounding, Storage, load_recipe, quantize
from edgepack_converters.onnx.emit import build
from tests.support import tiny
from tests.support.mixed import assign_differently, stored_bytes
from tests.support.raw_graphs import RawGraphs
from tests.support.specs import recipe_with
from tests.support.tiny import FloatArray, TinyPackages
from tests.support.tolerances import DEQUANTIZED_LOGITS, INT8_ACTIVATIONS_RELATIVE

LENGTH = 3 * tiny.WINDOW
KEPT_FLOAT: tuple[Component, ...] = ("norm", "altup")


def recipe_of(scheme: IntScheme, rounding: Rounding = "nearest") -> Recipe:
    """Every matrix as `scheme`; blocks that a matrix is too narrow for shrink by themselves."""
    kept: dict[Component, Storage] = dict.fromkeys(KEPT_FLOAT, Storage(scheme=FloatScheme()))
    every = Storage(scheme=scheme, rounding=rounding)
    return Recipe(name=scheme.name, description="test", default=every, components=kept)


INT4, INT8 = IntScheme(bits=4, block=32, zero_point=True), IntScheme(bits=8, block=32)
RECIPES: dict[str, Recipe] = {
    "int8 with zero points": recipe_of(IntScheme(bits=8, block=32, zero_point=True)),
    "int8 symmetric": recipe_of(INT8),
    "int4 with zero points": recipe_of(IntScheme(bits=4, block=16, zero_point=True)),
    "int4 symmetric": recipe_of(IntScheme(bits=4, block=32)),
    "int4 searched": recipe_of(INT4, "search"),
    "int2 with zero points": recipe_of(IntScheme(bits=2, block=16, zero_point=True)),
    "int2 symmetric": recipe_of(IntScheme(bits=2, block=16)),
    "default": load_recipe("int4"),
    "float16 per-layer table": recipe_with("int4", ple=FloatScheme(dtype="float16")),
}
# No recipe has a row for a single tensor, but a plan has: what is stacked with its neighbours differs from them.
MIXED: dict[str, dict[str, Any]] = {
    "mlp.up_proj.weight": {"scheme": INT8},
    "self_attn.k_proj.weight": {"scheme": INT8},
    "3.mlp.up_proj.weight": {"scheme": INT4, "rounding": "search"},
    "1.mlp.up_proj.weight": {"scheme": FloatScheme()},
}


def dequantized(package: Package, tensors: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """`tensors` of the checkpoint as the package stores them."""
    spec = package.manifest.plan.spec
    # The factors that the exporter folds into a tensor before it quantizes (families/gemma3n.py).
    folded = {"per_layer_model_projection.weight": spec.hidden_size**-0.5}
    if spec.ple:
        folded["embed_tokens_per_layer.weight"] = spec.ple.dim**0.5
    for plan in package.manifest.plan.tensors:
        key = plan.name if plan.name == "lm_head.weight" else f"model.{plan.name}"
        factor = np.float32(folded.get(plan.name, 1.0))
        parts = quantize(tensors[key] * factor, plan.scheme, plan.rounding)
        tensors[key] = plan.scheme.dequantize(parts, plan.shape) / factor
    return tensors


def with_float_products(package: Package, folder: Path) -> Path:
    """A copy of the decoder that keeps activations in float32: accuracy_level 1 in place of 4."""
    path = folder / package.file("decoder").name
    for file in package.file("decoder").parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    model: Any = onnx.load(str(path), load_external_data=False)
    levels = [a for node in model.graph.node for a in node.attribute if a.name == "accuracy_level"]
    assert levels
    assert {level.i for level in levels} == {4}
    for level in levels:
        level.i = 1
    onnx.save(model, str(path))
    return path


@pytest.fixture(scope="module", params=RECIPES)
def pair(
    request: pytest.FixtureRequest, tiny_packages: TinyPackages, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Package, Package]:
    """The quantized package, and the fp32 package of its dequantized weights."""
    case, folder = tiny_packages("shared"), tmp_path_factory.mktemp("quantized")
    quantized = edgepack.export(
        case.checkpoint, out=folder / "q", recipe=RECIPES[request.param], context=tiny.CONTEXT, threads=1
    ).package
    weights = tiny.edit_tensors(case.checkpoint, folder / "dequantized", lambda t: dequantized(quantized, t))
    reference = edgepack.export(weights, out=folder / "ref", recipe="fp32", context=tiny.CONTEXT, threads=1).package
    return quantized, reference


def test_the_emission_is_exact(pair: tuple[Package, Package], tmp_path: Path) -> None:
    quantized, reference = pair
    ids = tiny.token_ids(LENGTH)
    logits = RawGraphs(quantized, with_float_products(quantized, tmp_path)).logits(ids, [15, 1, 8])
    expected = RawGraphs(reference).logits(ids, [15, 1, 8])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=DEQUANTIZED_LOGITS)


def test_embeddings_are_exact(pair: tuple[Package, Package]) -> None:
    ids = np.arange(tiny.VOCAB)[None]
    found, expected = (RawGraphs(package).embedded(ids) for package in pair)
    for name in ("inputs_embeds", "per_layer_inputs"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-6)


def test_int8_activations_stay_close(pair: tuple[Package, Package]) -> None:
    quantized, reference = pair
    ids = tiny.token_ids(LENGTH)
    logits = RawGraphs(quantized).logits(ids, [LENGTH])
    expected = RawGraphs(reference).logits(ids, [LENGTH])
    assert np.abs(logits - expected).mean() / expected.std() < INT8_ACTIVATIONS_RELATIVE


def test_quantization_was_not_skipped(pair: tuple[Package, Package], tiny_packages: TinyPackages) -> None:
    # The comparisons above would also hold for a package that kept everything in float32.
    plan = pair[0].manifest.plan
    assert all(
        isinstance(t.scheme, IntScheme) for t in plan.tensors if t.component in ("ffn", "attention", "embedding")
    )
    ids = tiny.token_ids(LENGTH)
    original = RawGraphs(tiny_packages("shared").package).logits(ids, [LENGTH])
    assert np.abs(RawGraphs(pair[0]).logits(ids, [LENGTH]) - original).max() > 20 * DEQUANTIZED_LOGITS


def check_against_dequantized(quantized: Package, checkpoint: Path, folder: Path) -> None:
    weights = tiny.edit_tensors(checkpoint, folder / "dequantized", lambda t: dequantized(quantized, t))
    reference = edgepack.export(weights, out=folder / "ref", recipe="fp32", context=tiny.CONTEXT).package
    ids = tiny.token_ids(LENGTH)
    (folder / "level").mkdir()
    logits = RawGraphs(quantized, with_float_products(quantized, folder / "level")).logits(ids, [15, 1, 8])
    np.testing.assert_allclose(logits, RawGraphs(reference).logits(ids, [15, 1, 8]), rtol=0, atol=DEQUANTIZED_LOGITS)


@pytest.mark.parametrize("name", ["gemma3", "untied", "gemma3_untied"])
def test_other_families_and_heads_run_quantized(name: str, tiny_packages: TinyPackages, tmp_path: Path) -> None:
    check_against_dequantized(tiny_packages(name, "int4").package, tiny_packages(name).checkpoint, tmp_path)


@pytest.mark.parametrize("name", ["shared", "gemma3"])
def test_what_is_stacked_may_be_planned_in_several_ways(
    name: str, tiny_packages: TinyPackages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny_packages(name).checkpoint
    with monkeypatch.context() as patch:
        assign_differently(patch, MIXED)
        mixed = edgepack.export(checkpoint, out=tmp_path / "q", recipe=recipe_of(INT4), context=tiny.CONTEXT).package
    plan = mixed.manifest.plan
    assert {(t.scheme, t.rounding) for t in plan.tensors if t.component == "ffn"} == {
        (INT4, "nearest"),
        (INT4, "search"),
        (INT8, "nearest"),
        (FloatScheme(), "nearest"),
    }
    placements = [place for file in build(plan).files for place in file.placements]
    assert stored_bytes(placements) == {tensor.name: tensor.scheme.nbytes(tensor.shape) for tensor in plan.tensors}
    check_against_dequantized(mixed, checkpoint, tmp_path)
