"""The largest memory of this process and the processes that it starts, together, at any one time."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Self

from edgepack.validation.memory import HAS_PROC, sample_memory

INTERVAL_S = 0.03


def peak_rss_bytes() -> int:
    """Peak resident set of this process alone so far, mapped pages included."""
    sample = sample_memory(os.getpid()) if HAS_PROC else None
    if sample is not None and sample.peak_rss_bytes is not None:
        # Not the figure of getrusage, in which a process begins with the memory of the one that started it.
        return sample.peak_rss_bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class PeakWatch:
    """Watches this process and its children from a thread while the body runs.

    Of a child the kernel's record counts, so that nothing between two looks is missed; pages that processes share count
    for each of them. So the peak is never told too low by more than what this process itself gains between two looks.

    Attributes:
        peak_bytes: the largest sum seen, and not less than the peak of this process alone.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = Event()
        self._thread = Thread(target=self._watch, name="peak memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.peak_bytes = max(self.peak_bytes, peak_rss_bytes())

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            own = sample_memory(os.getpid())
            others = [sample_memory(pid) for pid in _descendants(os.getpid())]
            sizes = [max(other.rss_bytes, other.peak_rss_bytes or 0) for other in others if other is not None]
            if own is not None:
                self.peak_bytes = max(self.peak_bytes, own.rss_bytes + sum(sizes))


def _descendants(pid: int) -> list[int]:
    """Children of all threads of `pid`, and theirs."""
    if not HAS_PROC:
        import psutil

        try:
            return [child.pid for child in psutil.Process(pid).children(recursive=True)]
        except psutil.Error:
            return []
    found = []
    try:
        own = Path(f"/proc/{pid}/cmdline").read_bytes()
        started = " ".join((task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir())
        for child in map(int, started.split()):
            # Until it becomes another program, a child that was just started is its parent once more, page for page.
            if Path(f"/proc/{child}/cmdline").read_bytes() != own:
                found += [child, *_descendants(child)]
    except OSError:  # a thread or process has ended
        pass
    return found
