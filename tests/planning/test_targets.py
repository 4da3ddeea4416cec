"""Targets: sizes, devices, profiles of the user's own, and what is none of these."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from edgepack.errors import EdgepackError
from edgepack.planning.plan import Target
from edgepack.planning.targets import DeviceProfile, device_names, device_of, find_device, load_device, parse_target

SIZES = ("2GB", "3GB")
NUMBERS = tuple(field for field in DeviceProfile.model_fields if field not in ("name", "title", "sources"))
OWN: dict[str, Any] = {
    "name": "my-board",
    "title": "My board",
    "ram_bytes": 2_147_483_648,
    "limit_bytes": 1_500_000_000,
    "read_bandwidth_bytes_per_s": 6.5e9,
    "cores": 4,
    "isa": ["asimd", "asimddp"],
    "sources": {"read_bandwidth_bytes_per_s": "mbw on the board"},
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "my-board.json"
    values = {key: value for key, value in (OWN | changes).items() if value != "missing"}
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "limit_bytes"),
    [
        ("2GB", 2_000_000_000),
        ("3GB", 3_000_000_000),
        ("2GiB", 2_147_483_648),
        ("1500 MB", 1_500_000_000),
        (" 1900000000 ", 1_900_000_000),
    ],
)
def test_a_size_is_a_target(text: str, limit_bytes: int) -> None:
    assert parse_target(text) == Target(name=text.strip(), limit_bytes=limit_bytes)


@pytest.mark.parametrize("text", ["rpi5", " RPi5 "])
def test_a_device_is_a_target(text: str) -> None:
    assert parse_target(text) == Target(name="rpi5", limit_bytes=load_device("rpi5").limit_bytes)


@pytest.mark.parametrize("text", ["rpi9", "", "phone", "-2GB"])
def test_what_is_neither_names_sizes_and_devices(text: str) -> None:
    with pytest.raises(EdgepackError) as caught:
        parse_target(text)
    message = str(caught.value)
    assert "\n" not in message
    assert repr(text) in message
    assert "2GB" in message
    assert "./my-device.json" in message
    assert all(name in message for name in device_names())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("3", "is 3 bytes: expected a unit and at least 1MB; did you mean 3GB?"),
        (" 4 ", "did you mean 4GB?"),
        ("1", "is 1 byte:"),
        ("3B", "did you mean 3GB?"),
        ("1800", "is 1,800 bytes: expected a unit and at least 1MB; did you mean 1800MB?"),
        ("700 KB", "did you mean 700MB?"),
        ("999999", "such as 2GB or 1500MB"),
        ("0.0001GB", "is 100,000 bytes: expected a unit and at least 1MB, such as 2GB"),
    ],
)
def test_a_size_without_its_unit_is_no_budget(text: str, said: str) -> None:
    with pytest.raises(EdgepackError) as caught:
        parse_target(text)
    assert str(caught.value).startswith(f"size {text!r} is ") and said in str(caught.value)


def test_the_least_budget_is_taken() -> None:
    assert parse_target("1000000").limit_bytes == parse_target("1MB").limit_bytes == 10**6


@pytest.mark.parametrize("text", ["2XB", "0GB", "2 GB RAM", "1.9", "1.9B"])
def test_a_wrong_size_is_refused_as_a_size(text: str) -> None:
    with pytest.raises(EdgepackError, match=r"size '.*' is no"):
        parse_target(text)


def test_an_unknown_device_names_the_known_ones() -> None:
    known = "2GB, 3GB, android-high, android-low, android-mid, rpi4, rpi4-8gb, rpi5, rpi5-8gb"
    with pytest.raises(EdgepackError, match=f"device 'pixel' is not known: expected one of {known}"):
        load_device("pixel")


@pytest.mark.parametrize("name", device_names())
def test_every_number_of_a_profile_has_a_source(name: str) -> None:
    device = load_device(name)
    assert device.name == name
    assert set(device.sources) == set(NUMBERS)
    assert all(len(source) > 10 for source in device.sources.values())
    assert device.limit_bytes < device.ram_bytes
    assert device.target == Target(name=name, limit_bytes=device.limit_bytes)


@pytest.mark.parametrize("name", [name for name in device_names() if name not in SIZES])
def test_a_device_has_a_bandwidth_below_the_peak_that_its_source_states(name: str) -> None:
    device = load_device(name)
    assert device.read_bandwidth_bytes_per_s is not None
    assert device.cores is not None
    source = device.sources["read_bandwidth_bytes_per_s"]
    assert "STREAM" in source or "lower bound" in source or "read-only" in source or source.startswith("ESTIMATE")
    peaks = [float(text) for text in re.findall(r"peak of [^;]*? is ([0-9.]+) GB/s", source)]
    assert all(device.read_bandwidth_bytes_per_s < 1e9 * peak for peak in peaks)


def test_a_size_predicts_no_speed() -> None:
    for name in SIZES:
        device = load_device(name)
        assert device.read_bandwidth_bytes_per_s is None
        assert device.cores is None
        assert device.isa == ()


def test_an_app_gets_less_of_a_phone_than_of_a_board() -> None:
    limits = {name: load_device(name).limit_bytes / load_device(name).ram_bytes for name in device_names()}
    assert all(limits[name] <= 0.5 for name in ("android-low", "android-mid", "android-high"))
    assert all(limits[name] > 0.6 for name in ("rpi4", "rpi4-8gb", "rpi5", "rpi5-8gb"))


def test_what_decides_kernels_is_right() -> None:
    # int8 kernels look for the dot product: Cortex-A72 has none, Cortex-A76 has it; i8mm came with Armv8.6.
    assert "asimddp" not in load_device("rpi4").isa
    assert "asimddp" in load_device("rpi5").isa
    assert "i8mm" not in load_device("android-low").isa
    assert {"asimddp", "i8mm"} <= set(load_device("android-mid").isa)


def test_the_device_of_a_target() -> None:
    assert device_of(parse_target("RPI4")) == load_device("rpi4")
    assert device_of(parse_target("2GB")) == load_device("2GB")
    assert device_of(parse_target("2GiB")) is None
    assert device_of(None) is None


def test_a_profile_of_the_users_own(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert parse_target(str(path)) == Target(name="my-board", limit_bytes=1_500_000_000)
    device = find_device(str(path))
    assert device is not None
    assert device.read_bandwidth_bytes_per_s == 6.5e9
    assert device_of(device.target) is None
    assert find_device("rpi5") == load_device("rpi5")
    assert find_device("2GiB") is None


def test_a_profile_needs_a_name_a_title_and_two_sizes_only(tmp_path: Path) -> None:
    path = write(tmp_path, read_bandwidth_bytes_per_s="missing", cores="missing", isa="missing", sources="missing")
    device = find_device(str(path))
    assert device is not None
    assert device.read_bandwidth_bytes_per_s is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit_bytes": "missing"}, "limit_bytes: Field required"),
        ({"limit_bytes": -1}, "limit_bytes: Input should be greater than or equal to 1000000"),
        ({"limit_bytes": 3_000_000_000}, "limit_bytes: it is more than ram_bytes"),
        ({"cores": "four"}, "cores: Input should be a valid integer"),
        ({"bandwidth": 1}, "bandwidth: Extra inputs are not permitted"),
        ({"name": "RPI5"}, "name: 'RPI5' is the name of a known device"),
    ],
)
def test_a_broken_profile_is_refused_with_its_field(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(EdgepackError) as caught:
        parse_target(str(path))
    text = str(caught.value)
    assert text.startswith(f"device profile {path}: {message}")
    assert "\n" not in text


def test_a_file_that_is_no_json_or_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    with pytest.raises(EdgepackError, match=r"device profile .*device\.json cannot be read: No such file"):
        parse_target(str(path))
    path.write_text("name: rpi5", encoding="utf-8")
    with pytest.raises(EdgepackError, match=r"device profile .*device\.json: the document: Invalid JSON"):
        parse_target(str(path))
