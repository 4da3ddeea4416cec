"""T3: a quantized package computes what the fp32 package of the dequantized weights computes.

This tests the emission (codes, scales and zero points in the right order and place), not the rounding, which
`test_schemes.py` tests. The dequantized weights are written as a checkpoint of their own and exported as fp32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgepack
from edgepack.package.folder import Package
from edgepack.quant.recipes import Recipe, load_recipe
from edgepack.quant.schemes import FloatScheme, IntScheme
from tests.support import tiny
from tests.support.raw_graphs import RawGraphs
from tests.support.tiny import FloatArray, TinyPackages
from tests.support.tolerances import DEQUANTIZED_LOGITS, INT8_ACTIVATIONS_RELATIVE

LENGTH = 3 * tiny.WINDOW
KEPT_FLOAT = ("norm", "altup")


def recipe_of(scheme: IntScheme) -> Recipe:
    """Every matrix as `scheme`; blocks that a matrix is too narrow for shrink by themselves."""
    components = {c: s if c in KEPT_FLOAT else scheme for c, s in load_recipe("fp32").components.items()}
    return Recipe(name=scheme.name, description="test", components=components)


SCHEMES = {
    "int8 with zero points": IntScheme(bits=8, block=32, zero_point=True),
    "int8 symmetric": IntScheme(bits=8, block=32),
    "int4 with zero points": IntScheme(bits=4, block=16, zero_point=True),
    "int4 symmetric": IntScheme(bits=4, block=32),
    "int4 searched": IntScheme(bits=4, block=32, zero_point=True, search=True),
    "int2 with zero points": IntScheme(bits=2, block=16, zero_point=True),
    "int2 symmetric": IntScheme(bits=2, block=16),
}
RECIPES: dict[str, Recipe] = {
    **{name: recipe_of(scheme) for name, scheme in SCHEMES.items()},
    "default": load_recipe("int4"),
    "float16 per-layer table": load_recipe("int4").model_copy(
        update={"components": {**load_recipe("int4").components, "ple": FloatScheme(dtype="float16")}}
    ),
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
        parts = plan.scheme.quantize(tensors[key] * factor)
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


@pytest.mark.parametrize("name", ["gemma3", "untied", "gemma3_untied"])
def test_other_families_and_heads_run_quantized(name: str, tiny_packages: TinyPackages, tmp_path: Path) -> None:
    quantized = tiny_packages(name, "int4").package
    checkpoint = tiny_packages(name).checkpoint
    weights = tiny.edit_tensors(checkpoint, tmp_path / "dequantized", lambda t: dequantized(quantized, t))
    reference = edgepack.export(weights, out=tmp_path / "ref", recipe="fp32", context=tiny.CONTEXT).package
    ids = tiny.token_ids(LENGTH)
    (tmp_path / "level").mkdir()
    logits = RawGraphs(quantized, with_float_products(quantized, tmp_path / "level")).logits(ids, [15, 1, 8])
    np.testing.assert_allclose(logits, RawGraphs(reference).logits(ids, [15, 1, 8]), rtol=0, atol=DEQUANTIZED_LOGITS)
