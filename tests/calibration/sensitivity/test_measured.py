"""What a measurement says, against whole runs of a model whose weights were changed beforehand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import edgepack
from edgepack.calibration.file import open_calibration
from edgepack.calibration.sensitivity import run
from edgepack.calibration.sensitivity.file import read_sensitivity
from edgepack.calibration.sensitivity.groups import groups_of
from edgepack.calibration.sensitivity.probe import Probe
from edgepack.calibration.sensitivity.rounded import Factors, change_of, rounded
from edgepack.calibration.sensitivity.run import runs_every_candidate
from edgepack.checkpoint.folder import open_checkpoint
from edgepack.model.families import family_of
from edgepack.model.numpy_ops import NumpyOps, WeightSource, logits
from edgepack.model.read import read_model
from edgepack.model.spec import ModelSpec
from edgepack.model.tensors import checkpoint_name
from edgepack.quant import IntScheme, Storage
from edgepack.validation.quality.divergence import compare_positions
from edgepack.values import FloatArray
from tests.calibration.small import calibrated, expected_ids
from tests.support.tiny import TinyPackages

FOUR = Storage(scheme=IntScheme(bits=4, block=16, zero_point=True))
EIGHT = Storage(scheme=IntScheme(bits=8, block=16))


class Replaced:
    """Weights of which some are changed as a whole."""

    def __init__(self, spec: ModelSpec, source: WeightSource, stored: Mapping[str, Storage]) -> None:
        shapes = {tensor.name: tensor.shape for tensor in family_of(spec).tensor_table(spec)}
        self._source = source
        self._changed: dict[str, FloatArray] = {}
        for name, storage in stored.items():
            whole = source.read_rows(checkpoint_name(spec, name), 0, shapes[name][0])
            self._changed[checkpoint_name(spec, name)] = rounded(whole, storage)

    def read_rows(self, name: str, start: int, stop: int) -> FloatArray:
        if name in self._changed:
            return self._changed[name][start:stop]
        return self._source.read_rows(name, start, stop)


class Measured:
    """A probe of a tiny checkpoint."""

    def __init__(self, spec: ModelSpec, source: WeightSource, probe: Probe, ids: npt.NDArray[np.int32]) -> None:
        self.spec, self.source, self.probe, self.ids = spec, source, probe, ids
        self.columns = {t.name: t.shape[-1] for t in family_of(spec).tensor_table(spec)}

    def kl(self, stage: int, *ways: Mapping[str, Storage]) -> list[float]:
        with open_calibration_of_none() as factors:
            return self.probe.divergences(stage, [change_of(way, self.columns, factors) for way in ways])

    def whole(self, stored: Mapping[str, Storage]) -> float:
        """The KL of whole runs of both models, every second position from the second on."""
        before = logits(NumpyOps(self.spec, self.source), self.ids)[:, 1::2]
        after = logits(NumpyOps(self.spec, Replaced(self.spec, self.source, stored)), self.ids)[:, 1::2]
        flat = [values.reshape(-1, values.shape[-1]) for values in (before, after)]
        return float(np.mean(compare_positions(flat[0], flat[1], [0] * len(flat[0])).kl))


@contextmanager
def open_calibration_of_none() -> Iterator[Factors]:
    yield Factors(None)  # type: ignore[arg-type]  # plain roundings ask it for nothing


@contextmanager
def probed(checkpoint: Path, folder: Path) -> Iterator[Measured]:
    folder.mkdir()
    with open_checkpoint(checkpoint) as source, ThreadPoolExecutor(2) as pool:
        spec, ids = read_model(source), expected_ids().astype(np.int32)
        yield Measured(spec, source, Probe(source, spec, ids, folder, pool), ids)


@pytest.mark.parametrize("name", ["shared", "untied", "gemma3"])
def test_a_change_costs_what_whole_runs_say(name: str, tiny_packages: TinyPackages, tmp_path: Path) -> None:
    with probed(tiny_packages(name).checkpoint, tmp_path / "work") as measured:
        kinds = {}
        for group in groups_of(measured.spec):
            kinds.setdefault(group.kind, group)  # the last of a kind would share keys and values
            kinds[f"last {group.kind}"] = group
        checked = 0
        for group in kinds.values():
            stored = {t.name: FOUR for t in group.tensors if t.shape[1] % 16 == 0}
            if stored:
                expected = measured.whole(stored)
                assert measured.kl(group.stage, stored)[0] == pytest.approx(expected, rel=0.02, abs=1e-8), group.name
                assert expected > 1e-8, group.name
                checked += 1
        assert checked >= 8 if measured.spec.ple else checked >= 5


def test_groups_are_all_matrices_once(tiny_packages: TinyPackages) -> None:
    with open_checkpoint(tiny_packages("shared").checkpoint) as source:
        spec = read_model(source)
    matrices = [t.name for t in family_of(spec).tensor_table(spec) if len(t.shape) == 2]
    grouped = [tensor.name for group in groups_of(spec) for tensor in group.tensors]
    assert sorted(grouped) == sorted(matrices)
    by_name = {group.name: group for group in groups_of(spec)}
    assert [t.name for t in by_name["layers.0.ffn_gate_up"].tensors] == [
        "layers.0.mlp.gate_proj.weight",
        "layers.0.mlp.up_proj.weight",
    ]
    assert by_name["altup_projection"].stage == 0 and by_name["layers.2.ffn_down"].stage == 3
    assert by_name["embedding"].multiplied and not by_name["ple"].multiplied


def test_a_small_kl_goes_with_the_error_and_adds_up(tiny_packages: TinyPackages, tmp_path: Path) -> None:
    """Squared error of products at 4 and 8 bits, and the KL that a forward gives: the law that files rely on."""
    with probed(tiny_packages("shared").checkpoint, tmp_path / "work") as measured:
        together: dict[str, Storage] = {}
        total = 0.0
        for group in (g for g in groups_of(measured.spec) if g.kind in ("ffn_down", "ffn_gate_up", "attention_value")):
            four, eight = measured.kl(
                group.stage, *({t.name: storage for t in group.tensors} for storage in (FOUR, EIGHT))
            )
            errors = []
            for storage in (FOUR, EIGHT):
                lost = 0.0
                for tensor in group.tensors:
                    name = checkpoint_name(measured.spec, tensor.name)
                    rows = measured.source.read_rows(name, 0, tensor.shape[0])
                    inputs = measured.probe.inputs(tensor.name)
                    lost += (
                        np.square(inputs @ (rounded(rows, storage) - rows).T).sum() / np.square(inputs @ rows.T).sum()
                    )
                errors.append(lost)
            assert 0.4 < eight / (four * errors[1] / errors[0]) < 2.5, group.name
            together |= {t.name: EIGHT for t in group.tensors}
            total += eight
        assert 0.6 < measured.kl(0, together)[0] / total < 1.6


def test_the_file_says_the_same_whatever_the_number_of_threads(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = calibrated(small).path
    texts = []
    for threads in (1, 3):
        monkeypatch.setattr(run, "available_cores", lambda threads=threads: threads)
        out = tmp_path / f"{threads}.json"
        found = edgepack.sensitivity(
            small,
            calibration=known,
            out=out,
            text=small.parent / "text.txt",
            tokens=48,
            sequence=24,
        )
        assert read_sensitivity(out) == found
        texts.append(out.read_text("utf-8"))
    assert texts[0] == texts[1]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    assert found.positions == 24 and json.loads(texts[0])["version"] == 1
    with open_checkpoint(small) as source, open_calibration(known) as opened:
        spec = read_model(source)
        found.require_for(source, spec, "onnx", out)
        assert found.calibration_sha256 == opened.sha256
    groups = {group.name: group for group in groups_of(spec)}
    for cost in found.groups:
        measured = [choice.measured for choice in cost.choices]
        assert all(measured) if runs_every_candidate(groups[cost.name]) else 1 <= sum(measured) <= 2 < len(measured)
        assert all(choice.kl > 0 for choice in cost.choices)
