"""GPTQ: the codes of llm-compressor on its own grids, less error than it and than roundings without calibration, and
second moments that are singular, damaged or of another matrix."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgepack.quant import IntScheme, gptq, quantize
from edgepack.quant.gptq import compensated, feedback
from tests.vectors.make_gptq import COLUMNS, FILE, ROWS, problem, problem_sha256

FloatArray = npt.NDArray[np.float32]
ORACLE: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
# Columns are summed up in another order than there, so that a value may fall on the other side of a half.
OTHER_SIDE = 0.002
cases = pytest.mark.parametrize(
    "case", ORACLE["cases"], ids=lambda case: f"{case['bits']}-{case['block']}-{case['zero_point']}"
)


def error_of(weight: FloatArray, values: FloatArray, second: FloatArray) -> float:
    """tr(E S E^T): what the product loses, summed over rows."""
    wrong = (weight - values).astype(np.float64)
    return float(((wrong @ second) * wrong).sum())


def oracle(case: dict[str, Any]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Codes [R, B, block], scale and zero point [R, B, 1]."""
    block = case["block"] or COLUMNS
    scale = np.frombuffer(bytes.fromhex(case["scales"]), "<f4").reshape(ROWS, -1, 1)
    zero = np.frombuffer(bytes.fromhex(case["zero_points"]), np.uint8).reshape(ROWS, -1, 1).astype(np.float32)
    codes = np.array([int(digit, 16) for digit in case["codes"]], np.float32).reshape(ROWS, -1, block)
    return codes, scale, zero


def scheme_of(case: dict[str, Any]) -> IntScheme:
    return IntScheme(bits=case["bits"], block=case["block"], zero_point=case["zero_point"])


def test_the_problem_is_the_one_that_the_oracle_had() -> None:
    assert problem_sha256() == ORACLE["problem_sha256"]


@cases
def test_codes_are_the_oracles_on_its_grids(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    codes, scale, zero = oracle(case)
    grids = iter(zip(scale[:, :, 0].T, zero[:, :, 0].T, strict=True))
    monkeypatch.setattr(gptq, "DAMPING", ORACLE["damping"])
    monkeypatch.setattr(gptq, "_large_first", lambda diagonal, block: np.arange(len(diagonal)))
    monkeypatch.setattr(gptq, "_block_grid", lambda target, scheme, variance: next(grids))
    (weight, second), scheme = problem(), scheme_of(case)
    found, *_ = compensated(weight, scheme, feedback(second, case["block"] or COLUMNS))
    print((found != codes).mean())
    assert (found != codes).mean() <= OTHER_SIDE


@cases
def test_our_order_and_grids_lose_no_more_than_the_oracle(case: dict[str, Any]) -> None:
    (weight, second), scheme = problem(), scheme_of(case)
    codes, scale, zero = oracle(case)
    theirs = error_of(weight, ((codes - zero) * scale).reshape(weight.shape), second)
    parts = quantize(weight, scheme, "gptq", feedback=feedback(second, case["block"] or COLUMNS))
    print(error_of(weight, scheme.dequantize(parts, weight.shape), second) / theirs)
    assert error_of(weight, scheme.dequantize(parts, weight.shape), second) <= theirs
