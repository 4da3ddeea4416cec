"""A device of 2 GB on a machine of 24: a hard memory limit around the worker, by whatever the system offers.

Linux has three ways, tried in this order: a memory cgroup of version 1, one of version 2, and a transient scope of the
user's own systemd (kernel documents cgroup-v1/memory.rst and cgroup-v2.rst; man page systemd.resource-control).
Mapped file pages are charged to the group and reclaimed within it; anonymous memory beyond the limit ends the process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edgepack.validation.result import LimitFacts

CGROUP_ROOT = Path("/sys/fs/cgroup")
REMOVE_TRIES, REMOVE_WAIT_S = 50, 0.1
PROBE_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A limit, kept by the kernel or only watched.

    Attributes:
        prefix: what a command is started through so that it begins its life inside.
        group: folder of the control group, where one is known before the start.
        usage_file: the file of `group` with the bytes charged now.
        kills_file: the file of `group` with a line ``oom_kill N``.
    """

    facts: LimitFacts
    prefix: tuple[str, ...] = ()
    group: Path | None = None
    usage_file: str = ""
    kills_file: str = ""

    def command(self, command: Sequence[str]) -> list[str]:
        """`command` as it must be started."""
        return [*self.prefix, *command]

    def charged_bytes(self) -> int | None:
        """Bytes charged to the limit now: all processes in it, and the page cache that they brought in."""
        if self.group is None:
            return None
        try:
            return int((self.group / self.usage_file).read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def kills(self) -> int:
        """Processes that the kernel has ended at the limit so far; 0 where it does not tell."""
        if self.group is None:
            return 0
        try:
            lines = (self.group / self.kills_file).read_text(encoding="ascii").splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)

    def followed(self, pid: int) -> MemoryLimit:
        """The same limit with its group, for a process that systemd has put into one."""
        if self.facts.method != "systemd-run":
            return self
        group = own_group_v2(pid)
        if group is None or group == own_group_v2(os.getpid()):  # not moved yet: that would be our own account
            return self
        return MemoryLimit(self.facts, self.prefix, group, "memory.current", "memory.events")


@contextmanager
def memory_limit(limit_bytes: int | None, *, enforce: bool = True) -> Iterator[MemoryLimit]:
    """A limit of `limit_bytes` for the processes that are started through it; none at all where that is None.

    It never fails: where no way works, the limit is only watched, and `facts.why` says what stood in the way.
    """
    if limit_bytes is None:
        yield MemoryLimit(LimitFacts(method="none", enforced=False, limit_bytes=None))
        return
    if not enforce:
        yield _watched(limit_bytes, "not asked for")
        return
    obstacles = []
    for make in (_cgroup_v1, _cgroup_v2):
        try:
            limit = make(limit_bytes)
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
    if not (parent / "memory.limit_in_bytes").is_file():
        raise FileNotFoundError(0, "no memory controller")
    group = parent / _group_name()
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes), encoding="ascii")
        # A device has no swap that would help. Kernels without swap accounting have no such file, or refuse.
        _write_if_there(group / "memory.swappiness", "0")
        _write_if_there(group / "memory.memsw.limit_in_bytes", str(limit_bytes))
    except OSError:
        group.rmdir()
        raise
    return _in_group(group, "cgroup v1", limit_bytes, "memory.usage_in_bytes", "memory.oom_control")


def _cgroup_v2(limit_bytes: int) -> MemoryLimit:
    parent = _parent_v2()
    group = parent / _group_name()
    group.mkdir()
    try:
        (group / "memory.max").write_text(str(limit_bytes), encoding="ascii")
        _write_if_there(group / "memory.swap.max", "0")
        _write_if_there(group / "memory.oom.group", "1")
    except OSError:
        group.rmdir()
        raise
    return _in_group(group, "cgroup v2", limit_bytes, "memory.current", "memory.events")


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


def _in_group(group: Path, method: str, limit_bytes: int, usage_file: str, kills_file: str) -> MemoryLimit:
    facts = LimitFacts.model_validate({"method": method, "enforced": True, "limit_bytes": limit_bytes})
    # The shell puts itself into the group and then becomes the command: not one page is charged elsewhere.
    prefix = ("/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"))
    return MemoryLimit(facts, prefix, group, usage_file, kills_file)


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


def _group_name() -> str:
    return f"edgepack.{os.getpid()}.{time.monotonic_ns()}"


def _write_if_there(file: Path, text: str) -> None:
    if file.exists():
        with suppress(OSError):
            file.write_text(text, encoding="ascii")


def _remove(limit: MemoryLimit) -> None:
    """Remove the group. What it still holds is page cache; its processes are gone, some only just."""
    if limit.group is None:
        return
    for _ in range(REMOVE_TRIES):
        try:
            _write_if_there(limit.group / "memory.force_empty", "0")
            limit.group.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(REMOVE_WAIT_S)
        else:
            return
