"""The machine that a figure was measured on: a number without it means little."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from edgepack.spec import Frozen
from edgepack.threads import available_cores


class Machine(Frozen):
    """Hardware and software of a measurement.

    Attributes:
        cpu: model name as the system gives it, the board's name on ARM boards that tell no CPU name.
        cores: logical cores that this process may use.
        ram_bytes: memory of the machine.
        versions: software by name.
    """

    cpu: str
    architecture: str
    system: str
    cores: int
    ram_bytes: int
    versions: dict[str, str]


CGROUP_ROOT = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Logical cores that this process may use: a container often has fewer than its machine."""
    cores = available_cores()
    quota = _cpu_quota()
    return cores if quota is None else max(1, min(cores, round(quota)))


def _cpu_quota() -> float | None:
    """CPUs' worth of time that the control group leaves us; None where it sets no limit.

    Inside a container the group's own folder is the root of what it sees (kernel documents cgroup-v2.rst, "CPU", and
    scheduler/sched-bwc.rst); outside, a quota on a group further down is not looked for.
    """
    try:
        if (CGROUP_ROOT / "cpu.max").is_file():
            quota, period = (CGROUP_ROOT / "cpu.max").read_text(encoding="ascii").split()
        else:
            folder = CGROUP_ROOT / "cpu"
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
        share = float(quota) / float(period)  # "max" or -1 where there is no limit
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return share if share > 0 else None


def describe_machine(versions: dict[str, str]) -> Machine:
    """This machine, with `versions` beside those of Python and edgepack."""
    try:
        own = {"edgepack": metadata.version("edgepack")}
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        own = {}
    return Machine(
        cpu=_cpu(),
        architecture=platform.machine(),
        system=platform.platform(),
        cores=usable_cores(),
        ram_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        versions={"python": platform.python_version(), **own, **versions},
    )


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                return value.strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
