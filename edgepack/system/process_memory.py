"""The memory of a process and of those that it starts, as the system tells it at one moment."""

from __future__ import annotations

import os
from functools import reduce
from pathlib import Path

from edgepack.values import Frozen

# "kB" in /proc/<pid>/status counts 1024 bytes.
PROC_KB_BYTES = 1024
HAS_PROC = Path("/proc/self/status").is_file()


class MemorySample(Frozen):
    """Resident bytes of a process at one moment.

    Attributes:
        rss_bytes: all of them.
        anonymous_bytes: heap and stacks, which nothing but swap can take out of RAM; None where the system does not
            tell.
        file_bytes: pages of mapped files.
        shared_bytes: shared memory.
        peak_rss_bytes: the kernel's own record of the largest `rss_bytes` so far, between samples too.
    """

    rss_bytes: int
    anonymous_bytes: int | None = None
    file_bytes: int | None = None
    shared_bytes: int | None = None
    peak_rss_bytes: int | None = None


def parse_status(text: str) -> MemorySample | None:
    """Read the text of ``/proc/<pid>/status`` (man page proc_pid_status); None for a process that has ended."""
    fields = _kilobyte_fields(text)
    if "VmRSS" not in fields:
        return None
    return MemorySample(
        rss_bytes=fields["VmRSS"],
        anonymous_bytes=fields.get("RssAnon"),
        file_bytes=fields.get("RssFile"),
        shared_bytes=fields.get("RssShmem"),
        peak_rss_bytes=fields.get("VmHWM"),
    )


def _kilobyte_fields(text: str) -> dict[str, int]:
    fields = {}
    for line in text.splitlines():
        if line.endswith(" kB"):
            name, _, amount = line[:-3].partition(":")
            fields[name] = int(amount) * PROC_KB_BYTES
    return fields


def sample_tree(pid: int) -> MemorySample | None:
    """The memory of process `pid` and of its children together; what they share is counted for each of them."""
    samples = tree_samples(pid)
    return reduce(_added, samples) if samples else None


def tree_samples(pid: int) -> list[MemorySample]:
    """The memory of process `pid` and of each of its descendants, itself first; nothing when it has ended."""
    own = sample_memory(pid)
    if own is None:
        return []
    others = (sample_memory(child) for child in _descendants(pid))
    return [own, *(other for other in others if other is not None)]


def _descendants(pid: int) -> list[int]:
    """Children of all threads of `pid`, and theirs."""
    if not HAS_PROC:
        import psutil

        try:
            return [child.pid for child in psutil.Process(pid).children(recursive=True)]
        except psutil.Error:
            return []
    # Until it becomes another program, a child that was just started is its parent once more, page for page.
    own = _proc_text(pid, "cmdline")
    found = []
    for child in _children(pid):
        if _proc_text(child, "cmdline") != own:
            found += [child, *_descendants(child)]
    return found


def _children(pid: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    return [int(child) for thread in threads for child in (_proc_text(pid, f"task/{thread}/children") or "").split()]


def _added(one: MemorySample, other: MemorySample) -> MemorySample:
    """Their sum; the record of the first is no record of both."""

    def both(name: str) -> int | None:
        first, second = getattr(one, name), getattr(other, name)
        return None if first is None or second is None else first + second

    return MemorySample(
        rss_bytes=one.rss_bytes + other.rss_bytes,
        anonymous_bytes=both("anonymous_bytes"),
        file_bytes=both("file_bytes"),
        shared_bytes=both("shared_bytes"),
        peak_rss_bytes=one.peak_rss_bytes,
    )


def sample_memory(pid: int) -> MemorySample | None:
    """The memory of process `pid` now; None when it has ended. Outside Linux without the split."""
    if HAS_PROC:
        text = _proc_text(pid, "status")
        return parse_status(text) if text is not None else None
    import psutil

    try:
        return MemorySample(rss_bytes=psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def sample_pss(pid: int) -> int | None:
    """Proportional set size in bytes; the kernel walks all pages for it, so only ask a process that waits."""
    text = _proc_text(pid, "smaps_rollup")
    return _kilobyte_fields(text).get("Pss") if text is not None else None


def major_faults(pid: int) -> int | None:
    """Page faults of process `pid` so far that had to read the disk (field 12 of ``/proc/<pid>/stat``)."""
    text = _proc_text(pid, "stat")
    # The second field is the program's name in parentheses, and may hold spaces and parentheses itself.
    return int(text.rpartition(")")[2].split()[9]) if text else None


def _proc_text(pid: int, name: str) -> str | None:
    # Fifty times a second, on a core that the worker wants: a plain read takes half the time of Path.read_text.
    try:
        with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
            return file.read().decode("utf-8", "replace")
    except OSError:
        return None
