"""The quality of a package's answers, as far as it was asked for; a package that dies over it has failed a check."""

from __future__ import annotations

from dataclasses import dataclass

from edgepack.package.folder import Package
from edgepack.validation.golden import conversation
from edgepack.validation.golden.run import run_golden
from edgepack.validation.processes.protocol import FailedRunError, OnPhase
from edgepack.validation.quality.compare import compare_quality
from edgepack.validation.result import Check, GoldenReport, QualityReport
from edgepack.validation.settings import QualityRequest

# Names of checks, and what is said of them.
COMPARISON, GOLDEN_ANSWERS = "comparison with the reference", "golden answers"


@dataclass(frozen=True, slots=True)
class QualityResult:
    """What came of it.

    Attributes:
        broken: a failed check for each part in which the package did not come to its end.
        conversation: whether the engine's own conversation reads what the chat template gives.
    """

    quality: QualityReport | None = None
    golden: GoldenReport | None = None
    broken: tuple[Check, ...] = ()
    conversation: Check | None = None


def run_quality(package: Package, asked: QualityRequest, *, on_phase: OnPhase) -> QualityResult:
    """Compare and ask.

    Raises:
        EdgepackError: an input or the reference is not usable, so that there is nothing to judge the package by.
    """
    quality = answers = spoken = None
    broken = []
    if asked.runtime == conversation.RUNTIME:
        spoken = conversation.check_conversation(package, asked, on_phase=on_phase)
    if asked.reference is not None:
        try:
            quality = compare_quality(package, asked, on_phase=on_phase)
        except FailedRunError as error:
            broken.append(_broken(COMPARISON, error))
    if asked.golden is not None:
        try:
            answers = run_golden(package, asked, on_phase=on_phase)
        except FailedRunError as error:
            broken.append(_broken(GOLDEN_ANSWERS, error))
    return QualityResult(quality, answers, tuple(broken), spoken)


def _broken(name: str, error: FailedRunError) -> Check:
    return Check(kind="quality", name=name, passed=False, text=str(error))
