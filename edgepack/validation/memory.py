"""The resident set of another process, split into what the system can drop and what it cannot."""

from __future__ import annotations

from pathlib import Path

from edgepack.spec import Frozen
from edgepack.validation.job import Phase

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
    fields = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        amount = value.split()
        if len(amount) == 2 and amount[1] == "kB":
            fields[name] = int(amount[0]) * PROC_KB_BYTES
    if "VmRSS" not in fields:
        return None
    return MemorySample(
        rss_bytes=fields["VmRSS"],
        anonymous_bytes=fields.get("RssAnon"),
        file_bytes=fields.get("RssFile"),
        shared_bytes=fields.get("RssShmem"),
        peak_rss_bytes=fields.get("VmHWM"),
    )


def sample_memory(pid: int) -> MemorySample | None:
    """The memory of process `pid` now; None when it has ended. Outside Linux without the split."""
    if HAS_PROC:
        try:
            return parse_status(Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
        except OSError:
            return None
    import psutil

    try:
        return MemorySample(rss_bytes=psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


class MemoryWatch:
    """The peaks of a process, phase by phase.

    Attributes:
        largest: the sample with the largest RSS of each phase, in the order of the phases.
        most_anonymous_bytes: the largest anonymous part of each phase, where the system tells it; it need not be in
            the same sample.
        peak_rss_bytes: peak of the whole run: the kernel's record where there is one.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.largest: dict[Phase, MemorySample] = {}
        self.most_anonymous_bytes: dict[Phase, int] = {}
        self.peak_rss_bytes: int | None = None

    def look(self, phase: Phase) -> None:
        """Take a sample and count it for `phase`."""
        sample = sample_memory(self.pid)
        if sample is None:
            return
        if phase not in self.largest or sample.rss_bytes > self.largest[phase].rss_bytes:
            self.largest[phase] = sample
        self.peak_rss_bytes = max(self.peak_rss_bytes or 0, sample.rss_bytes, sample.peak_rss_bytes or 0)
        if sample.anonymous_bytes is not None:
            self.most_anonymous_bytes[phase] = max(self.most_anonymous_bytes.get(phase, 0), sample.anonymous_bytes)
