"""T3 for LiteRT: codes, scales and zero points stand where the kernels look for them.

Each matrix of a quantized package is read back through the kernel that uses it: a product with the rows of the
identity, and a look-up of every row. The dequantized weights are what `test_schemes.py` tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import edgepack
from edgepack.checkpoint.folder import open_checkpoint
from edgepack.errors import UnsupportedError
from edgepack.model.families import read_spec
from edgepack.model.ops import Weight
from edgepack.package.folder import Package
from edgepack.planning.planner import TensorPlan
from edgepack.quant.recipes import Recipe, load_recipe
from edgepack.quant.schemes import FloatScheme, IntScheme, Scheme
from edgepack_converters.litert.decoder import DecoderOps
from edgepack_converters.litert.flatbuffer import ModelFile
from edgepack_converters.weight_writer import write_weights
from edgepack_runtimes.litert.runtime import LitertRuntime
from tests.support import tiny
from tests.support.tiny import FloatArray, TinyPackages
from tests.support.tolerances import INT8_ACTIVATIONS_RELATIVE, LITERT_COLUMN

NAME = "layers.0.mlp.gate_proj.weight"
PRODUCTS: dict[str, Scheme] = {
    "float32": FloatScheme(),
    "int4 blocks of 32": IntScheme(bits=4, block=32, scale_dtype="float16"),
    "int4 blocks of 64": IntScheme(bits=4, block=64, scale_dtype="float16", search=True),
    "int4 rows": IntScheme(bits=4, block=None),
    "int8 rows": IntScheme(bits=8, block=None),
}
TABLES: dict[str, Scheme] = {
    "float16": FloatScheme(dtype="float16"),
    **{
        f"int{bits} {block} {zero_point} {scales}": IntScheme(
            bits=bits, block=block, zero_point=zero_point, scale_dtype=scales
        )
        for bits in (2, 4, 8)
        for block in (16, None)
        for zero_point in (False, True)
        for scales in ("float32", "float16")
    },
}


def product(checkpoint: Path, folder: Path, scheme: Scheme, weights: list[Weight], x: FloatArray) -> FloatArray:
    """`x` [S, K] times each of `weights`, stored as one matrix of `scheme`, through LiteRT."""
    with open_checkpoint(checkpoint) as source:
        spec = read_spec(source)
        plans = {
            w.name: TensorPlan(name=w.name, component="ffn", shape=(128, 64), gathered=False, scheme=scheme)
            for w in weights
        }
        model = ModelFile("test")
        graph = model.subgraph("run")
        ops = DecoderOps(graph, plans, spec, len(x), 32)
        graph.outputs["y"] = ops._product(ops.embeds, *weights)
        graph.inputs = {"embeddings": ops.embeds}
        content, placements, size = model.pack()
        path = folder / "model.tflite"
        write_weights(path, size, placements, source, spec, threads=1, progress=lambda done: None)
    with path.open("r+b") as file:
        head = bytearray(content)
        for place in placements:
            if place.offset < len(content):  # scales that stand inside
                file.seek(place.offset)
                head[place.offset : place.offset + place.part.nbytes] = file.read(place.part.nbytes)
        file.seek(0)
        file.write(head)
    runner = Interpreter(str(path)).get_signature_runner("run")
    y: FloatArray = runner(embeddings=x[None])["y"][0]
    return y


@pytest.mark.parametrize("scheme", PRODUCTS.values(), ids=PRODUCTS)
@pytest.mark.parametrize("count", [1, 2])
def test_a_product_uses_the_dequantized_matrix(
    tiny_packages: TinyPackages, tmp_path: Path, scheme: Scheme, count: int
) -> None:
    checkpoint = tiny_packages("shared").checkpoint
    weights = [Weight(NAME), Weight("layers.0.mlp.up_proj.weight", times=2.0)][:count]
    got = product(checkpoint, tmp_path, scheme, weights, np.eye(64, dtype=np.float32))
    with open_checkpoint(checkpoint) as source:
        values = [source.read_rows(f"model.{w.name}", 0, 128) * np.float32(w.times) for w in weights]
    expected = [scheme.dequantize(scheme.quantize(v), v.shape) for v in values]
    np.testing.assert_allclose(got.T, np.concatenate(expected), rtol=0, atol=LITERT_COLUMN)


@pytest.mark.parametrize("scheme", TABLES.values(), ids=TABLES)
def test_a_look_up_gives_the_dequantized_row(tiny_packages: TinyPackages, tmp_path: Path, scheme: Scheme) -> None:
    checkpoint = tiny_packages("shared").checkpoint
    components = load_recipe("fp32", "litert").components | {"ple": scheme}
    recipe = Recipe(name="table", description="test", components=components)
    package = edgepack.export(checkpoint, to="litert", out=tmp_path / "package", recipe=recipe, context=32).package
    with open_checkpoint(checkpoint) as source:
        spec = read_spec(source)
        assert spec.ple is not None
        factor = np.float32(spec.ple.dim**0.5)
        table = source.read_rows("model.embed_tokens_per_layer.weight", 0, tiny.PLE_VOCAB) * factor
    expected = scheme.dequantize(scheme.quantize(table), table.shape)
    with LitertRuntime(package, threads=1) as runtime:
        rows = np.stack([runtime._row("per_layer_embed", i) for i in range(tiny.VOCAB)])
    np.testing.assert_array_equal(rows[: tiny.PLE_VOCAB], expected)
    # Ids of images and sounds have no row of their own.
    np.testing.assert_array_equal(rows[tiny.PLE_VOCAB :], np.broadcast_to(expected[0], rows[tiny.PLE_VOCAB :].shape))


def dequantized(package: Package, tensors: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """`tensors` of the checkpoint as the package stores them."""
    spec, stored = package.manifest.plan.spec, dict(tensors)
    folded = {"per_layer_model_projection.weight": spec.hidden_size**-0.5}
    if spec.ple:
        folded["embed_tokens_per_layer.weight"] = spec.ple.dim**0.5
    for plan in package.manifest.plan.tensors:
        if isinstance(plan.scheme, IntScheme):
            key, factor = f"model.{plan.name}", np.float32(folded.get(plan.name, 1.0))
            values = tensors[key] * factor
            stored[key] = plan.scheme.dequantize(plan.scheme.quantize(values), values.shape) / factor
    return stored


@pytest.mark.parametrize("recipe", ["int4", "int8"])
@pytest.mark.parametrize("name", ["shared", "gemma3"])
def test_a_quantized_package_is_near_the_dequantized_weights(
    tiny_packages: TinyPackages, tmp_path: Path, name: str, recipe: str
) -> None:
    case = tiny_packages(name, recipe, to="litert")
    checkpoint = tiny.edit_tensors(case.checkpoint, tmp_path / "dequantized", lambda t: dequantized(case.package, t))
    reference = edgepack.export(
        checkpoint, to="litert", out=tmp_path / "reference", recipe="fp32", context=tiny.CONTEXT
    ).package
    ids = tiny.token_ids(3 * tiny.WINDOW)[0].tolist()
    logits: list[Any] = []
    for package in (case.package, reference):
        with LitertRuntime(package, threads=1) as runtime:
            logits.append(runtime.logits(ids))
    got, expected = logits
    assert np.abs(got - expected).mean() / expected.std() < INT8_ACTIVATIONS_RELATIVE


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (IntScheme(bits=4, block=32, zero_point=True, scale_dtype="float16"), "no zero point"),
        (IntScheme(bits=4, block=16, scale_dtype="float16"), "at least 32"),
        (IntScheme(bits=4, block=32), "float16 scales"),
        (IntScheme(bits=8, block=32, scale_dtype="float16"), "one scale a row"),
        (IntScheme(bits=2, block=None), "4/8 bits"),
        (FloatScheme(dtype="float16"), "float32"),
    ],
)
def test_what_litert_cannot_multiply_with_fails_in_the_plan(
    tiny_packages: TinyPackages, scheme: Scheme, expected: str
) -> None:
    components = load_recipe("fp32", "litert").components | {"ffn": scheme}
    recipe = Recipe(name="odd", description="test", components=components)
    with pytest.raises(UnsupportedError, match=expected):
        edgepack.plan(tiny_packages("shared").checkpoint, to="litert", recipe=recipe)


def test_onnx_refuses_what_only_litert_has(tiny_packages: TinyPackages) -> None:
    with pytest.raises(UnsupportedError, match="not possible in ONNX"):
        edgepack.plan(tiny_packages("shared").checkpoint, to="onnx", recipe=load_recipe("int8", "litert"))
