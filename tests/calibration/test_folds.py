"""Folds: the folded model computes what the model computes, and its second moments are those that are told of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest

from edgepack.calibration.file import Calibration, open_calibration
from edgepack.calibration.folds import INPUT_POWER, MOST_SCALE, Folds, rotation
from edgepack.calibration.planned import PlannedWeights
from edgepack.checkpoint.folder import Checkpoint, open_checkpoint
from edgepack.model.numpy_ops import logits
from edgepack.model.ops import Weight
from edgepack.model.read import read_model
from edgepack.quant.recipes import Fold
from tests.calibration.small import Noting, calibrated, counted, expected_ids, with_tokenizer
from tests.support import tiny
from tests.support.specs import E2B, preset_spec
from tests.support.tiny import FloatArray, TinyPackages

FOLDS: tuple[Fold, ...] = get_args(Fold)
EACH_AND_ALL: tuple[tuple[Fold, ...], ...] = (*((fold,) for fold in FOLDS), FOLDS)
each_and_all = pytest.mark.parametrize("folds", EACH_AND_ALL, ids=lambda folds: "+".join(folds))
# What is left after two roundings of each weight to float32.
LOGITS = 1e-4
# Second moments are stored as float16 shares of the product of two root mean squares.
MOMENT = 4e-3


class FoldedOps(Noting):
    """The decoder with the weights that a package stores."""

    def __init__(self, checkpoint: Checkpoint, planned: PlannedWeights) -> None:
        super().__init__(read_model(checkpoint), checkpoint)
        self._planned = planned

    def _read(self, weight: Weight, start: int, stop: int) -> FloatArray:
        return self._planned.rows(weight, start, stop)


@dataclass(frozen=True)
class Case:
    """An open tiny checkpoint, its calibration, and its logits without folds."""

    checkpoint: Checkpoint
    calibration: Calibration
    logits: FloatArray

    def folded(self, folds: tuple[Fold, ...]) -> tuple[FoldedOps, FloatArray]:
        """The folded decoder after a run of the calibration's text, and its logits."""
        planned = PlannedWeights(self.checkpoint, read_model(self.checkpoint), folds, self.calibration)
        ops = FoldedOps(self.checkpoint, planned)
        return ops, logits(ops, expected_ids())


@pytest.fixture(scope="module", params=tiny.NAMES)
def case(
    request: pytest.FixtureRequest, tiny_packages: TinyPackages, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("folds")
    small = with_tokenizer(tiny_packages(request.param).checkpoint, folder)
    file = calibrated(small).path
    with open_checkpoint(small) as checkpoint, open_calibration(file) as calibration:
        plain = logits(Noting(read_model(checkpoint), checkpoint), expected_ids())
        yield Case(checkpoint, calibration, plain)


@each_and_all
def test_logits_stay(case: Case, folds: tuple[Fold, ...]) -> None:
    _, found = case.folded(folds)
    np.testing.assert_allclose(found, case.logits, rtol=0, atol=LOGITS)


@each_and_all
def test_second_moments_are_those_of_the_folded_model(case: Case, folds: tuple[Fold, ...]) -> None:
    spec = read_model(case.checkpoint)
    known = Folds(spec, folds, PlannedWeights(case.checkpoint, spec, (), case.calibration))
    ops, _ = case.folded(folds)
    for name, inputs in ops.inputs.items():
        x = counted(inputs).astype(np.float64)
        expected = x.T @ x / len(x)
        found = known.second(name, case.calibration.moments(name).second())
        size = np.sqrt(expected.diagonal())
        np.testing.assert_array_less(np.abs(found - expected), MOMENT * np.outer(size, size) + 1e-9, err_msg=name)


def test_each_fold_changes_what_it_is_for(case: Case) -> None:
    """Else the tests above would pass where nothing is folded at all."""
    changed = {
        "rotate_vo": ("self_attn.v_proj.weight", "self_attn.o_proj.weight"),
        "scale_up_down": ("mlp.up_proj.weight", "mlp.down_proj.weight"),
        "scale_ffn_norm": ("mlp.gate_proj.weight", "mlp.up_proj.weight", "pre_feedforward_layernorm.weight"),
    }
    spec = read_model(case.checkpoint)
    plain = PlannedWeights(case.checkpoint, spec)
    for fold in FOLDS:
        folded = PlannedWeights(case.checkpoint, spec, (fold,), case.calibration)
        for part in chain.from_iterable(changed.values()):
            weight = Weight(f"layers.0.{part}")
            rows = [planned.rows(weight, 0, 16) for planned in (plain, folded)]
            assert np.array_equal(*rows) != (part in changed[fold]), (fold, part)


@pytest.mark.parametrize("size", [16, 64, 80, 96, 256])
def test_the_rotation_is_orthogonal_and_spreads(size: int) -> None:
    turn = rotation(size).astype(np.float64)
    np.testing.assert_allclose(turn @ turn.T, np.eye(size), rtol=0, atol=1e-6)
    spread = size & -size  # the largest power of two that divides it
    assert np.allclose(np.sort(np.abs(turn), axis=1)[:, -spread:], spread**-0.5)


def test_rows_may_begin_and_end_within_a_head(case: Case) -> None:
    spec = read_model(case.checkpoint)
    planned = PlannedWeights(case.checkpoint, spec, ("rotate_vo",))
    weight = Weight("layers.0.self_attn.v_proj.weight")
    whole = planned.rows(weight, 0, 2 * spec.attention_of(0).head_dim if spec.attention_of(0).num_kv_heads > 1 else 16)
    pieces = [planned.rows(weight, start, min(start + 5, len(whole))) for start in range(0, len(whole), 5)]
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=0, atol=1e-6)


class Extremes:
    """A column that the text never used, one that is used a thousand times as much, and a weight without a column."""

    def rms(self, matrix: str) -> FloatArray:
        sizes = np.ones(preset_spec(E2B).layers[0].ffn_width, np.float32)
        sizes[:2] = 0, 1e3
        return sizes

    def column_squares(self, matrix: str) -> npt.NDArray[np.float64]:
        squares = np.ones(preset_spec(E2B).layers[0].ffn_width)
        squares[2] = 0
        return squares


def test_a_scale_stays_within_bounds() -> None:
    folds, down = Folds(preset_spec(E2B), ("scale_up_down",), Extremes()), "layers.0.mlp.down_proj.weight"
    (scale,) = folds.rows(
        down, 0, 1, lambda start, stop: np.ones((stop - start, len(Extremes().rms(down))), np.float32)
    )
    assert [scale[0], scale[2]] == pytest.approx([1 / MOST_SCALE, MOST_SCALE])
    assert scale[1] == pytest.approx(1e3**INPUT_POWER, rel=0.02) and np.ptp(scale[3:]) == 0
