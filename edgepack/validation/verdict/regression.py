"""What is a regression, what is noise, and what cannot be told: the metrics of a report against an earlier one's.

Noise that is known (`MetricKind.noise_percent`): a metric has regressed when its figure (the median, of a peak the
largest) is worse by more than what is allowed and that noise together, however often it was measured.

Noise that is not known: when its figure is worse by more than what is allowed **and** its mean is worse by more than
its repetitions explain: Student's t of both sides with one common variance, one-sided, at `FALSE_ALARM`. Every metric
that is judged so adds that chance of a false alarm, so only the headlines are, unless a threshold asks for more.
`benchmarks/baseline_noise.py` draws how often a whole report raises one, and what is found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from math import sqrt
from statistics import NormalDist, fmean, variance

from edgepack.validation.metrics import GOLDEN_RATE, Metric, find_metric, format_figure, kind_of
from edgepack.validation.result import BaselineComparison, Check, MetricChange, Report, Unjudged

FEWEST_RUNS = 3
FALSE_ALARM = 0.01
# What a change is called that was not judged, and why.
_WHY: Mapping[Unjudged, tuple[str, str]] = {
    "within noise": ("metrics within their noise", "worse by more than allowed, but not beyond their noise"),
    "few runs": (
        "metrics with too few runs",
        f"worse by more than allowed, but fewer than {FEWEST_RUNS} runs a side cannot be told from noise",
    ),
    "told only": (
        "metrics that are told",
        "worse by more than allowed, but judged only where a threshold asks for them",
    ),
    "from zero": ("metrics that were 0", "worse, but of 0 there is no percentage"),
}


def compare_reports(
    before: Report,
    after: Report,
    *,
    file: str,
    max_regression_percent: float,
    forced: bool = False,
    judged: Collection[str] = (),
    explained: Collection[str] = (),
) -> BaselineComparison:
    """Every metric of `before`, as far as it was measured again.

    Args:
        judged: metrics that are judged though no headline: the user has set a threshold on them.
        explained: metrics whose absence has a reason that is told elsewhere.
    """
    now = {metric.name: metric for metric in after.metrics}
    asked = {found.name for name in judged if (found := find_metric(after.metrics, name)) is not None}
    changes = [
        compare_metric(metric, now[metric.name], max_regression_percent, asked=metric.name in asked)
        for metric in before.metrics
        if metric.name in now
    ]
    gone = [metric.name for metric in before.metrics if metric.name not in now and metric.name not in explained]
    return BaselineComparison(
        file=file,
        max_regression_percent=max_regression_percent,
        forced=forced,
        changes=tuple(changes),
        missing=tuple(gone),
    )


def compare_metric(before: Metric, after: Metric, allowed_percent: float, *, asked: bool = False) -> MetricChange:
    """`after` against `before`.

    Args:
        asked: judge it though it is no headline.
    """
    worse = after.figure - before.figure if before.kind.better == "lower" else before.figure - after.figure
    base = abs(before.figure)
    change = 100.0 * worse / base if base else None if worse else 0.0
    unjudged: Unjudged | None = None
    if worse <= before.kind.floor or (change is not None and change <= allowed_percent):
        regressed = False
    else:
        unjudged = _doubt(before, after, change, allowed_percent, asked)
        regressed = unjudged is None
    return MetricChange(
        name=before.name,
        better=before.kind.better,
        before=before.figure,
        after=after.figure,
        change_percent=change,
        noise_percent=_noise_percent(before, after),
        regressed=None if unjudged else regressed,
        unjudged=unjudged,
    )


def _noise_percent(before: Metric, after: Metric) -> float | None:
    """The known noise, else half the spread of the noisier side in percent of the figure before."""
    if before.kind.noise_percent is not None:
        return before.kind.noise_percent
    widest = max(metric.highest - metric.lowest for metric in (before, after))
    return 50.0 * widest / abs(before.figure) if before.figure else None


def _doubt(
    before: Metric, after: Metric, change_percent: float | None, allowed_percent: float, asked: bool
) -> Unjudged | None:
    """Why a metric that is worse by more than allowed is no regression all the same; None where it is one."""
    noise = before.kind.noise_percent
    if noise is not None:
        within = change_percent is not None and change_percent <= allowed_percent + noise
        return "within noise" if within else None
    if change_percent is None:
        return "from zero"
    if not (before.kind.headline or asked):
        return "told only"
    if min(len(before.values), len(after.values)) < FEWEST_RUNS:
        return "few runs"
    return None if _beyond_noise(before, after) else "within noise"


def _beyond_noise(before: Metric, after: Metric) -> bool:
    """Whether the mean is worse by more than the repetitions explain."""
    then, now = before.values, after.values
    worse = fmean(now) - fmean(then) if before.kind.better == "lower" else fmean(then) - fmean(now)
    freedom = len(then) + len(now) - 2
    common = ((len(then) - 1) * variance(then) + (len(now) - 1) * variance(now)) / freedom
    return worse > student_limit(freedom) * sqrt(common * (1 / len(then) + 1 / len(now)))


def student_limit(freedom: int) -> float:
    """Student's t that is exceeded by chance with `FALSE_ALARM`, within 0.2 % from four degrees of freedom on.

    The expansion in Abramowitz and Stegun, 26.7.5.
    """
    z = NormalDist().inv_cdf(1 - FALSE_ALARM)
    terms: tuple[float, ...] = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / float(freedom) ** power for power, term in enumerate(terms))


def check_baseline(comparison: BaselineComparison) -> Iterator[Check]:
    """One check for each regressed and each missing metric, one for each kind of doubt, or one that all is well."""
    regressed = [change for change in comparison.changes if change.regressed]
    for change in regressed:
        text = f"{_shift(change)}, allowed are {comparison.max_regression_percent:g} % ({_source(change, comparison)})"
        yield Check(kind="regression", name=f"no regression of {change.name}", passed=False, text=text)
    for name in comparison.missing:
        text = f"{name} is in the baseline {comparison.file} and was not measured now: {_way_back(name)}"
        yield Check(kind="regression", name=f"{name} is measured", passed=False, text=text)
    for unjudged, (title, why) in _WHY.items():
        if unclear := [_shift(change) for change in comparison.changes if change.unjudged == unjudged]:
            yield Check(kind="regression", name=title, passed=None, text=f"{why}: {'; '.join(unclear)}")
    judged = sum(change.regressed is not None for change in comparison.changes)
    if judged and not regressed and not comparison.missing:
        told = len(comparison.changes) - judged
        text = (
            f"no metric regressed beyond its noise (allowed {comparison.max_regression_percent:g} %; {judged} judged, "
            f"{told} not; {comparison.file})"
        )
        yield Check(kind="regression", name="no regression", passed=True, text=text)


def _source(change: MetricChange, comparison: BaselineComparison) -> str:
    noise = "" if change.noise_percent is None else f"noise {change.noise_percent:.1f} %; "
    return f"{noise}{comparison.file}"


def _shift(change: MetricChange) -> str:
    """``ttft_ms@128 was 101 ms and is 201 ms: 99.0 % worse``."""
    unit = kind_of(change.name).unit
    before, after = (format_figure(value, unit) for value in (change.before, change.after))
    share = "" if change.change_percent is None else f": {change.change_percent:.1f} % worse"
    return f"{change.name} was {before} and is {after}{share}"


def _way_back(name: str) -> str:
    """How a metric of the baseline is measured again."""
    kind = kind_of(name)
    if name == GOLDEN_RATE:
        return "give the same file with --golden"
    if kind.category == "quality":
        return "give the same checkpoint or package with --reference"
    if name == "peak_charged_bytes":
        return "validate with the same target, where the kernel keeps the limit"
    if kind.by_prompt or name.startswith("long_"):
        return "give the same --prompt-tokens and --new-tokens"
    return "validate where this system and runtime tell it, or take a new baseline"
