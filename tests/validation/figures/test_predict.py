"""Predictions for other devices, and the bandwidth reading they start from. The figures are computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgepack.planning.targets import DeviceProfile, device_names, load_device
from edgepack.validation.figures import bandwidth as bandwidths
from edgepack.validation.figures.bandwidth import (
    Bandwidth,
    buffer_bytes,
    last_level_cache_bytes,
    measure_bandwidth,
    noise,
)
from edgepack.validation.figures.predict import PackageFacts, basis_of, predict, predict_all
from edgepack.validation.metrics import measured
from edgepack.validation.records import Load
from edgepack.validation.result import Prediction

# 20 tok/s x 1.2 GB = 24 GB/s of the 30 GB/s that were read: efficiency 0.8.
PACKAGE = PackageFacts(bytes_per_step=1_200_000_000, integer_weights=True)
METRICS = (
    measured("peak_rss_bytes", [1_600_000_000, 1_700_000_000]),
    measured("decode_tokens_per_s", [19.0, 20.0, 23.0]),
)
HERE = Bandwidth(
    bytes_per_s=30e9,
    lowest_bytes_per_s=20e9,
    median_bytes_per_s=25e9,
    passes=9,
    threads=2,
    buffer_bytes=256_000_000,
    cache_bytes=33_554_432,
)
DEVICE = DeviceProfile(
    name="phone",
    title="A phone",
    ram_bytes=8_000_000_000,
    limit_bytes=1_700_000_000,
    read_bandwidth_bytes_per_s=12e9,
    cores=8,
    isa=("asimd", "asimddp"),
)


def one(
    package: PackageFacts = PACKAGE, here: Bandwidth | None = HERE, metrics: Any = METRICS, **changes: Any
) -> Prediction:
    """With all that is said of it in its `basis`."""
    basis = basis_of(package, metrics, [] if here is None else [here])
    (prediction,) = predict_all(package, metrics, basis, [DEVICE.model_copy(update=changes)])
    said = (prediction.basis, basis.text, basis.withheld or "")
    return prediction.model_copy(update={"basis": "; ".join(said)})


def test_speed_is_bandwidth_times_efficiency_over_bytes() -> None:
    prediction = one()
    assert prediction.decode_tokens_per_s == pytest.approx(8.0)  # 12 GB/s x 0.8 / 1.2 GB
    for figure in ("0.80", "1.20 GB", "20.00 tok/s", "30.0 GB/s", "2 threads", "1.70 GB"):
        assert figure in prediction.basis
    assert "predicted tok/s = read bandwidth of the device x efficiency / bytes a step" in prediction.basis
    assert "\n" not in prediction.basis


def test_this_machine_predicts_itself() -> None:
    assert one(read_bandwidth_bytes_per_s=30e9).decode_tokens_per_s == pytest.approx(20.0)


@pytest.mark.parametrize(("limit_bytes", "fits"), [(1_700_000_000, True), (1_699_999_999, False)])
def test_the_largest_peak_must_fit(limit_bytes: int, fits: bool) -> None:
    assert one(limit_bytes=limit_bytes).fits is fits


def test_without_a_peak_nobody_knows_whether_it_fits() -> None:
    prediction = one(metrics=METRICS[1:])
    assert prediction.fits is None
    assert prediction.decode_tokens_per_s == pytest.approx(8.0)
    assert "peak RSS" not in prediction.basis


def test_without_a_dot_product_efficiency_is_held() -> None:
    prediction = one(isa=("asimd",))
    assert prediction.decode_tokens_per_s == pytest.approx(6.3)  # 12 GB/s x 0.63 / 1.2 GB
    assert "0.63" in prediction.basis
    assert "upper bound" in prediction.basis
    assert one(isa=("avx2", "avx_vnni")).decode_tokens_per_s == pytest.approx(8.0)
    floats = PACKAGE.model_copy(update={"integer_weights": False})
    assert one(floats, isa=("asimd",)).decode_tokens_per_s == pytest.approx(8.0)


def test_a_lower_efficiency_is_not_raised_to_the_limit() -> None:
    slow = (measured("decode_tokens_per_s", [13.75]),)
    assert one(metrics=slow, isa=("asimd",)).decode_tokens_per_s == pytest.approx(5.5)  # efficiency 0.55


def test_an_unknown_instruction_set_is_said() -> None:
    prediction = one(isa=())
    assert prediction.decode_tokens_per_s == pytest.approx(8.0)
    assert "instruction set not known" in prediction.basis


def test_without_a_reading_here_an_efficiency_is_assumed_and_said() -> None:
    prediction = one(here=None)
    assert prediction.decode_tokens_per_s == pytest.approx(6.0)  # 12 GB/s x 0.6 / 1.2 GB
    assert "efficiency 0.6 assumed: no bandwidth was measured here" in prediction.basis
    planned = predict(PACKAGE, DEVICE)
    assert planned.decode_tokens_per_s == pytest.approx(6.0) and planned.fits is None
    assert planned.basis.startswith("reads 12.0 GB/s; predicted tok/s = ") and planned.basis.endswith("measured here")
    slow = predict(PACKAGE, DEVICE.model_copy(update={"isa": ("asimd",), "read_bandwidth_bytes_per_s": 6e9}))
    assert slow.decode_tokens_per_s == pytest.approx(3.0) and "6.00 GB/s; efficiency 0.60 used" in slow.basis
    assert predict(PACKAGE, DEVICE.model_copy(update={"read_bandwidth_bytes_per_s": None})).basis == (
        "no speed predicted: the profile has no bandwidth"
    )


def test_a_model_in_the_cache_predicts_nothing() -> None:
    tiny = PackageFacts(bytes_per_step=30_000_000, integer_weights=True)
    for here in (HERE, None):
        prediction = one(tiny, here)
        assert prediction.decode_tokens_per_s is None
        assert prediction.fits is True
        assert "30.0 MB a step fits in" in prediction.basis
    assert "; no speed predicted: 30.0 MB a step fits in a cache, assumed," in predict(tiny, DEVICE).basis


def test_an_efficiency_above_one_predicts_nothing() -> None:
    prediction = one(here=HERE.model_copy(update={"bytes_per_s": 23e9}))
    assert prediction.decode_tokens_per_s is None
    assert "the efficiency, 1.04, is above 1" in prediction.basis


@pytest.mark.parametrize("speed", [2.5, 4.5, 12.25])  # efficiencies 0.1, 0.18 and 0.49
def test_an_efficiency_that_no_quiet_machine_has_predicts_nothing(speed: float) -> None:
    prediction = one(metrics=(METRICS[0], measured("decode_tokens_per_s", [speed])))
    assert prediction.decode_tokens_per_s is None and prediction.fits is True
    assert f"the efficiency, {speed / 25:.2f}, is below 0.5: other load on this machine" in prediction.basis
    assert one(metrics=(measured("decode_tokens_per_s", [12.5]),)).decode_tokens_per_s == pytest.approx(5.0)


def reading(median: float) -> Bandwidth:
    return HERE.model_copy(update={"median_bytes_per_s": median})


@pytest.mark.parametrize(
    ("rates", "load", "withheld", "doubt"),
    [
        ((25e9, 26e9), None, None, None),
        ((25e9, 26e9), Load(others_share=0.09, steal_share=0.01), None, None),
        ((25e9, 29e9), None, None, "it read its own memory at 25.0 GB/s to 29.0 GB/s"),
        ((25e9, 39e9), None, "it read its own memory at 25.0 GB/s to 39.0 GB/s", None),
        ((25e9,), Load(others_share=0.22, steal_share=0.0), None, "other processes took 22.0 % of its cores' time"),
        ((25e9,), Load(others_share=0.6, steal_share=0.02), "other processes took 60.0 % of its cores' time", None),
        ((25e9,), Load(others_share=0.0, steal_share=0.03), None, "gave 3.0 % of it to others (steal)"),
        ((25e9,), Load(others_share=0.0, steal_share=0.25), "gave 25.0 % of it to others (steal)", None),
    ],
)
def test_a_machine_that_was_not_quiet_predicts_doubtful_speeds_or_none(
    rates: tuple[float, ...], load: Load | None, withheld: str | None, doubt: str | None
) -> None:
    basis = basis_of(PACKAGE, METRICS, [reading(rate) for rate in rates], load)
    for said, wanted in ((basis.withheld, withheld), (basis.doubt, doubt)):
        assert (said is None) == (wanted is None)
        assert said is None or (said.startswith("not a quiet machine: ") and str(wanted) in said)
    (prediction,) = predict_all(PACKAGE, METRICS, basis, [DEVICE])
    assert (prediction.decode_tokens_per_s is None) == (withheld is not None)
    assert prediction.fits is True, "the memory does not depend on the load"


def test_the_formula_is_in_what_all_share_and_not_in_each() -> None:
    basis = basis_of(PACKAGE, METRICS, [HERE])
    assert basis.text.count("predicted tok/s =") == 1 and "efficiency 0.80 here = 20.00 tok/s" in basis.text
    for prediction in predict_all(PACKAGE, METRICS, basis, [load_device(name) for name in device_names()]):
        assert "predicted" not in prediction.basis or prediction.decode_tokens_per_s is None
        assert "tok/s x" not in prediction.basis


def test_a_reading_that_may_be_cache_is_said() -> None:
    prediction = one(here=HERE.model_copy(update={"cache_bytes": 200_000_000}))
    assert prediction.decode_tokens_per_s == pytest.approx(8.0)
    assert "may be cache" in prediction.basis


def test_no_decode_or_no_bandwidth_of_the_device_predicts_nothing() -> None:
    assert "no decode was measured" in one(metrics=METRICS[:1]).basis
    assert one(metrics=METRICS[:1]).decode_tokens_per_s is None
    assert "the profile has no bandwidth" in one(read_bandwidth_bytes_per_s=None).basis
    assert one(read_bandwidth_bytes_per_s=None).decode_tokens_per_s is None


def test_every_known_device_gets_one_prediction_in_order() -> None:
    devices = [load_device(name) for name in device_names()]
    predictions = predict_all(PACKAGE, METRICS, basis_of(PACKAGE, METRICS, [HERE]), devices)
    assert [prediction.device for prediction in predictions] == list(device_names())
    speeds = {prediction.device: prediction.decode_tokens_per_s for prediction in predictions}
    assert speeds["rpi5"] == pytest.approx(11.59 * 0.8 / 1.2)
    assert speeds["rpi4"] == pytest.approx(4.84 * 0.63 / 1.2)
    assert speeds["2GB"] is None
    assert {prediction.device: prediction.fits for prediction in predictions} == {
        **dict.fromkeys(device_names(), True),
        "android-low": False,
    }


def cache(folder: Path, cpu: int, index: int, level: str, size: str, shared: str) -> None:
    where = folder / f"cpu{cpu}" / "cache" / f"index{index}"
    where.mkdir(parents=True)
    for name, text in {"level": level, "size": size, "shared_cpu_list": shared}.items():
        (where / name).write_text(text + "\n")


def test_every_last_level_cache_counts_once(tmp_path: Path) -> None:
    for cpu in range(4):
        cache(tmp_path, cpu, 0, "1", "32K", str(cpu))
        cache(tmp_path, cpu, 3, "3", "16M", "0-1" if cpu < 2 else "2-3")
    assert last_level_cache_bytes(tmp_path) == 2 * 16 * 2**20


def test_a_machine_that_shows_no_cache(tmp_path: Path) -> None:
    (tmp_path / "cpu0" / "cache" / "index0").mkdir(parents=True)
    assert last_level_cache_bytes(tmp_path) is None
    assert last_level_cache_bytes(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("cache_bytes", "expected"),
    [
        (None, 256_000_000),
        (2 * 2**20, 64 * 2**20),
        (16 * 2**20, 128 * 2**20),
        (2**30, 256_000_000),
    ],
)
def test_the_buffer_is_past_the_cache_and_bounded(cache_bytes: int | None, expected: int) -> None:
    assert buffer_bytes(cache_bytes) == expected


def test_a_reading_counts_bytes_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidths, "SMALLEST_BUFFER_BYTES", 8_000_000)
    monkeypatch.setattr(bandwidths, "LARGEST_BUFFER_BYTES", 8_000_000)

    # Begin, then start and end of five passes, then the look at the clock that says enough.
    times = iter([0.0, 1.0, 1.004, 2.0, 2.002, 3.0, 3.001, 4.0, 4.004, 5.0, 5.008, 6.0])
    reading = measure_bandwidth(2, clock=lambda: next(times))
    assert reading.passes == 5
    assert reading.threads == 2
    assert reading.buffer_bytes == 8_000_000
    assert reading.bytes_per_s == pytest.approx(8e9)
    assert reading.median_bytes_per_s == pytest.approx(2e9)
    assert reading.lowest_bytes_per_s == pytest.approx(1e9)


def test_noise_is_how_far_apart_the_readings_are() -> None:
    def reading(rate: float) -> Bandwidth:
        return HERE.model_copy(update={"median_bytes_per_s": rate})

    assert noise([]) == noise([reading(3e9)]) == 0
    assert noise([reading(3e9), reading(2.5e9), reading(2.8e9)]) == pytest.approx(0.2)
