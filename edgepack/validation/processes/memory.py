"""The memory of another process, phase by phase: what the system can drop, what it cannot, what it had to re-read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter

from edgepack.system.process_memory import MemorySample, major_faults, sample_pss, sample_tree
from edgepack.validation.records import Moment, PhaseMemory

MOST_MOMENTS = 400


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
