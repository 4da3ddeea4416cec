"""Schemes: byte layout against literals and against ONNX Runtime's kernels, error bounds, extreme values, bad input."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import TypeAdapter, ValidationError

from edgepack.errors import EdgepackError, UnsupportedError
from edgepack.quant import CALIBRATED, FloatScheme, IntScheme, Rounding, Scheme, quantize

FLOAT_MAX = float(np.finfo(np.float32).max)


def normal(n: int, k: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, k), dtype=np.float32)


ROUNDINGS = sorted(set(get_args(Rounding)) - CALIBRATED)
every_rounding = pytest.mark.parametrize("rounding", ROUNDINGS)


def int_cases(*blocks: int) -> pytest.MarkDecorator:
    schemes = [
        IntScheme(bits=bits, block=block, zero_point=zero_point)
        for bits in (2, 4, 8)
        for block in blocks
        for zero_point in (False, True)
    ]
    return pytest.mark.parametrize("scheme", schemes, ids=lambda scheme: scheme.name)


# --- the layout, written out -----------------------------------------------------------------------------------------


def test_symmetric_4_bit_layout() -> None:
    weight = np.array([[-7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 0]], np.float32)
    parts = quantize(weight, IntScheme(bits=4, block=16))
    assert list(parts) == ["codes", "scales"]
    assert parts["codes"].tobytes().hex() == "21436587a9cbed8f"
    assert parts["scales"].tolist() == [[1.0]]


def test_zero_point_4_bit_layout() -> None:
    first, second = np.arange(16) - 3, np.arange(16) - 15
    weight = np.array([[*first, *second, *first], [*second, *second, *first]], np.float32)  # three blocks: odd
    parts = quantize(weight, IntScheme(bits=4, block=16, zero_point=True))
    assert parts["codes"].tobytes() == bytes.fromhex("1032547698badcfe") * 6
    assert parts["scales"].tolist() == [[1.0] * 3] * 2
    assert parts["zero_points"].tolist() == [[0xF3, 0x03], [0xFF, 0x03]]


def test_2_bit_layout() -> None:
    weight = np.array([[-1, 0, 1, 2] * 4 + [-2, -1, 0, 1] * 4], np.float32)
    parts = quantize(weight, IntScheme(bits=2, block=16, zero_point=True))
    assert parts["codes"].tobytes() == b"\xe4" * 8
    assert parts["zero_points"].tolist() == [[0b1001]]


def test_8_bit_layout() -> None:
    parts = quantize(np.array([[0, 127, -127, 1] * 4], np.float32), IntScheme(bits=8, block=16))
    assert parts["codes"].tolist() == [[128, 255, 1, 129] * 4]


@int_cases(16, 32, 128)
@every_rounding
def test_parts_are_what_the_scheme_announces(scheme: IntScheme, rounding: Rounding) -> None:
    shape = (5, 3 * scheme.block)
    parts = quantize(normal(*shape), scheme, rounding)
    assert [(part.name, part.dtype, part.shape, part.nbytes) for part in scheme.parts(shape)] == [
        (name, array.dtype.name, array.shape, array.nbytes) for name, array in parts.items()
    ]
    assert scheme.nbytes(shape) == sum(len(array.tobytes()) for array in parts.values())


def test_bytes_per_weight_at_block_128() -> None:
    shape = (2048, 2048)
    per_weight = [IntScheme(bits=4, block=128, zero_point=zp).nbytes(shape) * 8 / 2048**2 for zp in (False, True)]
    assert per_weight == [4.25, 4.28125]


# --- ONNX Runtime computes the same values from the same bytes -------------------------------------------------------


def ort_run(op: str, x: npt.NDArray[Any], constants: list[npt.NDArray[Any]], attributes: dict[str, int]) -> Any:
    """Run one com.microsoft operator whose data input `x` sits before (MatMulNBits) or after the first constant."""
    ir, ort = pytest.importorskip("onnx_ir"), pytest.importorskip("onnxruntime")

    def value(name: str, array: npt.NDArray[Any], **kwargs: Any) -> Any:
        kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        return ir.Value(name=name, type=kind, shape=ir.Shape(array.shape), **kwargs)

    data = value("x", x)
    held = [value(f"c{i}", array, const_value=ir.tensor(array, name=f"c{i}")) for i, array in enumerate(constants)]
    inputs = [data, *held] if op == "MatMulNBits" else [held[0], data, *held[1:]]
    out = ir.Value(name="y", type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node(op, inputs, attributes, domain="com.microsoft", outputs=[out])
    opsets = {"": 21, "com.microsoft": 1}
    graph = ir.Graph([data], [out], nodes=[node], initializers=held, opset_imports=opsets)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@int_cases(16, 32, 128)
@pytest.mark.parametrize("blocks", [1, 3, 4])
def test_onnxruntime_reads_the_bytes(scheme: IntScheme, blocks: int) -> None:
    n, k = 24, blocks * scheme.block
    weight = normal(n, k) + np.float32(0.3)
    parts = quantize(weight, scheme)
    expected = scheme.dequantize(parts, weight.shape)
    layout = {"bits": scheme.bits, "block_size": scheme.block}

    rows = np.array([0, n - 1, 3, 3], np.int64)
    gathered = ort_run(
        "GatherBlockQuantized", rows, list(parts.values()), {**layout, "gather_axis": 0, "quantize_axis": 1}
    )
    np.testing.assert_array_equal(gathered, expected[rows])

    x = normal(3, k, seed=1)
    packed = [parts["codes"].reshape(n, blocks, -1), *list(parts.values())[1:]]
    product = ort_run("MatMulNBits", x, packed, {**layout, "K": k, "N": n})
    np.testing.assert_allclose(product, x @ expected.T, rtol=0, atol=2e-4)


# --- how far values move ---------------------------------------------------------------------------------------------


@int_cases(16, 128)
def test_rounding_moves_a_value_by_half_a_step_at_most(scheme: IntScheme) -> None:
    weight = normal(64, 2 * scheme.block) + np.float32(0.5)
    parts = quantize(weight, scheme)
    distance = np.abs(scheme.dequantize(parts, weight.shape) - weight).reshape(64, 2, -1)
    # A zero point is a whole number itself: it may shift the ends of the range by half a step more.
    allowed = (1.0 if scheme.zero_point else 0.5) * parts["scales"][..., None] * (1 + 1e-4)
    assert (distance <= allowed).all()


@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize("zero_point", [False, True])
@pytest.mark.parametrize("bits", [2, 4])
def test_search_lowers_the_error_that_it_minimises(bits: Literal[2, 4], zero_point: bool, block: int) -> None:
    scheme = IntScheme(bits=bits, block=block, zero_point=zero_point)
    weight = normal(64, 512)
    square = np.square(weight).reshape(64, -1, block)
    counts = (square + square.mean(axis=-1, keepdims=True) / 4).reshape(64, 512)

    def error(rounding: Rounding) -> float:
        moved = scheme.dequantize(quantize(weight, scheme, rounding), weight.shape) - weight
        return float((np.square(moved) * counts).sum())

    assert error("search") < 0.98 * error("nearest")


@int_cases(16, 32)
@every_rounding
def test_a_slice_of_rows_gives_the_slice_of_parts(scheme: IntScheme, rounding: Rounding) -> None:
    weight = normal(301, 1536)  # several pieces, the last one short
    whole = quantize(weight, scheme, rounding)
    cuts = [slice(0, 1), slice(1, 130), slice(130, 301)]
    with ThreadPoolExecutor(3) as pool:
        chunks = list(pool.map(lambda rows: quantize(weight[rows], scheme, rounding), cuts))
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([chunk[name] for chunk in chunks]), array)


def test_strided_input_gives_the_same_bytes() -> None:
    scheme, weight = IntScheme(bits=4, block=32, zero_point=True), normal(40, 256)
    wide = np.asfortranarray(np.repeat(weight, 2, axis=1))[:, ::2]
    assert not wide.flags.c_contiguous
    for name, array in quantize(weight, scheme, "search").items():
        np.testing.assert_array_equal(quantize(wide, scheme, "search")[name], array)


# --- extreme values --------------------------------------------------------------------------------------------------


@int_cases(16, 64)
@every_rounding
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-45, -1e-40, 3e-38, 1e30, 1e38, -1e38], ids=lambda v: f"{v:.3g}")
def test_constant_blocks(scheme: IntScheme, rounding: Rounding, value: float) -> None:
    weight = np.full((3, 2 * scheme.block), value, np.float32)
    parts = quantize(weight, scheme, rounding)
    assert np.isfinite(parts["scales"]).all() and (parts["scales"] > 0).all()
    back = scheme.dequantize(parts, weight.shape)
    # Below the smallest normal float32 a block may become zero: 1.2e-38 is nothing next to any activation.
    np.testing.assert_allclose(back, weight, rtol=2e-5, atol=1.2e-38)


@int_cases(16)
@every_rounding
@pytest.mark.parametrize(
    ("low", "high"), [(-FLOAT_MAX, FLOAT_MAX), (-FLOAT_MAX, 1.0), (-1e-39, FLOAT_MAX), (-1e-45, 1e-44)]
)
def test_ranges_at_the_ends_of_float32_stay_finite(
    scheme: IntScheme, rounding: Rounding, low: float, high: float
) -> None:
    weight = np.linspace(0, 1, 64, dtype=np.float32).reshape(2, 32) * np.float32(high)
    weight[:, ::3] = low
    parts = quantize(weight, scheme, rounding)
    assert np.isfinite(parts["scales"]).all() and (parts["scales"] > 0).all()
    assert np.isfinite(scheme.dequantize(parts, weight.shape)).all()


@int_cases(16)
@every_rounding
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_refused(scheme: IntScheme, rounding: Rounding, bad: float) -> None:
    weight = normal(4, 32)
    weight[2, 17] = bad
    with pytest.raises(EdgepackError, match="NaN or infinite"):
        quantize(weight, scheme, rounding)
    with pytest.raises(EdgepackError, match="NaN or infinite"):
        quantize(weight, FloatScheme())


# --- bad input -------------------------------------------------------------------------------------------------------


def test_columns_must_be_a_multiple_of_the_block() -> None:
    scheme = IntScheme(bits=4, block=128)
    for call in (lambda: scheme.nbytes((8, 192)), lambda: quantize(normal(8, 192), scheme)):
        with pytest.raises(UnsupportedError, match=r"192 columns are no multiple of the block 128"):
            call()
    with pytest.raises(UnsupportedError, match="matrices"):
        scheme.parts((128,))


@pytest.mark.parametrize("block", [0, 8, 48, -16])
def test_block_must_be_a_power_of_two(block: int) -> None:
    with pytest.raises(ValidationError, match="power of two"):
        IntScheme(bits=4, block=block)


def test_dequantize_names_the_wrong_part() -> None:
    scheme = IntScheme(bits=4, block=16)
    parts = quantize(normal(2, 32), scheme)
    with pytest.raises(EdgepackError, match="'scales' is missing"):
        scheme.dequantize({"codes": parts["codes"]}, (2, 32))
    with pytest.raises(EdgepackError, match=r"'codes': expected uint8 \(2, 32\), got uint8 \(2, 16\)"):
        scheme.dequantize(parts, (2, 64))


# --- float schemes and the discriminated union -----------------------------------------------------------------------


def test_float32_keeps_the_values_and_copies_nothing() -> None:
    weight = normal(4, 8)
    parts = quantize(weight, FloatScheme())
    assert np.shares_memory(parts["values"], weight)
    assert FloatScheme().nbytes((4, 8)) == 128
    np.testing.assert_array_equal(FloatScheme().dequantize(parts, (4, 8)), weight)


def test_float16_rounds_and_refuses_overflow() -> None:
    scheme = FloatScheme(dtype="float16")
    weight = np.array([1 / 3, -65504, 65519], np.float32)
    parts = quantize(weight, scheme)
    assert parts["values"].tobytes() == weight.astype("<f2").tobytes() and scheme.nbytes((3,)) == 6
    assert scheme.dequantize(parts, (3,)).tolist() == [0.333251953125, -65504, 65504]
    with pytest.raises(UnsupportedError, match="65504"):
        quantize(np.array([65520], np.float32), scheme)


def test_empty_matrices() -> None:
    for scheme in (FloatScheme(), IntScheme(bits=4, block=16, zero_point=True)):
        parts = quantize(np.empty((0, 32), np.float32), scheme)
        assert scheme.dequantize(parts, (0, 32)).shape == (0, 32)


def test_schemes_round_trip_through_json() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Scheme)
    for scheme in (FloatScheme(dtype="float16"), IntScheme(bits=2, block=64, zero_point=True)):
        assert adapter.validate_json(adapter.dump_json(scheme)) == scheme
    assert IntScheme(bits=4, block=128, zero_point=True).name == "int4-b128-zp"
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": "int", "bits": 3, "block": 32})
