"""What becomes one stored tensor, under which name, and who turns its rows into bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.calibration.planned import PlannedWeights
from edgepack.checkpoint.folder import open_checkpoint
from edgepack.model.families import read_spec
from edgepack.model.ops import Weight
from edgepack.package.interface import Interface
from edgepack.planning.plan import TensorPlan
from edgepack.quant import FloatScheme, IntScheme, quantize
from edgepack_converters.litert.builder import GraphBuilder
from edgepack_converters.litert.flatbuffer import ModelFile
from edgepack_converters.onnx.layout import Layout
from edgepack_converters.weight_writer import write_weights
from edgepack_converters.weights import StoredTensor, WeightFile, stackable
from tests.support.tiny import TinyPackages

INT4 = IntScheme(bits=4, block=32, zero_point=True)


def planned(name: str, shape: tuple[int, int] = (128, 64), **changes: Any) -> TensorPlan:
    fields = {"component": "ffn", "gathered": False, "scheme": INT4, **changes}
    return TensorPlan(name=name, shape=shape, **fields)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"scheme": IntScheme(bits=8, block=32)}, "b .*bits=8 "),
        ({"scheme": IntScheme(bits=4, block=32, zero_point=True, scale_dtype="float16")}, "b .*scale_dtype='float16'"),
        ({"scheme": FloatScheme()}, "b .*dtype='float32'"),
        ({"rounding": "search"}, r"b .*, search\)$"),
        ({"shape": (128, 96)}, r"b \[128, 96\] "),
    ],
)
def test_matrices_that_are_planned_differently_are_not_stored_as_one(change: dict[str, Any], told: str) -> None:
    first, same, other = planned("a"), planned("c", (7, 64)), planned("b", **change)
    assert StoredTensor(((first, Weight("a")), (same, Weight("c")))).shape == (135, 64)
    with pytest.raises(ValueError, match=rf"cannot be stored as one tensor: a \[128, 64\] .*, and {told}"):
        StoredTensor(((first, Weight("a")), (same, Weight("c")), (other, Weight("b"))))


def test_neighbours_that_are_planned_alike_are_stacked_in_their_order() -> None:
    changes: dict[str, dict[str, Any]] = {"a": {}, "b": {}, "c": {"rounding": "search"}, "d": {"scheme": FloatScheme()}}
    plans = {name: planned(name, **fields) for name, fields in changes.items()}
    groups = stackable([Weight(name) for name in "abcda"], plans)
    assert ["".join(weight.name for weight in group) for group in groups] == ["ab", "c", "d", "a"]


def test_one_matrix_folded_in_two_ways_is_two_tensors() -> None:
    plan, layout, file = planned("a"), Layout(), WeightFile("weights")
    tensors = [StoredTensor(((plan, Weight("a", times=times)),)) for times in (2.0, 3.0, 2.0)]
    codes = [layout.place(tensor, file)["codes"] for tensor in tensors]
    assert codes[0] is codes[2]
    assert codes[0].name != codes[1].name
    assert codes[0].offset != codes[1].offset
    builder = GraphBuilder(ModelFile("test").subgraph("run", Interface({}, {})), {"a": plan})
    values = [builder.part(tensor, "codes") for tensor in tensors]
    assert values[0] == values[2] != values[1]


def test_rows_become_what_their_plan_says(tiny_packages: TinyPackages, tmp_path: Path) -> None:
    checkpoint = tiny_packages("shared").checkpoint
    weights = [Weight(f"layers.0.mlp.{name}_proj.weight", times=2.0) for name in ("gate", "up")]
    plans = [planned(weight.name, rounding="search") for weight in weights]
    file, stored = WeightFile("weights"), StoredTensor(tuple(zip(plans, weights, strict=True)))
    places = [file.append(part, stored) for part in stored.scheme.parts(stored.shape)]
    with open_checkpoint(checkpoint) as source:
        write_weights(
            tmp_path / "weights",
            file.size_bytes,
            places,
            PlannedWeights(source, read_spec(source)),
            threads=2,
            progress=lambda done: None,
        )
        rows = [source.read_rows(f"model.{weight.name}", 0, 128) * np.float32(2) for weight in weights]
    wanted = [quantize(values, INT4, "search") for values in rows]
    content = (tmp_path / "weights").read_bytes()
    for place in places:
        expected = b"".join(parts[place.part.name].tobytes() for parts in wanted)
        assert content[place.offset : place.offset + place.part.nbytes] == expected
