"""From figures to a verdict: the checks of a report, and the reason on its first line."""

from __future__ import annotations

from collections.abc import Sequence

from edgepack.planning.plan import Target
from edgepack.units import format_bytes
from edgepack.validation.figures.collect import peak_phase, peak_rss_bytes, records_of
from edgepack.validation.figures.schedule import FIRST_LOAD, Measurement
from edgepack.validation.metrics import METRICS, base_name, format_figure
from edgepack.validation.result import Check, GoldenReport, PhaseMemory, ProcessRecord, QualityReport
from edgepack.validation.verdict.thresholds import Threshold

# Order of importance: what a reader must know first.
_ORDER = ("run", "ram", "latency", "quality", "regression")
GOLDEN = "golden_pass_rate"
NAMED_FAILURES = 3
FEWEST_POSITIONS = 100


def check_run(measurement: Measurement) -> Check:
    """Whether every process came to its end; one that was ended at the limit is a question of RAM."""
    name = "every process comes to its end"
    if measurement.failure is None:
        text = f"{len(measurement.processes)} processes came to their end"
        return Check(kind="run", name=name, passed=True, text=text)
    purpose, run = measurement.failure
    where = "the first load, which prepares the runtime's cache, did not work" if purpose == FIRST_LOAD else purpose
    return Check(kind="ram" if run.at_limit else "run", name=name, passed=False, text=f"{run.failure} ({where})")


def check_target(measurement: Measurement, target: Target | None) -> Check | None:
    """Whether the package stays within `target`; None without a target, or where the system tells no peak."""
    peak_bytes, failure = peak_rss_bytes(measurement) or 0, measurement.failure
    if target is None or not (peak_bytes or failure):
        return None
    records = records_of(measurement)
    judged = tuple(record for record in records if record.purpose != FIRST_LOAD)
    size = f"{target.name} ({target.limit_bytes:,} bytes)"
    name = f"memory within {target.name}"
    spare, peak = target.limit_bytes - peak_bytes, format_bytes(peak_bytes)
    packing_bytes = 0 if measurement.limit.enforced else _packing_bytes(records)
    passed = max(peak_bytes, packing_bytes) <= target.limit_bytes and failure is None
    if failure is not None and failure[1].at_limit:
        text = f"does not run within a hard limit of {size}"
    elif spare < 0:
        text = f"peak RSS {peak} is over the target {size} by {format_bytes(-spare)}{_parts(peak_phase(judged))}"
    elif packing_bytes > target.limit_bytes:
        over = format_bytes(packing_bytes - target.limit_bytes)
        text = f"the first load, which packs the weights, needs {format_bytes(packing_bytes)}: {over} over {size}"
    elif failure is not None:
        text = f"whether it stays within {size} was not measured: {failure[0]} did not come to its end"
    elif measurement.limit.enforced:
        text = f"ran within a hard limit of {size}, peak RSS {peak}, {format_bytes(spare)} to spare"
    else:
        text = f"peak RSS {peak} is within the target {size}, {format_bytes(spare)} to spare"
    return Check(kind="ram", name=name, passed=passed, text=text)


def _packing_bytes(records: Sequence[ProcessRecord]) -> int:
    """What the first load cannot do without, where no limit has tried it.

    That is its anonymous memory, and the files that a Python has mapped before it loads anything. The weights that are
    packed are mapped too, but read once: they can be dropped.
    """
    phases = [phase for record in records if record.purpose == FIRST_LOAD for phase in record.phases]
    anonymous = max((phase.most_anonymous_bytes or 0 for phase in phases), default=0)
    return anonymous + (phases[0].file_bytes or 0 if phases else 0)


def _parts(found: tuple[str, PhaseMemory] | None) -> str:
    if found is None:
        return ""
    purpose, phase = found
    if phase.anonymous_bytes is None or phase.file_bytes is None:
        return ""
    anonymous, file = format_bytes(phase.anonymous_bytes), format_bytes(phase.file_bytes)
    return f"; {anonymous} of it anonymous and {file} file-backed, in phase {phase.phase} ({purpose})"


def check_golden(golden: GoldenReport | None, thresholds: Sequence[Threshold] = ()) -> Check | None:
    """Whether every golden answer passed; left to a threshold on their share where there is one in `thresholds`."""
    if golden is None:
        return None
    bad = [answer for answer in golden.answers if not answer.passed]
    name = "golden answers"
    if not bad:
        text = f"all {len(golden.answers)} golden answers of {golden.file} passed"
        return Check(kind="quality", name=name, passed=True, text=text)
    first = "; ".join(f"{answer.name}: {answer.failures[0]}" for answer in bad[:NAMED_FAILURES])
    more = f" and {len(bad) - NAMED_FAILURES} more" if len(bad) > NAMED_FAILURES else ""
    text = f"{len(bad)} of {len(golden.answers)} golden answers of {golden.file} failed: {first}{more}"
    limit = next((limit for limit in thresholds if limit.metric == GOLDEN), None)
    if limit is not None:
        return Check(kind="quality", name=name, passed=None, text=f"{text}; {limit} decides")
    return Check(kind="quality", name=name, passed=False, text=text)


def check_quality(quality: QualityReport | None, thresholds: Sequence[Threshold]) -> Check | None:
    """Why a comparison with a reference decides nothing, or little; None where thresholds judge it."""
    if quality is None:
        return None
    doubts = []
    names = {limit.metric for limit in thresholds} - {GOLDEN}
    if not any(METRICS[base_name(name)].subject == "quality" for name in names):
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
    return Check(kind="quality", name="comparison with the reference", passed=None, text=text)


def judge(checks: Sequence[Check]) -> tuple[bool, tuple[Check, ...], tuple[str, ...]]:
    """The verdict, the checks with the failed ones first, and the reasons: failures, or what was shown to be good."""
    ordered = sorted(checks, key=lambda check: (check.passed is not False, _ORDER.index(check.kind)))
    failed = [check.text for check in ordered if check.passed is False]
    if failed:
        return False, tuple(ordered), tuple(failed)
    good = [check.text for check in ordered if check.passed and check.kind != "run"]
    return True, tuple(ordered), tuple(good) or ("the runs came to their end; no target or threshold was given",)
