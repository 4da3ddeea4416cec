"""What was emitted has the inputs and outputs that the interface declares, read by the formats' own libraries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter

from edgepack.errors import EdgepackError
from edgepack.package import interface_litert, interface_onnx
from edgepack.package.interface import DECODER, EMBED, Interface, TensorType
from edgepack_converters.litert.flatbuffer import ModelFile
from tests.support import tiny
from tests.support.tiny import TinyPackages

ONNX_TYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64"}


def of_onnx(values: Iterable[onnx.ValueInfoProto]) -> dict[str, TensorType]:
    return {
        value.name: TensorType(
            ONNX_TYPES[value.type.tensor_type.elem_type],
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    }


def of_litert(details: Mapping[str, Mapping[str, Any]]) -> dict[str, TensorType]:
    return {
        name: TensorType(np.dtype(detail["dtype"]).name, tuple(detail["shape"].tolist()))
        for name, detail in details.items()
    }


@pytest.mark.parametrize("name", tiny.NAMES)
def test_onnx_graphs(name: str, tiny_packages: TinyPackages) -> None:
    package = tiny_packages(name).package
    spec = package.manifest.plan.spec
    for role, declared in (
        (EMBED, interface_onnx.embed_interface(spec)),
        (DECODER, interface_onnx.decoder_interface(spec)),
    ):
        graph = onnx.load(str(package.file(role)), load_external_data=False).graph
        for side, values in ((declared.inputs, graph.input), (declared.outputs, graph.output)):
            assert list(of_onnx(values).items()) == list(side.items())  # names of lengths and the order, too


@pytest.mark.parametrize("name", tiny.NAMES)
def test_litert_models(name: str, tiny_packages: TinyPackages) -> None:
    package = tiny_packages(name, to="litert", prefill=(4, 32)).package
    plan, content = package.manifest.plan, package.file(DECODER).read_bytes()
    lengths = interface_litert.decoder_signatures(plan)
    assert list(lengths.items()) == [("prefill_32", 32), ("prefill_4", 4), ("decode", 1)]
    declared = {
        DECODER: {
            key: interface_litert.decoder_interface(plan.spec, key, n, plan.context_tokens)
            for key, n in lengths.items()
        }
    }
    for role in interface_litert.row_shapes(plan.spec):
        declared[role] = {interface_litert.LOOKUP: interface_litert.table_interface(plan.spec, role)}
    assert declared.keys() == package.manifest.spans.keys()
    for role, (offset, size) in package.manifest.spans.items():
        reader = Interpreter(model_content=content[offset : offset + size])
        assert reader.get_signature_list().keys() == declared[role].keys()
        for key, interface in declared[role].items():
            runner = reader.get_signature_runner(key)
            assert of_litert(runner.get_input_details()) == interface.inputs
            assert of_litert(runner.get_output_details()) == interface.outputs


def test_the_decoder_of_litert_in_literals(tiny_packages: TinyPackages) -> None:
    spec = tiny_packages("shared").package.manifest.plan.spec
    found = interface_litert.decoder_interface(spec, "prefill_4", 4, 128)
    assert {name: str(kind) for name, kind in found.inputs.items() if name[-1] not in "1234"} == {
        "embeddings": "float32 [1, 4, 64]",
        "per_layer_embeddings": "float32 [1, 4, 8, 16]",
        "input_pos": "int32 [4]",
        "mask": "float32 [1, 1, 4, 128]",
        "kv_cache_k_0": "float32 [1, 2, 8, 16]",
        "kv_cache_v_0": "float32 [1, 2, 8, 16]",
    }
    assert {str(found.inputs[f"kv_cache_k_{i}"]) for i in range(5)} == {
        "float32 [1, 2, 8, 16]",
        "float32 [1, 2, 128, 16]",
    }
    assert list(found.outputs) == [f"kv_cache_{part}_{i}" for i in range(5) for part in "kv"]


def test_a_converter_that_computes_another_shape_is_refused() -> None:
    expected = TensorType("float32", (1, 2))
    graph = ModelFile("toy").subgraph("run", Interface({"x": expected}, {"y": expected}))
    with pytest.raises(EdgepackError, match=r"toy, signature run: y is missing where .*float32 \[1, 2\]"):
        graph.give({})
    with pytest.raises(EdgepackError, match=r"y is float32 \[1, 3\] where .*float32 \[1, 2\]"):
        graph.give({"y": graph.tensor("y", (1, 3))})
