"""The memory of another process, phase by phase: what the system can drop, what it cannot, what it had to re-read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from time import perf_counter

from edgepack.spec import Frozen
from edgepack.validation.result import Moment, PhaseMemory

# "kB" in /proc/<pid>/status counts 1024 bytes.
PROC_KB_BYTES = 1024
HAS_PROC = Path("/proc/self/status").is_file()
MOST_MOMENTS = 400


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
    found = sample_memory(pid)
    for child in _children(pid) if found is not None else ():
        other = sample_tree(child)
        found = _added(found, other) if found is not None and other is not None else found
    return found


def _children(pid: int) -> list[int]:
    text = _proc_text(pid, f"task/{pid}/children")  # of its main thread, which starts the processes that pack
    if not text:
        return []
    # Until it becomes another program, a child that was just started is its parent once more, page for page.
    own = _proc_text(pid, "cmdline")
    return [child for child in map(int, text.split()) if _proc_text(child, "cmdline") != own]


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


@dataclass(slots=True)
class _Phase:
    name: str
    start_ms: float
    faults: int | None
    end_ms: float = 0.0
    largest: MemorySample | None = None
    peak_rss_bytes: int = 0
    most_anonymous_bytes: int | None = None
    charged_bytes: int | None = None
    pss_bytes: int | None = None
    major_faults: int | None = None


@dataclass(slots=True)
class MemoryWatch:
    """Follows the memory of a process and its children from its start.

    Attributes:
        charged: reads the account of the memory limit, where there is one.
        peak_rss_bytes: of the whole run, which is that of one of its phases: the kernel's record where there is one.
    """

    pid: int
    charged: Callable[[], int | None] = lambda: None
    peak_rss_bytes: int | None = None
    _record_bytes: int = 0
    _start: float = field(default_factory=perf_counter)
    _phases: list[_Phase] = field(default_factory=list)
    _moments: list[Moment] = field(default_factory=list)

    def enter(self, phase: str) -> None:
        """A phase begins, and the one before it is over, if nobody has waited for that."""
        if self._phases and self._phases[-1].major_faults is None:
            self._count_faults()
        self._phases.append(_Phase(phase, self._now_ms(), major_faults(self.pid)))
        self.look()

    def look(self) -> None:
        """Take a sample and count it for the phase that was entered last."""
        sample = sample_tree(self.pid)
        if sample is None:
            return
        phase, now, charged = self._phases[-1], self._now_ms(), self.charged()
        phase.end_ms = now
        if phase.largest is None or sample.rss_bytes > phase.largest.rss_bytes:
            phase.largest = sample
        phase.peak_rss_bytes = max(phase.peak_rss_bytes, sample.rss_bytes)
        if (sample.peak_rss_bytes or 0) > self._record_bytes:  # set since the last look, so between two of this phase
            self._record_bytes = sample.peak_rss_bytes or 0
            phase.peak_rss_bytes = max(phase.peak_rss_bytes, self._record_bytes)
        phase.most_anonymous_bytes = _larger(phase.most_anonymous_bytes, sample.anonymous_bytes)
        phase.charged_bytes = _larger(phase.charged_bytes, charged)
        self.peak_rss_bytes = max(self.peak_rss_bytes or 0, phase.peak_rss_bytes)
        self._moments.append(
            Moment(
                time_ms=round(now, 1),
                rss_bytes=sample.rss_bytes,
                anonymous_bytes=sample.anonymous_bytes,
                file_bytes=sample.file_bytes,
                charged_bytes=charged,
            )
        )
        if len(self._moments) >= 8 * MOST_MOMENTS:
            self._moments = thin(self._moments, 4 * MOST_MOMENTS)

    def leave(self) -> None:
        """The phase has ended and the process waits: look closely."""
        self.look()
        self._phases[-1].pss_bytes = sample_pss(self.pid)
        self._count_faults()

    def _count_faults(self) -> None:
        phase, faults = self._phases[-1], major_faults(self.pid)
        if faults is not None and phase.faults is not None:
            phase.major_faults = faults - phase.faults

    def phases(self) -> tuple[PhaseMemory, ...]:
        """The phases that were sampled at least once, in order."""
        return tuple(
            PhaseMemory(
                phase=phase.name,
                start_ms=round(phase.start_ms, 1),
                end_ms=round(phase.end_ms, 1),
                peak_rss_bytes=phase.peak_rss_bytes,
                **phase.largest.model_dump(exclude={"peak_rss_bytes"}),
                most_anonymous_bytes=phase.most_anonymous_bytes,
                pss_bytes=phase.pss_bytes,
                charged_bytes=phase.charged_bytes,
                major_faults=phase.major_faults,
            )
            for phase in self._phases
            if phase.largest is not None
        )

    def timeline(self) -> tuple[Moment, ...]:
        """Every moment, thinned out."""
        return tuple(thin(self._moments, MOST_MOMENTS))

    def _now_ms(self) -> float:
        return 1e3 * (perf_counter() - self._start)


def thin(moments: list[Moment], most: int) -> list[Moment]:
    """At most `most` of `moments`, in order: of each stretch the one with the largest RSS, so that no peak is lost."""
    if len(moments) <= most:
        return moments
    edges = [index * len(moments) // most for index in range(most + 1)]
    return [max(moments[first:last], key=lambda moment: moment.rss_bytes) for first, last in pairwise(edges)]


def _larger(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)
