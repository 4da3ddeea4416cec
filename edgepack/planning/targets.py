"""What a package must fit into: a size, or a device whose memory and bandwidth are known."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from pydantic import Field

from edgepack.errors import EdgepackError
from edgepack.planning.plan import Target
from edgepack.reading import read_document, read_user_file
from edgepack.shown import shown
from edgepack.units import LEAST_BYTES, parse_bytes, require_unit
from edgepack.values import Frozen


class DeviceProfile(Frozen):
    """A device as data: one file ``devices/<name>.json``, or a file of the user's.

    Attributes:
        name: what the command line calls it.
        title: what people call it.
        ram_bytes: memory of the device.
        limit_bytes: the part of it that one application can use: the target.
        read_bandwidth_bytes_per_s: sustained reading from memory by all useful cores, the bound of decode speed; None
            where it is not known, and no speed is predicted.
        cores: CPU cores.
        isa: instruction set features by their names in Linux's /proc/cpuinfo, those that matrix kernels look for;
            empty where they are not known.
        sources: for every number where it comes from; an estimate is called one.
    """

    name: str = Field(min_length=1)
    title: str
    ram_bytes: int = Field(ge=LEAST_BYTES)
    limit_bytes: int = Field(ge=LEAST_BYTES)
    read_bandwidth_bytes_per_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    cores: int | None = Field(default=None, gt=0)
    isa: tuple[str, ...] = ()
    sources: dict[str, str] = Field(default_factory=dict)

    @property
    def target(self) -> Target:
        """The device as a limit."""
        return Target(name=self.name, limit_bytes=self.limit_bytes)


def device_names() -> tuple[str, ...]:
    """Names of the known devices, in alphabetical order."""
    folder = resources.files("edgepack.planning") / "devices"
    return tuple(sorted(entry.name[: -len(".json")] for entry in folder.iterdir() if entry.name.endswith(".json")))


def load_device(name: str) -> DeviceProfile:
    """The profile of the device `name`, in upper or lower case.

    Raises:
        EdgepackError: there is no such device.
    """
    known = _known_name(name)
    if known is None:
        raise EdgepackError(
            f"device {shown(name)} is not known: expected one of {', '.join(device_names())}, a size such as 2GB, "
            "or the path of a profile such as ./my-device.json"
        )
    source = resources.files("edgepack.planning") / "devices" / f"{known}.json"
    return DeviceProfile.model_validate_json(source.read_text(encoding="utf-8"))


def read_profile(path: Path) -> DeviceProfile:
    """The profile in a file of the user's.

    Raises:
        EdgepackError: the file cannot be read, is no profile, or takes the name of a known device; names the field.
    """
    content = read_user_file(path, "device profile")
    profile = read_document(DeviceProfile, content, f"device profile {path}", "see docs/devices.md")
    if _known_name(profile.name) or profile.limit_bytes > profile.ram_bytes:
        what = "name" if _known_name(profile.name) else "limit_bytes"
        why = f"{shown(profile.name)} is the name of a known device" if what == "name" else "it is more than ram_bytes"
        raise EdgepackError(f"device profile {path}: {what}: {why}; see docs/devices.md")
    return profile


def find_device(text: str) -> DeviceProfile | None:
    """The device that `text` names, by its name or by the path of a profile; None for anything else, a size too.

    Raises:
        EdgepackError: it is the path of a file that is no profile.
    """
    if _known_name(text):
        return load_device(text)
    return read_profile(Path(text.strip())) if _is_path(text) else None


def device_of(target: Target | None) -> DeviceProfile | None:
    """The known device that `target` is named after; None for another size, for no target and for a user's own file."""
    return load_device(target.name) if target is not None and target.name in device_names() else None


def as_target(target: str | int | Target | None) -> Target | None:
    """`target` read: a size in bytes or with its unit, a device, a target, or none.

    Raises:
        EdgepackError: as `parse_target`.
    """
    return parse_target(str(target)) if isinstance(target, str | int) else target


def parse_target(text: str) -> Target:
    """Return the target that `text` names.

    Args:
        text: a size such as ``2GB`` or ``1900000000``, a device such as ``rpi5``, or the path of a device profile,
            which ends in ``.json``.

    Raises:
        EdgepackError: `text` is none of these.
    """
    device = find_device(text)
    if device is not None:
        return device.target
    if not re.match(r"\s*[0-9]", text):
        raise EdgepackError(
            f"target {shown(text)} is not understood: expected a size such as 2GB, 1500MB, 2GiB or 2000000000, "
            f"a device: {', '.join(device_names())}, or the path of a profile such as ./my-device.json"
        )
    limit_bytes = parse_bytes(text)
    require_unit(text, limit_bytes)
    return Target(name=text.strip(), limit_bytes=limit_bytes)


def _known_name(text: str) -> str | None:
    """The name of a known device as it is spelled there."""
    return {name.lower(): name for name in device_names()}.get(text.strip().lower())


def _is_path(text: str) -> bool:
    return text.strip().lower().endswith(".json")
