"""T3 for LiteRT: codes, scales and zero points stand where the kernels look for them.

Each matrix of a quantized package is read back through the kernel that uses it: a product with the rows of the
identity, and a look-up of every row. The dequantized weights are what `test_layout.py` tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import edgepack
from edgepack.calibration.planned import PlannedWeights
from edgepack.checkpoint.folder import open_checkpoint
from edgepack.errors import UnsupportedError
from edgepack.model.families import read_spec
from edgepack.model.ops import Weight
from edgepack.package.folder import Package
from edgepack.package.interface_litert import decoder_interface
from edgepack.planning.plan import TensorPlan
from edgepack.quant import FloatScheme, IntScheme, Scheme, Storage, load_recipe, quantize
from edgepack_converters.litert.decoder import DecoderOps
from edgepack_converters.litert.emit import build
from edgepack_converters.litert.flatbuffer import ModelFile
from edgepack_converters.litert.metadata import TextFacts
from edgepack_converters.weight_writer import write_weights
from edgepack_converters.weights import Placement
from edgepack_runtimes.litert.runtime import LitertRuntime
from tests.support import tiny
from tests.support.mixed import assign_differently, stored_bytes
from tests.support.specs import recipe_with
from tests.support.tiny import FloatArray, TinyPackages
from tests.support.tolerances import INT8_ACTIVATIONS_RELATIVE, LITERT_COLUMN

# All [128, 64].
WEIGHTS = [Weight(f"layers.{i}.mlp.{name}_proj.weight", times=i + 1.0) for i in (0, 2, 4) for name in ("gate", "up")]
FLOAT32, INT8 = Storage(scheme=FloatScheme()), Storage(scheme=IntScheme(bits=8, block=None))
INT4 = Storage(scheme=IntScheme(bits=4, block=32, scale_dtype="float16"))
SEARCHED = INT4.model_copy(update={"rounding": "search"})
# How one matrix is stored, or several that read the same value.
PRODUCTS: dict[str, tuple[Storage, ...]] = {
    "float32": (FLOAT32,),
    "int4 blocks of 32": (INT4,),
    "int4 blocks of 64": (Storage(scheme=IntScheme(bits=4, block=64, scale_dtype="float16"), rounding="search"),),
    "int4 rows": (Storage(scheme=IntScheme(bits=4, block=None)),),
    "int8 rows": (INT8,),
    "float32 twice": (FLOAT32, FLOAT32),
    "int4 twice": (SEARCHED, SEARCHED),
    "int8 rows twice": (INT8, INT8),
    "two schemes": (INT4, INT8),
    "two roundings": (INT4, SEARCHED),
    "mixed": (INT4, INT8, INT8, INT4, SEARCHED, FLOAT32),
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


def products(
    checkpoint: Path, folder: Path, weights: dict[Weight, Storage], x: FloatArray
) -> tuple[list[FloatArray], list[Placement]]:
    """`x` [S, K] times each of `weights`, through LiteRT, and where they are stored."""
    with open_checkpoint(checkpoint) as source:
        spec = read_spec(source)
        plans = {
            w.name: TensorPlan(name=w.name, component="ffn", shape=(128, 64), gathered=False, **dict(storage))
            for w, storage in weights.items()
        }
        model = ModelFile("test")
        graph = model.subgraph("run", decoder_interface(spec, "run", len(x), 32))
        ops = DecoderOps(graph, plans, spec, len(x))
        graph.outputs = {f"y{i}": value for i, value in enumerate(ops.linears(ops.embeds, list(weights)))}
        graph.inputs = {"embeddings": ops.embeds}
        content, placements, size = model.pack()
        path = folder / "model.tflite"
        write_weights(path, size, placements, PlannedWeights(source, spec), threads=1, progress=lambda done: None)
    with path.open("r+b") as file:
        head = bytearray(content)
        for place in placements:
            if place.offset < len(content):  # scales that stand inside
                file.seek(place.offset)
                head[place.offset : place.offset + place.part.nbytes] = file.read(place.part.nbytes)
        file.seek(0)
        file.write(head)
    runner = Interpreter(str(path)).get_signature_runner("run")
    results = runner(embeddings=x[None])
    return [results[f"y{i}"][0] for i in range(len(weights))], placements


@pytest.mark.parametrize("storages", PRODUCTS.values(), ids=PRODUCTS)
def test_a_product_uses_the_dequantized_matrix(
    tiny_packages: TinyPackages, tmp_path: Path, storages: tuple[Storage, ...]
) -> None:
    checkpoint = tiny_packages("shared").checkpoint
    weights = dict(zip(WEIGHTS, storages, strict=False))
    got, placements = products(checkpoint, tmp_path, weights, np.eye(64, dtype=np.float32))
    assert stored_bytes(placements) == {w.name: storage.scheme.nbytes((128, 64)) for w, storage in weights.items()}
    for (weight, storage), columns in zip(weights.items(), got, strict=True):
        with open_checkpoint(checkpoint) as source:
            values = source.read_rows(f"model.{weight.name}", 0, 128) * np.float32(weight.times)
        expected = storage.scheme.dequantize(quantize(values, storage.scheme, storage.rounding), values.shape)
        np.testing.assert_allclose(columns.T, expected, rtol=0, atol=LITERT_COLUMN)


@pytest.mark.parametrize("scheme", TABLES.values(), ids=TABLES)
def test_a_look_up_gives_the_dequantized_row(tiny_packages: TinyPackages, tmp_path: Path, scheme: Scheme) -> None:
    checkpoint = tiny_packages("shared").checkpoint
    recipe = recipe_with("fp32", "litert", ple=scheme)
    package = edgepack.export(checkpoint, to="litert", out=tmp_path / "package", recipe=recipe, context=32).package
    with open_checkpoint(checkpoint) as source:
        spec = read_spec(source)
        assert spec.ple is not None
        factor = np.float32(spec.ple.dim**0.5)
        table = source.read_rows("model.embed_tokens_per_layer.weight", 0, tiny.PLE_VOCAB) * factor
    expected = scheme.dequantize(quantize(table, scheme), table.shape)
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
            parts = quantize(values, plan.scheme, plan.rounding)
            stored[key] = plan.scheme.dequantize(parts, values.shape) / factor
    return stored


def check_against_dequantized(quantized: Package, checkpoint: Path, folder: Path) -> None:
    weights = tiny.edit_tensors(checkpoint, folder / "dequantized", lambda t: dequantized(quantized, t))
    reference = edgepack.export(
        weights, to="litert", out=folder / "reference", recipe="fp32", context=tiny.CONTEXT
    ).package
    ids = tiny.token_ids(3 * tiny.WINDOW)[0].tolist()
    logits: list[Any] = []
    for package in (quantized, reference):
        with LitertRuntime(package, threads=1) as runtime:
            logits.append(runtime.logits(ids))
    got, expected = logits
    assert np.abs(got - expected).mean() / expected.std() < INT8_ACTIVATIONS_RELATIVE


@pytest.mark.parametrize("recipe", ["int4", "int8"])
@pytest.mark.parametrize("name", ["shared", "gemma3"])
def test_a_quantized_package_is_near_the_dequantized_weights(
    tiny_packages: TinyPackages, tmp_path: Path, name: str, recipe: str
) -> None:
    case = tiny_packages(name, recipe, to="litert")
    check_against_dequantized(case.package, case.checkpoint, tmp_path)


def test_what_is_stacked_may_be_planned_in_several_ways(
    tiny_packages: TinyPackages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny_packages("shared").checkpoint
    recipe = load_recipe("fp32", "litert").model_copy(update={"components": {"ffn": INT4, "attention": INT4}})
    changes = {"up_proj.weight": INT8, "k_proj.weight": INT8, "1.mlp.up_proj.weight": SEARCHED}
    with monkeypatch.context() as patch:
        assign_differently(patch, {end: dict(storage) for end, storage in changes.items()})
        mixed = edgepack.export(
            checkpoint, to="litert", out=tmp_path / "q", recipe=recipe, context=tiny.CONTEXT
        ).package
    plan = mixed.manifest.plan
    assert {(t.scheme, t.rounding) for t in plan.tensors if t.component == "ffn"} >= {
        (storage.scheme, storage.rounding) for storage in (INT4, INT8, SEARCHED)
    }
    sizes = {tensor.name: tensor.scheme.nbytes(tensor.shape) for tensor in plan.tensors}
    assert stored_bytes(build(plan, TextFacts()).container.placements) == sizes
    check_against_dequantized(mixed, checkpoint, tmp_path)


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
    recipe = recipe_with("fp32", "litert", ffn=scheme)
    with pytest.raises(UnsupportedError, match=expected):
        edgepack.plan(tiny_packages("shared").checkpoint, to="litert", recipe=recipe)


def test_onnx_refuses_what_only_litert_has(tiny_packages: TinyPackages) -> None:
    with pytest.raises(UnsupportedError, match="not possible in ONNX"):
        edgepack.plan(tiny_packages("shared").checkpoint, to="onnx", recipe=load_recipe("int8", "litert"))
