"""The machine that a figure was measured on: a number without it means little."""

from __future__ import annotations

import os
import platform
import resource
from importlib import metadata
from pathlib import Path

from edgepack.system.threads import available_cores
from edgepack.validation.records import Load, Machine
from edgepack.values import Frozen


class CpuTimes(Frozen):
    """CPU seconds up to a moment: of the whole machine, and of this process with the children that have ended."""

    total_s: float
    busy_s: float
    steal_s: float
    own_s: float


CGROUP_ROOT = Path("/sys/fs/cgroup")
STAT = Path("/proc/stat")


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


def cpu_times() -> CpuTimes | None:
    """The CPU times now; None where the system does not tell."""
    try:
        line = STAT.read_text(encoding="ascii").splitlines()[0]
        # user, nice, system, idle, iowait, irq, softirq, steal; what is behind them is counted in user and nice.
        fields = [int(field) / os.sysconf("SC_CLK_TCK") for field in line.split()[1:9]]
        user, nice, system, idle, iowait, irq, softirq, steal = fields
    except (OSError, ValueError, IndexError):
        return None
    busy = user + nice + system + irq + softirq
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own = sum(usage.ru_utime + usage.ru_stime for usage in used)
    return CpuTimes(total_s=busy + idle + iowait + steal, busy_s=busy, steal_s=steal, own_s=own)


def load_between(before: CpuTimes | None, after: CpuTimes | None) -> Load | None:
    """What the machine did beside our own work between two moments; None where that is not known."""
    if before is None or after is None or after.total_s <= before.total_s:
        return None
    total = after.total_s - before.total_s
    others = after.busy_s - before.busy_s - (after.own_s - before.own_s)
    return Load(
        others_share=min(1.0, max(0.0, others / total)),
        steal_share=min(1.0, max(0.0, after.steal_s - before.steal_s) / total),
    )


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
