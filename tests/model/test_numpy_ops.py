"""T2 without a framework: the numpy decoder computes what Transformers and the fp32 package compute."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import edgepack.model.numpy_ops
from edgepack.checkpoint.folder import open_checkpoint
from edgepack.errors import CheckpointError, EdgepackError
from edgepack.model.families import family_of, read_spec
from edgepack.model.numpy_ops import NumpyOps, WeightSource, logits
from edgepack.model.ops import Weight
from edgepack.model.spec import ModelSpec
from edgepack.model.tensors import checkpoint_name
from tests.converters.test_onnx_parity import LENGTH, SPLITS, probabilities
from tests.project.test_import_light import FRAMEWORKS, run
from tests.support import tiny
from tests.support.raw_graphs import RawGraphs
from tests.support.tiny import Tiny, TinyPackages
from tests.support.tolerances import FP32_LOGITS, FP32_PROBABILITIES, NUMPY_FP32_LOGITS, SAME_GRAPH_LOGITS


@pytest.fixture(scope="module", params=tiny.NAMES)
def case(request: pytest.FixtureRequest, tiny_packages: TinyPackages) -> Tiny:
    return tiny_packages(request.param)


@contextmanager
def opened(folder: Path, keep: int | None = None) -> Iterator[NumpyOps]:
    """The ops of a checkpoint with nothing cached."""
    with open_checkpoint(folder) as checkpoint:
        yield NumpyOps(read_spec(checkpoint), checkpoint, keep)


def in_pieces(ops: NumpyOps, ids: npt.NDArray[np.int64], splits: list[int]) -> tiny.FloatArray:
    """Logits of `ids` given in pieces of `splits` tokens."""
    stops = np.cumsum(splits)
    assert stops[-1] == ids.shape[1]
    parts = [logits(ops, ids[:, stop - count : stop]) for stop, count in zip(stops, splits, strict=True)]
    return np.concatenate(parts, axis=1)


def test_every_position_is_that_of_transformers_and_of_the_package(case: Tiny) -> None:
    ids = tiny.token_ids(tiny.CONTEXT, batch=2)
    with opened(case.checkpoint) as ops:
        got = logits(ops, ids)
    expected = tiny.reference(case.model, ids)
    assert got.shape == expected.shape == (2, tiny.CONTEXT, tiny.VOCAB)
    np.testing.assert_allclose(got, expected, rtol=0, atol=NUMPY_FP32_LOGITS)
    np.testing.assert_allclose(probabilities(got), probabilities(expected), rtol=0, atol=FP32_PROBABILITIES)
    packaged = RawGraphs(case.package).logits(ids, [tiny.CONTEXT])
    np.testing.assert_allclose(got, packaged, rtol=0, atol=NUMPY_FP32_LOGITS)


@pytest.mark.parametrize("split", [name for name in SPLITS if name != "whole"])
def test_a_prompt_in_pieces_is_the_whole_one(case: Tiny, split: str) -> None:
    ids = tiny.token_ids(LENGTH, batch=2)
    with opened(case.checkpoint) as ops:
        got = in_pieces(ops, ids, SPLITS[split])
        whole = logits(NumpyOps(ops.spec, ops.weights), ids)
    np.testing.assert_allclose(got, whole, rtol=0, atol=SAME_GRAPH_LOGITS)


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_only_the_wanted_positions_are_computed(case: Tiny, keep: int) -> None:
    ids = tiny.token_ids(LENGTH)
    with opened(case.checkpoint, keep) as ops:
        got = in_pieces(ops, ids, [19, 2, 19])
        whole = logits(NumpyOps(ops.spec, ops.weights), ids)
    wanted = [place for start, stop in ((0, 19), (19, 21), (21, 40)) for place in range(max(start, stop - keep), stop)]
    np.testing.assert_allclose(got, whole[:, wanted], rtol=0, atol=SAME_GRAPH_LOGITS)


def test_no_framework_is_needed(case: Tiny, tmp_path: Path) -> None:
    ids = tiny.token_ids(LENGTH)
    script = (
        "import sys\n"
        f"for name in {FRAMEWORKS}:\n"
        "    sys.modules[name] = None\n"
        "import numpy as np\n"
        "from edgepack.checkpoint.folder import open_checkpoint\n"
        "from edgepack.model.numpy_ops import NumpyOps, logits\n"
        "from edgepack.model.families import read_spec\n"
        f"with open_checkpoint({str(case.checkpoint)!r}) as checkpoint:\n"
        "    ops = NumpyOps(read_spec(checkpoint), checkpoint)\n"
        f"    np.save({str(tmp_path / 'got.npy')!r}, logits(ops, {ids.tolist()}))\n"
    )
    run(script)
    got, expected = np.load(tmp_path / "got.npy"), tiny.reference(case.model, ids)
    np.testing.assert_allclose(got, expected, rtol=0, atol=NUMPY_FP32_LOGITS)


class Watched:
    """A source that notes which rows are read, and how many matrices are held at once."""

    def __init__(self, inner: WeightSource) -> None:
        self.inner, self.most_held, self.most_elements = inner, 0, 0
        self.rows: dict[str, list[tuple[int, int]]] = {}
        self._matrices: list[weakref.ref[Any]] = []

    def read_rows(self, name: str, start: int, stop: int) -> tiny.FloatArray:
        values = self.inner.read_rows(name, start, stop)
        values.flags.writeable = False  # it stays the source's
        self.rows.setdefault(name, []).append((start, stop))
        self.most_elements = max(self.most_elements, values.size)
        if values.ndim == 2 and len(values) > 1:
            self._matrices.append(weakref.ref(values))
            self.most_held = max(self.most_held, sum(matrix() is not None for matrix in self._matrices))
        return values


def test_a_piece_of_one_matrix_is_held_at_a_time(case: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tiny.token_ids(LENGTH)
    with opened(case.checkpoint) as ops:
        whole = logits(NumpyOps(ops.spec, ops.weights), ids)
        monkeypatch.setattr(edgepack.model.numpy_ops, "PIECE_ELEMENTS", 512)
        ops.weights = watched = Watched(ops.weights)
        got = logits(ops, ids)
    np.testing.assert_allclose(got, whole, rtol=0, atol=SAME_GRAPH_LOGITS)
    assert watched.most_elements == 512
    assert watched.most_held == 1
    table = family_of(ops.spec).tensor_table(ops.spec)
    assert watched.rows.keys() == {checkpoint_name(ops.spec, tensor.name) for tensor in table}


def test_of_a_table_the_rows_of_the_ids_are_read(tiny_packages: TinyPackages) -> None:
    ids = np.array([[7, 3, 7], [tiny.PLE_VOCAB, 3, tiny.VOCAB - 1]])
    with opened(tiny_packages("untied").checkpoint) as ops:
        ops.weights = watched = Watched(ops.weights)
        logits(ops, ids)
    assert watched.rows["model.embed_tokens.weight"] == [(i, i + 1) for i in (3, 7, tiny.PLE_VOCAB, tiny.VOCAB - 1)]
    # Ids over the per-layer vocabulary read row 0.
    assert watched.rows["model.embed_tokens_per_layer.weight"] == [(i, i + 1) for i in (0, 3, 7)]


class Collecting(NumpyOps):
    """As a calibration reads activations: the input of every product."""

    def __init__(self, spec: ModelSpec, weights: WeightSource) -> None:
        super().__init__(spec, weights)
        self.inputs: dict[str, tiny.FloatArray] = {}

    def linear(self, x: tiny.FloatArray, matrix: Weight) -> tiny.FloatArray:
        self.inputs[matrix.name] = x
        return super().linear(x, matrix)


def test_a_subclass_sees_the_input_of_every_matrix(case: Tiny) -> None:
    with opened(case.checkpoint) as plain:
        ops = Collecting(plain.spec, plain.weights)
        logits(ops, tiny.token_ids(LENGTH))
    head = "embed_tokens.weight" if ops.spec.tied_head else "lm_head.weight"
    columns = {
        tensor.name: tensor.shape[1]
        for tensor in family_of(ops.spec).tensor_table(ops.spec)
        if len(tensor.shape) == 2 and (tensor.name == head or not tensor.gathered)
    }
    assert {name: x.shape[-1] for name, x in ops.inputs.items()} == columns
    # A constant in float64 anywhere would make all behind it float64, and slower.
    assert {x.dtype.name for x in [*ops.inputs.values(), *ops.cached.values()]} == {"float32"}


def test_names_of_a_multimodal_checkpoint(tiny_packages: TinyPackages, tmp_path: Path) -> None:
    text = tiny_packages("shared").checkpoint
    ids = tiny.token_ids(LENGTH)
    with opened(text) as ops, opened(tiny.as_multimodal(text, tmp_path / "multimodal")) as others:
        np.testing.assert_array_equal(logits(others, ids), logits(ops, ids))


def test_a_stream_without_magnitude_stays_zero(tiny_packages: TinyPackages, tmp_path: Path) -> None:
    # It is divided by its magnitude, which has a floor.
    source, name = tiny_packages("untied"), "model.altup_projections.0.weight"
    folder = tiny.edit_tensors(
        source.checkpoint, tmp_path / "flat", lambda tensors: {**tensors, name: np.zeros_like(tensors[name])}
    )
    model = type(source.model).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    package = edgepack.export(folder, out=tmp_path / "out", recipe="fp32", context=tiny.CONTEXT).package
    ids = tiny.token_ids(LENGTH)
    expected = tiny.reference(model, ids)
    with opened(folder) as ops:
        np.testing.assert_allclose(logits(ops, ids), expected, rtol=0, atol=NUMPY_FP32_LOGITS)
    np.testing.assert_allclose(RawGraphs(package).logits(ids, [LENGTH]), expected, rtol=0, atol=FP32_LOGITS)


def test_the_mean_of_streams(tiny_packages: TinyPackages) -> None:
    # A norm stands behind it in the decoder, so that no logit tells a mean from a sum.
    streams = np.array([[[[1, 2], [3, 6], [5, 7]]]], np.float32)
    with opened(tiny_packages("untied").checkpoint) as ops:
        np.testing.assert_array_equal(ops.mean(streams), [[[3, 5]]])


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([5, 6], r"ids: expected one or more whole numbers of shape \[B, S\], got int64 \[2\]"),
        ([[]], r"got float64 \[1, 0\]"),
        ([[0.5]], r"got float64 \[1, 1\]"),
        ([[3, tiny.VOCAB]], "ids: expected numbers from 0 to 103, got 3 to 104"),
        ([[-1, 3]], "got -1 to 3"),
    ],
)
def test_ids_that_are_refused(ids: Any, said: str, tiny_packages: TinyPackages) -> None:
    with opened(tiny_packages("gemma3").checkpoint) as ops, pytest.raises(EdgepackError, match=said):
        logits(ops, ids)


def test_a_batch_of_another_size_is_no_continuation(tiny_packages: TinyPackages) -> None:
    with opened(tiny_packages("gemma3").checkpoint) as ops:
        logits(ops, [[5, 6]])
        with pytest.raises(EdgepackError, match="ids: expected 1 texts, as many as in earlier calls, got 2"):
            logits(ops, [[7], [8]])


def test_a_weight_that_cannot_be_read_is_named(tiny_packages: TinyPackages) -> None:
    with opened(tiny_packages("gemma3").checkpoint) as ops:
        pass
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight' cannot be read: the checkpoint is closed"):
        logits(ops, [[5]])
