"""The checks of what a package answers: against a reference, and against golden prompts."""

from __future__ import annotations

from collections.abc import Sequence

from edgepack.validation.answers import COMPARISON, GOLDEN_ANSWERS, QualityResult
from edgepack.validation.metrics import GOLDEN_RATE, format_figure, kind_of
from edgepack.validation.result import Check, GoldenReport, QualityReport
from edgepack.validation.thresholds import Threshold

NAMED_FAILURES = 3
FEWEST_POSITIONS = 100


def quality_checks(result: QualityResult, thresholds: Sequence[Threshold]) -> list[Check]:
    """Everything that is judged of it but its figures, which are left to `thresholds`."""
    found = (result.conversation, check_golden(result.golden, thresholds), check_quality(result.quality, thresholds))
    return [*result.broken, *(check for check in found if check is not None)]


def check_golden(golden: GoldenReport | None, thresholds: Sequence[Threshold] = ()) -> Check | None:
    """Whether every golden answer passed; left to a threshold on their share where there is one in `thresholds`."""
    if golden is None:
        return None
    bad = [answer for answer in golden.answers if not answer.passed]
    if not bad:
        text = f"all {len(golden.answers)} golden answers of {golden.file} passed"
        return Check(kind="quality", name=GOLDEN_ANSWERS, passed=True, text=text)
    first = "; ".join(f"{answer.name}: {answer.failures[0]}" for answer in bad[:NAMED_FAILURES])
    more = f" and {len(bad) - NAMED_FAILURES} more" if len(bad) > NAMED_FAILURES else ""
    text = f"{len(bad)} of {len(golden.answers)} golden answers of {golden.file} failed: {first}{more}"
    limit = next((limit for limit in thresholds if limit.metric == GOLDEN_RATE), None)
    if limit is not None:
        return Check(kind="quality", name=GOLDEN_ANSWERS, passed=None, text=f"{text}; {limit} decides")
    return Check(kind="quality", name=GOLDEN_ANSWERS, passed=False, text=text)


def check_quality(quality: QualityReport | None, thresholds: Sequence[Threshold]) -> Check | None:
    """Why a comparison with a reference decides nothing, or little; None where thresholds judge it."""
    if quality is None:
        return None
    doubts = []
    names = {limit.metric for limit in thresholds} - {GOLDEN_RATE}
    if not any(kind_of(name).category == "quality" for name in names):
        doubts.append("no threshold was set on its figures")
    if quality.tokens < FEWEST_POSITIONS:
        doubts.append(f"with fewer than {FEWEST_POSITIONS} positions its figures say little")
    if not doubts:
        return None
    worst = max(quality.texts, key=lambda text: text.kl_mean)
    kl, agreement = format_figure(quality.kl_mean, "nats"), format_figure(quality.top1_agreement, "share")
    text = (
        f"mean KL divergence {kl} (worst text: {worst.name}, {format_figure(worst.kl_mean, 'nats')}), same most likely "
        f"token {agreement}, over {quality.tokens:,} positions: {'; '.join(doubts)}"
    )
    return Check(kind="quality", name=COMPARISON, passed=None, text=text)
