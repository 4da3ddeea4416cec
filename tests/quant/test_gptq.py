"""GPTQ: the codes of llm-compressor on its own grids, less error than it and than roundings without calibration, and
second moments that are singular, damaged or of another matrix."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgepack.errors import EdgepackError, UnsupportedError
from edgepack.planning.backends import BACKENDS
from edgepack.quant import IntScheme, Rounding, gptq, quantize
from edgepack.quant.gptq import Feedback, compensated, feedback
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
    monkeypatch.setattr(gptq, "_OWN_DAMPING", 0.0)
    monkeypatch.setattr(gptq, "_large_first", lambda diagonal, block: np.arange(len(diagonal)))
    monkeypatch.setattr(gptq, "_block_grid", lambda target, scheme, variance: next(grids))
    (weight, second), scheme = problem(), scheme_of(case)
    found, *_ = compensated(weight, scheme, feedback(second, case["block"] or COLUMNS))
    assert (found != codes).mean() <= OTHER_SIDE


@cases
def test_our_order_and_grids_lose_no_more_than_the_oracle(case: dict[str, Any]) -> None:
    (weight, second), scheme = problem(), scheme_of(case)
    codes, scale, zero = oracle(case)
    theirs = error_of(weight, ((codes - zero) * scale).reshape(weight.shape), second)
    parts = quantize(weight, scheme, "gptq", feedback=feedback(second, case["block"] or COLUMNS))
    print(error_of(weight, scheme.dequantize(parts, weight.shape), second) / theirs)
    assert error_of(weight, scheme.dequantize(parts, weight.shape), second) <= theirs


# --- against roundings without calibration ---------------------------------------------------------------------------


def schemes() -> list[IntScheme]:
    """Every scheme that a matrix of a product may have in a backend, with blocks of 16 to 256 and whole rows."""
    forms = [form for backend in BACKENDS.values() for form in backend.matrix_ints]
    blocks = (16, 32, 64, 128, 256, None)
    every = [
        IntScheme(bits=bits, block=block, zero_point=zero_point, scale_dtype=dtype)
        for bits in (2, 4, 8)
        for block in blocks
        for zero_point in (False, True)
        for dtype in ("float32", "float16")
    ]
    return [scheme for scheme in every if any(form.covers(scheme) for form in forms)]


every_scheme = pytest.mark.parametrize("scheme", schemes(), ids=lambda scheme: f"{scheme.name}-{scheme.scale_dtype}")


@every_scheme
def test_less_error_than_without_calibration(scheme: IntScheme) -> None:
    weight, second = problem()

    def error(rounding: Rounding, known: Feedback | None = None) -> float:
        parts = quantize(weight, scheme, rounding, feedback=known)
        return error_of(weight, scheme.dequantize(parts, weight.shape), second)

    found = error("gptq", feedback(second, scheme.block_of(weight.shape)))
    assert found < 0.7 * min(error("nearest"), error("search"))


def test_without_correlations_there_is_nothing_to_make_up_for() -> None:
    """Each column is rounded for itself, in whatever order."""
    weight, scheme = problem()[0], IntScheme(bits=4, block=32)
    variance = np.linspace(1, 2, COLUMNS, dtype=np.float32)
    codes, scale, zero = compensated(weight, scheme, feedback(np.diag(variance), 32))
    blocks = weight.reshape(codes.shape)
    np.testing.assert_array_equal(codes, np.clip(np.rint(blocks * (np.float32(1) / scale) + zero), 0, 15))


# --- second moments that are singular, or none ------------------------------------------------------------------------


def test_fewer_positions_than_columns() -> None:
    """Singular, as of a short text: the damping makes it positive definite."""
    weight, _ = problem()
    x = np.random.default_rng(1).standard_normal((32, COLUMNS)).astype(np.float32)
    second = x.T @ x / np.float32(len(x))
    scheme = IntScheme(bits=4, block=32)
    known = feedback(second, 32)
    assert known.damping == gptq.DAMPING
    values = scheme.dequantize(quantize(weight, scheme, "gptq", feedback=known), weight.shape)
    nearest = scheme.dequantize(quantize(weight, scheme), weight.shape)
    assert error_of(weight, values, second) < 0.5 * error_of(weight, nearest, second)


def test_more_damping_where_it_is_not_positive_definite() -> None:
    """What rounding to float16 does to large columns that are nearly equal."""
    second = np.full((64, 64), 1.03, np.float32)
    np.fill_diagonal(second, 1.0)  # its least eigenvalue is -0.03
    known = feedback(second, 32)
    assert known.damping == pytest.approx(10 * gptq.DAMPING)
    assert (known.variance > 0).all()
    with pytest.raises(EdgepackError, match="not positive definite, whatever is added"):
        feedback(np.where(np.eye(64, dtype=bool), 1.0, 4.0).astype(np.float32), 32)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_statistics_that_are_not_finite_are_refused(bad: float) -> None:
    second = problem()[1].copy()
    second[3, 5] = second[5, 3] = bad
    with pytest.raises(EdgepackError, match="negative square, NaN or infinite"):
        feedback(second, 32)
    negative = problem()[1].copy()
    negative[7, 7] = -1.0
    with pytest.raises(EdgepackError, match="negative square, NaN or infinite"):
        feedback(negative, 32)


def test_columns_that_are_always_zero() -> None:
    """They cost nothing whatever they become, and do not disturb the others."""
    weight, second = problem()
    dead = [0, 31, 64, 255, *range(96, 128)]
    second = second.copy()
    second[dead], second[:, dead] = 0.0, 0.0
    scheme = IntScheme(bits=4, block=32, zero_point=True)
    values = scheme.dequantize(quantize(weight, scheme, "gptq", feedback=feedback(second, 32)), weight.shape)
    nearest = scheme.dequantize(quantize(weight, scheme), weight.shape)
    assert error_of(weight, values, second) < 0.7 * error_of(weight, nearest, second)
    assert np.abs(values - weight)[:, dead].max() < 1.0


def test_an_input_that_is_always_zero() -> None:
    weight, scheme = problem()[0], IntScheme(bits=4, block=32)
    parts = quantize(weight, scheme, "gptq", feedback=feedback(np.zeros((COLUMNS, COLUMNS), np.float32), 32))
    assert np.abs(scheme.dequantize(parts, weight.shape) - weight).max() < 0.5


# --- weights at the ends, and what does not fit -----------------------------------------------------------------------


def known_for(columns: int, block: int) -> Feedback:
    return feedback(problem()[1][:columns, :columns].copy(), block)


@every_scheme
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-45, 3e-38], ids=lambda v: f"{v:.3g}")
def test_constant_weights(scheme: IntScheme, value: float) -> None:
    weight = np.full((3, COLUMNS), value, np.float32)
    block = scheme.block_of(weight.shape)
    parts = quantize(weight, scheme, "gptq", feedback=known_for(COLUMNS, block))
    assert np.isfinite(parts["scales"]).all() and (parts["scales"] > 0).all()
    back = scheme.dequantize(parts, weight.shape)
    assert np.isfinite(back).all()
    if abs(value) > 1e-30:  # below it squares are zero
        second = problem()[1]
        assert error_of(weight, back, second) < 0.01 * error_of(weight, 0 * weight, second)


@pytest.mark.parametrize("zero_point", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("largest", [1e30, 1e38, float(np.finfo(np.float32).max)])
def test_the_largest_weights_stay_finite_or_are_refused(bits: int, zero_point: bool, largest: float) -> None:
    scheme = IntScheme(bits=bits, block=16, zero_point=zero_point)
    weight = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32) * np.float32(largest)
    try:
        parts = quantize(weight, scheme, "gptq", feedback=known_for(32, 16))
    except EdgepackError as error:
        said = str(error)
        assert largest > 1e38 and ("NaN or infinite" in said or "round them to nearest" in said)
        return
    assert np.isfinite(parts["scales"]).all() and (parts["scales"] > 0).all()
    assert np.isfinite(scheme.dequantize(parts, weight.shape)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 17, 31])
def test_nan_and_inf_are_refused(bad: float, column: int) -> None:
    weight = problem()[0][:, :32].copy()
    weight[2, column] = bad
    with pytest.raises(EdgepackError, match="NaN or infinite"):
        quantize(weight, IntScheme(bits=4, block=16), "gptq", feedback=known_for(32, 16))


def test_what_does_not_fit_is_refused() -> None:
    weight, scheme = problem()[0], IntScheme(bits=4, block=32)
    with pytest.raises(EdgepackError, match="the second moment is of 128 inputs, the matrix has 256 columns"):
        quantize(weight, scheme, "gptq", feedback=known_for(128, 32))
    with pytest.raises(UnsupportedError, match="240 columns are no multiple of the block 32"):
        quantize(weight[:, :240], scheme, "gptq", feedback=known_for(128, 32))
    with pytest.raises(EdgepackError, match=r"gptq needs a calibration: make one with `edgepack calibrate`$"):
        quantize(weight, scheme, "gptq")


def test_more_columns_than_are_factored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    second = problem()[1]
    whole = feedback(second, 32)
    monkeypatch.setattr(gptq, "_FACTOR_BLOCK", 96)  # no divisor of the columns
    pieces = feedback(second, 32)
    np.testing.assert_allclose(np.triu(pieces.upper), np.triu(whole.upper), rtol=0, atol=1e-3)
    np.testing.assert_allclose(pieces.variance, whole.variance, rtol=1e-3)
