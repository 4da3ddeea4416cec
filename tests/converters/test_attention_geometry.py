"""Other heads on full layers than on sliding ones, as no model has them yet: everything asks the kind of a layer.

A tiny checkpoint gets full layers of another geometry, in a family that reads it so. More heads have a reference in
Transformers: the model without them, since the output matrix has zeros for what they add. Wider heads have one in
`NumpyOps`, which was compared with Transformers for every geometry that it has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgepack
from edgepack.checkpoint.folder import Checkpoint, open_checkpoint
from edgepack.model.families import FAMILIES, family_of, read_spec
from edgepack.model.numpy_ops import NumpyOps, logits
from edgepack.model.spec import ModelSpec
from edgepack.model.tensors import checkpoint_name
from edgepack.package.folder import Package
from edgepack.planning.planner import make_plan
from edgepack.synth import synthetic_shapes
from edgepack_runtimes.litert.runtime import LitertRuntime
from edgepack_runtimes.litert_lm.runtime import LitertLmRuntime
from edgepack_runtimes.onnx.runtime import OnnxRuntime
from tests.runtimes.test_litert_lm import PROMPT, save
from tests.support import tiny
from tests.support.raw_graphs import RawGraphs
from tests.support.tiny import FloatArray, TinyPackages
from tests.support.tokenizer_packages import gemma_like, write_package
from tests.support.tolerances import FP32_LOGITS, LITERT_FP32_LOGITS, NUMPY_FP32_LOGITS

LENGTH, BEFORE = 5 * tiny.WINDOW, 27
SHARED, GEMMA3 = "shared", "gemma3"
WIDER = {"num_heads": 3, "num_kv_heads": 1, "head_dim": 64, "scale": 0.25}


@contextmanager
def full_layers(**changes: Any) -> Iterator[None]:
    """All families read full layers with these numbers in place of the config's."""

    def other(read: Any, checkpoint: Checkpoint) -> ModelSpec:
        spec: ModelSpec = read(checkpoint)
        full = spec.attention["full"].model_copy(update=changes)
        return spec.model_copy(update={"attention": {**spec.attention, "full": full}})

    with pytest.MonkeyPatch.context() as patch:
        for name, family in FAMILIES.items():
            read = family.read_spec
            patch.setitem(FAMILIES, name, replace(family, read_spec=lambda ckpt, read=read: other(read, ckpt)))
        yield


def fitted(source: Path, target: Path) -> Path:
    """A copy whose tensors have the shapes that its family asks for: more rows are random, more columns zeros.

    Where heads only become more, those that are added count for nothing: the output matrix has zeros for them.
    """
    shapes = synthetic_shapes(json.loads((source / "config.json").read_text()))

    def edit(tensors: dict[str, FloatArray]) -> dict[str, FloatArray]:
        rng = np.random.default_rng(5)
        for name, tensor in tensors.items():
            grown = rng.normal(0, 0.12, shapes[name]).astype(np.float32)
            if grown.ndim == 2:
                grown[:, tensor.shape[1] :] = 0
            grown[tuple(map(slice, tensor.shape))] = tensor
            tensors[name] = grown
        return tensors

    return tiny.edit_tensors(source, target, edit)


@dataclass(frozen=True)
class Case:
    """A checkpoint, its packages, and the logits [1, S, V] of a text."""

    checkpoint: Path
    spec: ModelSpec
    onnx: Package
    litert: Package
    expected: FloatArray


def numpy_logits(checkpoint: Path, ids: Any) -> FloatArray:
    with open_checkpoint(checkpoint) as source:
        return logits(NumpyOps(read_spec(source), source), ids)


@pytest.fixture(scope="module", params=[f"{kind} of {name}" for kind in ("more", "wider") for name in (SHARED, GEMMA3)])
def case(
    request: pytest.FixtureRequest, tiny_packages: TinyPackages, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    kind, name = request.param.split(" of ")
    base, folder, ids = tiny_packages(name), tmp_path_factory.mktemp(kind), tiny.token_ids(LENGTH)
    with full_layers(**({"num_heads": 8, "num_kv_heads": 4} if kind == "more" else WIDER)):
        checkpoint = fitted(base.checkpoint, folder / "checkpoint")
        expected = tiny.reference(base.model, ids) if kind == "more" else numpy_logits(checkpoint, ids)
        asked: dict[str, Any] = {"recipe": "fp32", "context": tiny.CONTEXT, "threads": 1}
        onnx = edgepack.export(checkpoint, out=folder / "onnx", **asked).package
        litert = edgepack.export(checkpoint, to="litert", out=folder / "litert", prefill=[8], **asked).package
        yield Case(checkpoint, onnx.manifest.plan.spec, onnx, litert, expected)


def test_the_reference_is_the_model_without_the_heads_that_count_for_nothing(case: Case) -> None:
    ids = tiny.token_ids(LENGTH)
    np.testing.assert_allclose(numpy_logits(case.checkpoint, ids), case.expected, rtol=0, atol=NUMPY_FP32_LOGITS)
    assert case.spec.attention["full"].num_heads != case.spec.attention["sliding"].num_heads


def test_every_matrix_has_the_width_of_its_layer(case: Case) -> None:
    with open_checkpoint(case.checkpoint) as source:
        for tensor in family_of(case.spec).tensor_table(case.spec):
            assert source.info(checkpoint_name(case.spec, tensor.name)).shape == tensor.shape


@pytest.mark.parametrize("splits", [[LENGTH], [17, *[1] * 23], [3, 11, 1, 9, 16]])
def test_the_onnx_graph(case: Case, splits: list[int]) -> None:
    got = RawGraphs(case.onnx).logits(tiny.token_ids(LENGTH), splits)
    np.testing.assert_allclose(got, case.expected, rtol=0, atol=FP32_LOGITS)


@pytest.mark.parametrize(("runtime", "bar"), [("onnx", FP32_LOGITS), ("litert", LITERT_FP32_LOGITS)])
def test_caches_of_each_layers_own_size(case: Case, runtime: str, bar: float) -> None:
    ids = tiny.token_ids(LENGTH)[0].tolist()
    opened = OnnxRuntime(case.onnx, threads=1) if runtime == "onnx" else LitertRuntime(case.litert, threads=1)
    with opened as model:
        got = [model.prefill(ids[:BEFORE]), *(model.decode(token) for token in ids[BEFORE:])]
        every = model.logits(ids)
    np.testing.assert_allclose(np.stack(got), case.expected[0, BEFORE - 1 :], rtol=0, atol=bar)
    np.testing.assert_allclose(every, case.expected[0], rtol=0, atol=bar)


def test_googles_engine_takes_them(tmp_path: Path) -> None:
    save(SHARED, tmp_path / "base")
    with full_layers(**WIDER):
        checkpoint = fitted(tmp_path / "base", tmp_path / "checkpoint")
        write_package(checkpoint, gemma_like())
        asked: dict[str, Any] = {"recipe": "fp32", "context": tiny.CONTEXT, "prefill": [16], "threads": 1}
        package = edgepack.export(checkpoint, to="litert", out=tmp_path / "package", **asked).package
    with LitertLmRuntime(package, threads=1) as engine, LitertRuntime(package, threads=1) as ours:
        texts = ["".join(model.generate_text(PROMPT, max_new_tokens=40)) for model in (engine, ours)]
    assert texts[0] == texts[1] and len(set(texts[0].split())) > 5


def test_the_plan_counts_each_cache_by_its_own_heads(tiny_packages: TinyPackages) -> None:
    with full_layers(**WIDER), open_checkpoint(tiny_packages(SHARED).checkpoint) as source:
        plan = make_plan(read_spec(source), backend="litert", context_tokens=100)
    sizes = {row.name: row.resident_bytes for row in plan.rows}
    # Keys and values in float32: four rings of 8 rows of two heads of 16, one full cache of 100 rows of one head of 64.
    assert sizes["KV cache, sliding layers"] == 4 * 2 * 4 * 8 * 2 * 16
    assert sizes["KV cache, full layers"] == 1 * 2 * 4 * 100 * 1 * 64
