"""What a calibration collects layer by layer is what a run of the whole decoder multiplies, and Transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import edgepack.system.threads
from edgepack.calibration.file import open_calibration
from edgepack.calibration.inputs import stages_of, trace_inputs
from edgepack.calibration.second_moments import blocks_of
from edgepack.checkpoint.folder import open_checkpoint
from edgepack.model.families import family_of
from edgepack.model.read import read_model
from edgepack.model.spec import ModelSpec
from tests.calibration.small import FloatArray, calibrated, counted, expected_ids, whole_run, with_tokenizer
from tests.support import tiny
from tests.support.specs import E2B, preset_spec
from tests.support.tiny import Tiny, TinyPackages

# Of a value, to the root mean squares of its columns: half a unit in the last place of float16, and float32 sums.
SECOND_TOLERANCE = 6e-4
TRANSFORMERS_TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=tiny.NAMES)
def case(request: pytest.FixtureRequest, tiny_packages: TinyPackages, tmp_path_factory: Any) -> tuple[Tiny, Path]:
    made = tiny_packages(request.param)
    checkpoint = with_tokenizer(made.checkpoint, tmp_path_factory.mktemp(request.param))
    calibrated(checkpoint)
    return made, checkpoint


def head(spec: ModelSpec) -> str:
    return "embed_tokens.weight" if spec.tied_head else "lm_head.weight"


def matrices(spec: ModelSpec) -> dict[str, int]:
    """The columns of every matrix that something is multiplied with."""
    table = family_of(spec).tensor_table(spec)
    products = [t for t in table if len(t.shape) == 2 and (t.name == head(spec) or not t.gathered)]
    return {tensor.name: tensor.shape[1] for tensor in products}


def test_every_matrix_has_the_statistics_of_a_whole_run(case: tuple[Tiny, Path]) -> None:
    _, checkpoint = case
    expected = whole_run(checkpoint, expected_ids())
    with open_checkpoint(checkpoint) as source, open_calibration(checkpoint.parent / "out.safetensors") as file:
        spec = read_model(source)
        file.require_for(source, spec)
        assert file.header.inputs.keys() == matrices(spec).keys() == expected.keys()
        for name, x in expected.items():
            moments, exact = file.moments(name), x.astype(np.float64)
            rms = np.sqrt((exact**2).mean(0))
            np.testing.assert_allclose(moments.rms, rms, rtol=2e-5, atol=1e-7)
            second = moments.second()
            assert second.dtype == np.float32 and np.array_equal(second, second.T)
            wrong = np.abs(second - exact.T @ exact / len(x))
            assert (wrong <= SECOND_TOLERANCE * np.outer(rms, rms) + 1e-12).all(), name


def test_the_statistics_are_those_of_transformers(case: tuple[Tiny, Path]) -> None:
    made, checkpoint = case
    seen: dict[str, list[FloatArray]] = {}

    def note(name: str) -> Any:
        def hook(module: Any, given: tuple[Any, ...]) -> None:
            seen.setdefault(name, []).append(given[0].float().numpy())

        return hook

    linears = {n: m for n, m in made.model.named_modules() if isinstance(m, torch.nn.Linear)}
    hooks = [m.register_forward_pre_hook(note(n.removeprefix("model.") + ".weight")) for n, m in linears.items()]
    tiny.reference(made.model, expected_ids())
    for hook in hooks:
        hook.remove()
    with open_checkpoint(checkpoint) as source, open_calibration(checkpoint.parent / "out.safetensors") as file:
        spec = read_model(source)
        for name in file.header.inputs:
            moments, x = file.moments(name), counted(seen["lm_head.weight" if name == head(spec) else name])
            rms = np.sqrt((x.astype(np.float64) ** 2).mean(0))
            np.testing.assert_allclose(moments.rms, rms, rtol=0, atol=TRANSFORMERS_TOLERANCE * rms.max())


def test_inputs_are_those_of_the_tensor_table() -> None:
    spec = preset_spec(E2B)
    inputs = trace_inputs(spec)
    assert {matrix: read.columns for read in inputs for matrix in read.matrices} == matrices(spec)
    assert max(read.stage for read in inputs) == stages_of(spec) - 1
    shared = {read.matrices[0]: set(read.matrices[1:]) for read in inputs}
    layer = "layers.0.self_attn."
    assert shared[f"{layer}k_proj.weight"] == {
        f"{layer}q_proj.weight",
        f"{layer}v_proj.weight",
        "layers.0.laurel.linear_left.weight",
    }
    assert shared["layers.29.self_attn.q_proj.weight"] == {"layers.29.laurel.linear_left.weight"}
    assert shared["layers.0.mlp.gate_proj.weight"] == {"layers.0.mlp.up_proj.weight"}
    # The router reads the active stream before the layer, and what comes out of it.
    assert {read.name: read.uses for read in inputs if read.uses > 1} == {
        f"layers.{i}.altup.modality_router": 2 for i in range(30)
    }


@pytest.mark.parametrize("columns", [1, 1023, 1024, 1025, 2500])
def test_blocks_are_the_upper_triangle(columns: int) -> None:
    seen = np.zeros((columns, columns), np.int8)
    for down, right in blocks_of(columns):
        seen[down, right] += 1
    assert seen.max() == 1 and (seen[np.triu_indices(columns)] == 1).all()


def test_the_bytes_are_those_of_any_number_of_threads(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edgepack.system.threads, "available_cores", lambda: 3)
    monkeypatch.setattr("edgepack.calibration.second_moments.BLOCK_COLUMNS", 16)
    monkeypatch.setattr("edgepack.calibration.collecting.BLOCK_COLUMNS", 16)
    written = [calibrated(small, threads=n, out=small.parent / f"{n}").path.read_bytes() for n in (1, 2, 3)]
    assert written[0] == written[1] == written[2]


def test_another_reader_finds_what_the_page_describes(small: Path) -> None:
    run = calibrated(small)
    tensors = load_file(run.path)
    x = whole_run(small, expected_ids())["layers.1.mlp.down_proj.weight"].astype(np.float64)
    name = run.header.inputs["layers.1.mlp.down_proj.weight"]
    rms, packed = tensors[f"{name}.rms"], tensors[f"{name}.second"]
    assert packed.dtype == np.float16 and rms.dtype == np.float32
    upper = np.zeros((64, 64))
    upper[np.triu_indices(64)] = packed
    assert (np.diag(upper) == 1).all()
    np.testing.assert_allclose(
        upper * np.outer(rms, rms), np.triu(x.T @ x / len(x)), rtol=0, atol=1e-3 * rms.max() ** 2
    )


def test_a_column_without_magnitude_has_zeros(tiny_packages: TinyPackages, tmp_path: Path) -> None:
    def flat(tensors: dict[str, FloatArray]) -> dict[str, FloatArray]:
        up = tensors["model.layers.0.mlp.up_proj.weight"].copy()
        up[5] = 0
        return {**tensors, "model.layers.0.mlp.up_proj.weight": up}

    source = tiny.edit_tensors(tiny_packages("untied").checkpoint, tmp_path / "flat", flat)
    run = calibrated(with_tokenizer(source, tmp_path))
    with open_calibration(run.path) as file:
        moments = file.moments("layers.0.mlp.down_proj.weight")
        second = moments.second()
    assert moments.rms[5] == 0 and (moments.rms > 0).sum() == 63
    assert not second[5].any() and not second[:, 5].any()
