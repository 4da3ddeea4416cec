"""How far a validation has come: stage k of n, the time that has gone, and what the stages that are left will take.

A stage is a process: its words begin with the name of the stage (``run 2: decode``, ``reference 3/21``). What a stage
takes is known once one of its kind is over, and of parts that are counted from the first one on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from time import monotonic

from edgepack.validation.figures.schedule import COLD_LOAD, FIRST_LOAD
from edgepack.validation.golden import conversation
from edgepack.validation.settings import ValidationSettings
from edgepack.values import Frozen

VERIFY = "verify"
_COUNTED = re.compile(r"(\d+)/(\d+)$")


class Progress(Frozen):
    """A moment of a validation.

    Attributes:
        phase: what has just begun, in a few words.
        stage, stages: number of the stage that it belongs to, from 1 on, and how many there are.
        elapsed_s: since the beginning.
        left_s: what is left as far as it is known; None where nothing is.
        whole: `left_s` is of all stages; else it is a lower bound.
    """

    phase: str
    stage: int
    stages: int
    elapsed_s: float
    left_s: float | None
    whole: bool


OnProgress = Callable[[Progress], None]


def stages_of(settings: ValidationSettings) -> tuple[str, ...]:
    """The stages of a validation, in order."""
    runs = [f"{kind} {number}" for number in range(1, settings.repeat + 1) for kind in (COLD_LOAD, "run")]
    compared = ["tokenize", "reference", "package"] if settings.reference is not None else []
    spoken = [conversation.PHASE] if settings.runtime == conversation.RUNTIME else []
    return (VERIFY, FIRST_LOAD, *runs, *spoken, *compared, *(["golden"] if settings.golden is not None else []))


class Tracker:
    """Takes the words of each phase as it begins, and tells how far that is.

    Args:
        time_budget_s: what all measured processes may take; beyond it the estimate is only a lower bound.
    """

    def __init__(
        self,
        stages: tuple[str, ...],
        tell: OnProgress,
        *,
        time_budget_s: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._stages, self._tell, self._clock = stages, tell, clock
        self._budget_s = time_budget_s
        self._index = 0
        self._seen: dict[str, float] = {}
        self._begin = self._stage_begin = self._parts_begin = clock()

    def __call__(self, phase: str) -> None:
        """`phase` begins. What names no stage belongs to the current one."""
        now = self._clock()
        index = next((i for i, name in enumerate(self._stages) if _is_of(phase, name)), self._index)
        if index != self._index:
            self._seen[_kind(self._stages[self._index])] = now - self._stage_begin
            self._index, self._stage_begin = index, now
        left_s, whole = self._left(phase, now)
        self._tell(
            Progress(
                phase=phase,
                stage=self._index + 1,
                stages=len(self._stages),
                elapsed_s=now - self._begin,
                left_s=left_s,
                whole=whole,
            )
        )

    def _left(self, phase: str, now: float) -> tuple[float | None, bool]:
        current, spent_s = self._stages[self._index], now - self._stage_begin
        expected = [self._rest_s(current, phase, spent_s)]
        expected += [self._expected_s(name) for name in self._stages[self._index + 1 :]]
        known = [value for value in expected if value is not None]
        whole = len(known) == len(expected)
        if not whole and not any(known):
            return None, False
        budget_left_s = self._budget_s - (now - self._begin)
        over = _kind(current) in (COLD_LOAD, "run") and sum(known) > budget_left_s > 0
        return (budget_left_s if over else sum(known)), whole and not over

    def _rest_s(self, stage: str, phase: str, spent_s: float) -> float | None:
        counted = _COUNTED.search(phase)
        if counted is not None:  # by the parts that are over
            done, total = int(counted[1]) - 1, int(counted[2])
            if not done:
                self._parts_begin = self._stage_begin + spent_s
            else:
                return (self._stage_begin + spent_s - self._parts_begin) / done * (total - done)
        expected_s = self._expected_s(stage)
        return None if expected_s is None else max(0.0, expected_s - spent_s)

    def _expected_s(self, stage: str) -> float | None:
        kind = _kind(stage)
        if kind == COLD_LOAD and kind not in self._seen:
            kind = FIRST_LOAD  # which does more: an upper bound
        return self._seen.get(kind)


def _is_of(phase: str, stage: str) -> bool:
    """Whether `phase` is of `stage`: its words begin with it, or ``judging`` stands before."""
    return re.match(rf"(?:judging )?{re.escape(stage)}(?![\w])", phase) is not None


def _kind(stage: str) -> str:
    return stage.rstrip("0123456789").rstrip()
