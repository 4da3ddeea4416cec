"""From figures to a verdict: the checks of a report, and the reason on its first line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from edgepack.planning.plan import Target
from edgepack.units import format_bytes
from edgepack.validation.figures.collect import peak_phase, peak_rss_bytes, records_of
from edgepack.validation.figures.schedule import FIRST_LOAD, Measurement
from edgepack.validation.metrics import Metric, find_metric, format_figure, kind_of
from edgepack.validation.records import PhaseMemory, ProcessRecord
from edgepack.validation.result import Check
from edgepack.validation.thresholds import Threshold

# Order of importance: what a reader must know first.
_ORDER = ("run", "ram", "latency", "quality", "regression")
WhyMissing = Callable[[str], str | None]


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


def check_thresholds(
    thresholds: Iterable[Threshold], metrics: Sequence[Metric], why_missing: WhyMissing = lambda metric: None
) -> list[Check]:
    """Judge the figure of every metric that has a threshold; one that was not measured has failed.

    Args:
        why_missing: what broke off before the metric was known; None where nothing did. The peak of what broke off is
            not known either, whatever was seen until then.
    """
    checks = []
    for threshold in thresholds:
        kind, metric = kind_of(threshold.metric), find_metric(metrics, threshold.metric)
        why = why_missing(threshold.metric)
        if metric is None or (kind.peak and why is not None):
            passed, text = False, _missing(threshold, metrics, why)
        else:
            passed, text = _judged(threshold, metric)
        checks.append(Check(kind=kind.category, name=str(threshold), passed=passed, text=text, threshold=threshold))
    return checks


def _missing(threshold: Threshold, metrics: Sequence[Metric], why: str | None) -> str:
    asked = f"{threshold} is asked for"
    had = ", ".join(metric.name for metric in metrics)
    return f"{threshold.metric} was not measured: {f'{why} ({asked})' if why else f'{asked}; measured were {had}'}"


def _judged(threshold: Threshold, metric: Metric) -> tuple[bool, str]:
    kind, figure = metric.kind, metric.figure
    value, limit = (format_figure(number, kind.unit) for number in (figure, threshold.value))
    good = figure <= threshold.value if threshold.operator == "<=" else figure >= threshold.value
    if value == limit and not good:  # what rounding hides
        value, limit = f"{figure:.9g}", f"{threshold.value:.9g}"
    which = "largest" if kind.peak else "median"
    runs = f" ({which} of {len(metric.values)})" if len(metric.values) > 1 else ""
    place = f" on {metric.text}" if metric.text is not None and "@" not in metric.name else ""
    word = "is within" if good else "misses"
    return good, f"{kind.title} ({metric.name}) {value}{place}{runs} {word} the limit {threshold.operator} {limit}"


def judge(checks: Sequence[Check]) -> tuple[bool, tuple[Check, ...], tuple[str, ...]]:
    """The verdict, the checks with the failed ones first, and the reasons: failures, or what was shown to be good."""
    ordered = sorted(checks, key=lambda check: (check.passed is not False, _ORDER.index(check.kind)))
    failed = [check.text for check in ordered if check.passed is False]
    if failed:
        return False, tuple(ordered), tuple(failed)
    good = [check.text for check in ordered if check.passed and check.kind != "run"]
    return True, tuple(ordered), tuple(good) or ("the runs came to their end; no target or threshold was given",)
