"""A device of 2 GB on a machine of 24: a hard memory limit around the worker, by whatever the system offers.

Linux has three ways, tried in this order: a memory cgroup of version 1, one of version 2, and a transient scope of the
user's own systemd (kernel documents cgroup-v1/memory.rst and cgroup-v2.rst; man page systemd.resource-control).
Mapped file pages are charged to the group and reclaimed within it; anonymous memory beyond the limit ends the process.
A page is charged to whoever brought it in, so that libraries which another process maps already cost nothing here. A
device has nobody else to pay for them, so the kernel's limit is lowered by them.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edgepack.atomic_write import process_is_alive
from edgepack.validation.records import LimitFacts

CGROUP_ROOT = Path("/sys/fs/cgroup")
MEMORY_FACTS = Path("/proc/meminfo")
# The kernel charges in portions: a group that is full may have been a few pages short of its limit.
NEARLY = 0.98
GROUP_NAME = re.compile(r"edgepack\.(?P<process>\d+)\.\d+")
REMOVE_TRIES, REMOVE_WAIT_S = 50, 0.1
PROBE_TIMEOUT_S = 20.0


class GroupFiles(NamedTuple):
    """What a version of control groups calls its files.

    Attributes:
        limit: the most bytes that may be charged.
        usage: the bytes charged now.
        kills: has a line ``oom_kill N``.
        mapped: the line of ``memory.stat`` with the bytes of mapped file pages that are charged.
    """

    limit: str
    usage: str
    kills: str
    mapped: str


V1 = GroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control", "mapped_file")
V2 = GroupFiles("memory.max", "memory.current", "memory.events", "file_mapped")


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A limit, kept by the kernel or only watched.

    Attributes:
        prefix: what a command is started through so that it begins its life inside.
        group: folder of the control group, where one is known before the start.
        files: the names of its files.
    """

    facts: LimitFacts
    prefix: tuple[str, ...] = ()
    group: Path | None = None
    files: GroupFiles = V2

    def command(self, command: Sequence[str]) -> list[str]:
        """`command` as it must be started."""
        return [*self.prefix, *command]

    def charged_bytes(self) -> int | None:
        """Bytes charged to the limit now: all processes in it, and the page cache that they brought in."""
        text = self._read(self.files.usage)
        return int(text) if text.strip().isdecimal() else None

    def kills(self) -> int:
        """Processes that the kernel has ended at the limit so far; 0 where it does not tell."""
        return self._count(self.files.kills, "oom_kill") or 0

    def reached(self) -> bool:
        """Whether the limit itself was in the way, as far as the kernel tells.

        Else what ended a process was a tighter limit around this one, or a machine without memory.
        """
        if self.group is None:
            return True
        if self.files is V2:
            return self._count(V2.kills, "oom") != 0
        peak, limit = self._read("memory.max_usage_in_bytes").strip(), self._read(V1.limit).strip()
        return not (peak.isdecimal() and limit.isdecimal()) or int(peak) >= NEARLY * int(limit)

    def kept(self) -> LimitFacts:
        """The facts, once a process has run: a limit that is gone then was none."""
        if self.group is None or not self.facts.enforced or self.facts.limit_bytes is None:
            return self.facts
        limit = self._read(self.files.limit).strip()
        if limit.isdecimal() and int(limit) <= self.facts.limit_bytes:
            return self.facts
        return _watched(self.facts.limit_bytes, f"the limit of {self.facts.method} was gone after a run").facts

    def count_uncharged(self, mapped_bytes: int) -> int | None:
        """Lower the kernel's limit by the pages that the process maps and that are charged to somebody else.

        Where the kernel cannot take the memory back any more, the limit stays as it was: then the process holds more
        than the limit, which its RSS shows.

        Args:
            mapped_bytes: resident file pages and shared memory of the only process inside.

        Returns:
            The bytes of those pages; None where the account cannot be read or the limit not be moved.
        """
        charged_bytes = self._count("memory.stat", self.files.mapped)
        if self.group is None or charged_bytes is None or self.facts.limit_bytes is None:
            return None
        uncharged_bytes = max(0, mapped_bytes - charged_bytes)
        try:
            (self.group / self.files.limit).write_text(str(max(0, self.facts.limit_bytes - uncharged_bytes)), "ascii")
        except OSError:
            return None
        return uncharged_bytes

    def _read(self, name: str) -> str:
        if self.group is None:
            return ""
        try:
            with open(f"{self.group}/{name}", "rb", buffering=0) as file:  # fifty times a second
                return file.read().decode("ascii", "replace")
        except OSError:
            return ""

    def _count(self, name: str, key: str) -> int | None:
        """The number behind `key` in a file of lines ``key number``."""
        lines = self._read(name).splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith(f"{key} ")), None)

    def followed(self, pid: int) -> MemoryLimit:
        """The same limit with its group, for a process that systemd has put into one."""
        if self.facts.method != "systemd-run":
            return self
        group = own_group_v2(pid)
        if group is None or group == own_group_v2(os.getpid()):  # not moved yet: that would be our own account
            return self
        return MemoryLimit(self.facts, self.prefix, group)


@contextmanager
def memory_limit(limit_bytes: int | None, *, enforce: bool = True) -> Iterator[MemoryLimit]:
    """A limit of `limit_bytes` for the processes that are started through it; none at all where that is None.

    It never fails: where no way works, the limit is only watched, and `facts.why` says what stood in the way.
    """
    if limit_bytes is None:
        yield MemoryLimit(LimitFacts(method="none", enforced=False, limit_bytes=None))
        return
    if not enforce:
        yield _watched(limit_bytes, "asked for, by --no-limit")
        return
    obstacles = []
    for make in (_cgroup_v1, _cgroup_v2):
        try:
            limit = make(limit_bytes)
            _try(limit)
        except OSError as error:
            obstacles.append(f"{make.__name__[1:].replace('_', ' ')}: {error.strerror or error}")
            continue
        try:
            yield limit
        finally:
            _remove(limit)
        return
    why = systemd_obstacle()
    if why is None:
        yield _scope(limit_bytes)
        return
    yield _watched(limit_bytes, "; ".join([*obstacles, f"systemd-run: {why}"]))


def _watched(limit_bytes: int, why: str) -> MemoryLimit:
    return MemoryLimit(LimitFacts(method="sampled", enforced=False, limit_bytes=limit_bytes, why=why))


def _cgroup_v1(limit_bytes: int) -> MemoryLimit:
    parent = CGROUP_ROOT / "memory"
    if not (parent / V1.limit).is_file():
        raise FileNotFoundError(0, "no memory controller")
    group = _make_group(parent)
    try:
        (group / V1.limit).write_text(str(limit_bytes), encoding="ascii")
        swappiness, together = group / "memory.swappiness", group / "memory.memsw.limit_in_bytes"
        _require_no_swap(_wrote(swappiness, "0") or _wrote(together, str(limit_bytes)))
    except OSError:
        with suppress(OSError):  # why it has no limit is what counts
            group.rmdir()
        raise
    return _in_group(group, "cgroup v1", limit_bytes, V1)


def _cgroup_v2(limit_bytes: int) -> MemoryLimit:
    group = _make_group(_parent_v2())
    try:
        (group / V2.limit).write_text(str(limit_bytes), encoding="ascii")
        _require_no_swap(_wrote(group / "memory.swap.max", "0"))
        _wrote(group / "memory.oom.group", "1")
    except OSError:
        with suppress(OSError):  # why it has no limit is what counts
            group.rmdir()
        raise
    return _in_group(group, "cgroup v2", limit_bytes, V2)


def _parent_v2() -> Path:
    """The nearest group above this process whose children have memory limits and where we may make one.

    A group with processes of its own gives its children no controllers, so it is seldom our own.
    """
    group = own_group_v2(os.getpid())
    if group is None:
        raise FileNotFoundError(0, "no unified hierarchy")
    while True:
        controls = group / "cgroup.subtree_control"
        # Moving a process needs the right to write in the nearest group above both places.
        if (
            controls.is_file()
            and "memory" in controls.read_text(encoding="ascii").split()
            and os.access(group, os.W_OK)
            and os.access(group / "cgroup.procs", os.W_OK)
        ):
            return group
        if group in (CGROUP_ROOT, group.parent):
            raise PermissionError(0, "no group above this process lets us limit memory")
        group = group.parent


def own_group_v2(pid: int) -> Path | None:
    """The folder of the version 2 control group of process `pid`."""
    if not (CGROUP_ROOT / "cgroup.controllers").is_file():
        return None
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    folder = CGROUP_ROOT / path.lstrip("/") if path is not None else None
    return folder if folder is not None and folder.is_dir() else None


def _in_group(group: Path, method: str, limit_bytes: int, files: GroupFiles) -> MemoryLimit:
    facts = LimitFacts.model_validate({"method": method, "enforced": True, "limit_bytes": limit_bytes})
    # The shell puts itself into the group and then becomes the command: not one page is charged elsewhere.
    prefix = ("/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"))
    return MemoryLimit(facts, prefix, group, files)


def _scope(limit_bytes: int) -> MemoryLimit:
    facts = LimitFacts(method="systemd-run", enforced=True, limit_bytes=limit_bytes)
    return MemoryLimit(facts, _scope_prefix(limit_bytes))


def _scope_prefix(limit_bytes: int) -> tuple[str, ...]:
    properties = ("-p", f"MemoryMax={limit_bytes}", "-p", "MemorySwapMax=0")
    return ("systemd-run", "--user", "--scope", "--quiet", "--collect", *properties, "--")


def systemd_obstacle() -> str | None:
    """Why systemd cannot limit a process of this user; None when a probe was really limited."""
    if shutil.which("systemd-run") is None:
        return "not installed"
    probe = ("/bin/sh", "-c", "cat /sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/memory.max")
    wanted = 1 << 30
    try:
        done = subprocess.run(
            [*_scope_prefix(wanted), *probe], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return None if done.stdout.strip() == str(wanted) else "the user's session may not limit memory"


def _make_group(parent: Path) -> Path:
    """A new group, and none left of processes that were killed before they could remove theirs."""
    for old in parent.glob("edgepack.*"):
        name = GROUP_NAME.fullmatch(old.name)
        if name and not process_is_alive(int(name["process"])):
            with suppress(OSError):  # somebody's worker still runs in it
                old.rmdir()
    group = parent / f"edgepack.{os.getpid()}.{time.monotonic_ns()}"
    group.mkdir()
    return group


def _try(limit: MemoryLimit) -> None:
    """Start something inside: a group may be made and limited, and refuse processes all the same."""
    done = subprocess.run(limit.command(["/bin/sh", "-c", ":"]), capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    _remove(limit)
    if done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL):
        raise OSError(0, "even a shell needs more than the limit")
    raise PermissionError(0, f"no process may enter: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")


def _require_no_swap(limited: bool) -> None:
    """A device has no swap that would help. Kernels without an account of swap have no file for it, or refuse."""
    if not limited and swap_bytes():
        raise PermissionError(0, "the machine has swap, which cannot be limited")


def swap_bytes() -> int:
    """The swap space of this machine."""
    found = re.search(r"^SwapTotal:\s*(\d+) kB", MEMORY_FACTS.read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _wrote(file: Path, text: str) -> bool:
    try:
        if file.exists():
            file.write_text(text, encoding="ascii")
            return True
    except OSError:
        pass
    return False


def _remove(limit: MemoryLimit) -> None:
    """Remove the group. What it still holds is page cache; its processes are gone, some only just."""
    if limit.group is None:
        return
    for _ in range(REMOVE_TRIES):
        try:
            _wrote(limit.group / "memory.force_empty", "0")
            limit.group.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(REMOVE_WAIT_S)
        else:
            return
