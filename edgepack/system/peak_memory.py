"""The largest memory of this process and the processes that it starts, together, at any one time."""

from __future__ import annotations

import os
import resource
import sys
from threading import Event, Thread
from types import TracebackType
from typing import Self

from edgepack.system.process_memory import HAS_PROC, sample_memory, tree_samples

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
            samples = tree_samples(os.getpid())
            if samples:
                sizes = [max(child.rss_bytes, child.peak_rss_bytes or 0) for child in samples[1:]]
                self.peak_bytes = max(self.peak_bytes, samples[0].rss_bytes + sum(sizes))
