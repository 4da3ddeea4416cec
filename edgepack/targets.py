"""What a package must fit into: a size, or a device whose memory and bandwidth are known."""

from __future__ import annotations

import re
from importlib import resources

from pydantic import Field

from edgepack.errors import EdgepackError
from edgepack.planner import Target
from edgepack.spec import Frozen
from edgepack.units import parse_bytes


class DeviceProfile(Frozen):
    """A device as data: one file ``devices/<name>.json``.

    Attributes:
        name: what the command line calls it.
        title: what people call it.
        ram_bytes: memory of the device.
        limit_bytes: the part of it that one application can use: the target.
        read_bandwidth_bytes_per_s: sustained reading from memory, the bound of decode speed.
        cores: CPU cores.
        isa: instruction set features by their names in Linux's /proc/cpuinfo, those that matrix kernels look for.
        sources: for every number where it comes from; an estimate is called one.
    """

    name: str
    title: str
    ram_bytes: int = Field(gt=0)
    limit_bytes: int = Field(gt=0)
    read_bandwidth_bytes_per_s: float = Field(gt=0)
    cores: int = Field(gt=0)
    isa: tuple[str, ...]
    sources: dict[str, str]

    @property
    def target(self) -> Target:
        """The device as a limit."""
        return Target(name=self.name, limit_bytes=self.limit_bytes)


def device_names() -> tuple[str, ...]:
    """Names of the known devices, in alphabetical order."""
    folder = resources.files("edgepack") / "devices"
    return tuple(sorted(entry.name[: -len(".json")] for entry in folder.iterdir() if entry.name.endswith(".json")))


def load_device(name: str) -> DeviceProfile:
    """The profile of the device `name`, in upper or lower case.

    Raises:
        EdgepackError: there is no such device.
    """
    key = name.strip().lower()
    if key not in device_names():
        known = ", ".join(device_names())
        raise EdgepackError(f"device {name!r} is not known: expected one of {known}, or a size such as 2GB")
    source = resources.files("edgepack") / "devices" / f"{key}.json"
    return DeviceProfile.model_validate_json(source.read_text(encoding="utf-8"))


def device_of(target: Target | None) -> DeviceProfile | None:
    """The device that `target` is named after; None for a plain size or no target."""
    return load_device(target.name) if target is not None and target.name in device_names() else None


def parse_target(text: str) -> Target:
    """Return the target that `text` names: a size such as ``2GB`` or ``1900000000``, or a device such as ``rpi5``.

    Raises:
        EdgepackError: `text` is neither.
    """
    if text.strip().lower() in device_names():
        return load_device(text).target
    if not re.match(r"\s*[0-9]", text):
        known = ", ".join(device_names())
        raise EdgepackError(
            f"target {text!r} is not understood: expected a size such as 2GB, 1500MB, 2GiB or 2000000000, "
            f"or a device: {known}"
        )
    return Target(name=text.strip(), limit_bytes=parse_bytes(text))
