"""What was asked and could not be measured, because something broke off before: each of it is a failed check."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgepack.validation.answers import COMPARISON, GOLDEN_ANSWERS, QualityResult
from edgepack.validation.figures.schedule import FIRST_LOAD, Measurement
from edgepack.validation.metrics import GOLDEN_RATE, kind_of
from edgepack.validation.result import Check
from edgepack.validation.settings import QualityRequest


@dataclass(frozen=True, slots=True)
class Missing:
    """What broke off.

    Attributes:
        run: the measured process that did not come to its end, in words; None where all did.
        parts: parts of the quality that broke off.
    """

    run: str | None
    parts: frozenset[str]

    def why(self, metric: str) -> str | None:
        """Why `metric` is not known; None where nothing that it needs broke off."""
        if self.run is not None:
            return self.run
        if kind_of(metric).category != "quality":
            return None
        part = GOLDEN_ANSWERS if metric == GOLDEN_RATE else COMPARISON
        return f"the {part} broke off" if part in self.parts else None

    def checks(self, asked: QualityRequest) -> Iterator[Check]:
        """A failed check for each part of the quality that was not even begun; nothing where the runs ended well."""
        if self.run is None:
            return
        if asked.reference is not None:
            text = f"not compared with {asked.reference}: {self.run}"
            yield Check(kind="quality", name=COMPARISON, passed=False, text=text)
        if asked.golden is not None:
            text = f"the prompts of {asked.golden} were not asked: {self.run}"
            yield Check(kind="quality", name=GOLDEN_ANSWERS, passed=False, text=text)


def unended(purpose: str) -> str:
    """What is said of a process that was killed, hung or failed."""
    return f"{'the ' if purpose == FIRST_LOAD else ''}{purpose} did not come to its end"


def missing_of(measurement: Measurement, result: QualityResult) -> Missing:
    """What broke off in a validation."""
    failure = measurement.failure
    run = None if failure is None else unended(failure[0])
    return Missing(run, frozenset(check.name for check in result.broken))
