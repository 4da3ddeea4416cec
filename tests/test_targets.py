"""Targets: sizes, devices, and what neither is."""

from __future__ import annotations

import pytest

from edgepack.errors import EdgepackError
from edgepack.planner import Target
from edgepack.targets import DeviceProfile, device_names, device_of, load_device, parse_target


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
    assert all(name in message for name in device_names())


@pytest.mark.parametrize("text", ["2XB", "0GB", "2 GB RAM"])
def test_a_wrong_size_is_refused_as_a_size(text: str) -> None:
    with pytest.raises(EdgepackError, match=r"size '.*' is not"):
        parse_target(text)


def test_an_unknown_device_names_the_known_ones() -> None:
    with pytest.raises(
        EdgepackError, match="device 'pixel' is not known: expected one of rpi4, rpi4-8gb, rpi5, rpi5-8gb"
    ):
        load_device("pixel")


@pytest.mark.parametrize("name", device_names())
def test_every_profile_is_complete(name: str) -> None:
    device = load_device(name)
    assert device.name == name
    assert 0.5 * device.ram_bytes < device.limit_bytes < device.ram_bytes
    numbers = {field for field in DeviceProfile.model_fields if field not in ("name", "title", "sources")}
    assert set(device.sources) == numbers
    assert all(device.sources.values())
    assert device.target == Target(name=name, limit_bytes=device.limit_bytes)


def test_what_decides_kernels_is_right() -> None:
    # int8 kernels look for the dot product: Cortex-A72 has none, Cortex-A76 has it.
    assert "asimddp" not in load_device("rpi4").isa
    assert "asimddp" in load_device("rpi5").isa


def test_the_device_of_a_target() -> None:
    assert device_of(parse_target("RPI4")) == load_device("rpi4")
    assert device_of(parse_target("2GB")) is None
    assert device_of(None) is None
