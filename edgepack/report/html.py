"""One self-contained page of a report: no network, no script, light and dark, phone and paper.

The template escapes every string. Charts are `Markup` that `edgepack.report.charts` has escaped itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from edgepack.report import charts, tables, words
from edgepack.units import format_number, format_percent
from edgepack.validation.figures.collect import largest, representative
from edgepack.validation.figures.schedule import FIRST_LOAD
from edgepack.validation.metrics import Metric, find_metric, kind_of
from edgepack.validation.quality.metrics import text_metrics
from edgepack.validation.records import ProcessRecord
from edgepack.validation.result import BaselineComparison, Check, Report

MOST_TIMELINES = 3
# The tiles under the verdict: the first figures of each list that were measured.
TILES = (
    ("peak RSS", ("peak_rss_bytes",)),
    ("cold load", ("cold_load_ms", "warm_load_ms", "first_load_ms")),
    ("first token", ("ttft_ms",)),
    ("decode", ("decode_tokens_per_s",)),
    ("agreement", ("top1_agreement", "golden_pass_rate")),
)


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure in large type; `note` says which, or how it stands to the limit."""

    title: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A small chart under a line of text."""

    title: str
    value: str
    state: str
    chart: Markup


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its caption."""

    title: str
    caption: str
    chart: Markup


def render_html(report: Report) -> str:
    """The whole page."""
    most = representative(report.processes)
    judged = [*report.metrics, *(text_metrics(report.quality) if report.quality is not None else [])]
    return _template().render(
        report=report,
        tables=tables,
        words=words,
        tiles=_tiles(report),
        categories=[tables.metric_table(report, category) for category in tables.CATEGORY_TITLES],
        most=most,
        timelines=[_timeline(report, process) for process in _interesting(report)],
        components=_components(report),
        histograms=_histograms(report),
        thresholds=[bar for check in report.checks if (bar := _threshold(judged, check))],
        changes=_changes(report.baseline) if report.baseline else [],
    )


@cache
def _template() -> Template:
    loader = PackageLoader("edgepack.report")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_fit,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _fit(value: object) -> object:
    """What the template prints: strings without the characters that no page can carry."""
    return words.clean(value) if type(value) is str else value


def _tiles(report: Report) -> list[Tile]:
    tiles = []
    for title, names in TILES:
        metric = next((found for name in names if (found := find_metric(report.metrics, name))), None)
        if metric is None:
            continue
        note = words.metric_title(metric)
        note = "" if note == title else note.removeprefix("time to first token, ")
        limit = report.limit.limit_bytes or (report.target.limit_bytes if report.target else None)
        if metric.name == "peak_rss_bytes" and limit:
            note = f"{format_percent(100 * metric.figure / limit)} of {words.size(limit)}"
        tiles.append(Tile(title, words.figure(metric.figure, metric.unit), note))
    return tiles


def _interesting(report: Report) -> list[ProcessRecord]:
    """The run that stands for all, a process with a larger peak than that, and those that died."""
    most, peak = representative(report.processes), largest(report.processes)
    chosen = [process for process in report.processes if process is most or process is peak or process.failure]
    chosen.sort(key=lambda process: process is not most)
    return [process for process in chosen if process.timeline][:MOST_TIMELINES]


def _timeline(report: Report, process: ProcessRecord) -> Figure:
    if process.failure:
        why = f"It did not come to its end: {process.failure}"
    elif process.purpose == FIRST_LOAD:
        why = "The process with the largest peak, with that which packs the weights for this CPU."
    else:
        why = "The run with the largest peak."
    title = f"Memory over time: {process.purpose}"
    return Figure(title, why, charts.memory_timeline(process, report.limit.limit_bytes))


def _components(report: Report) -> Figure | None:
    if report.plan is None:
        return None
    caption = "The dashed part belongs to no component that the system can tell apart. Letters are those of the table."
    return Figure("Predicted and measured by component", caption, charts.component_bars(report.plan))


def _histograms(report: Report) -> list[Figure]:
    """One a phase, all on the same axis, so that they can be compared by eye."""
    phases = {name: steps for name, steps in report.decode_steps_ms.items() if steps}
    ends = [min(max(steps), 1.3 * _quantile(steps, 99)) for steps in phases.values()]
    start_ms = 0.8 * min(map(min, phases.values()), default=0.0)
    end_ms = 1.06 * max(ends, default=1.0) or 1.0
    figures = []
    for name, steps in phases.items():
        quantiles = {f"p{share}": _quantile(steps, share) for share in (50, 95, 99)}
        late = sum(step > end_ms for step in steps)
        caption = f"{len(steps):,} steps of all runs together, slowest {format_number(max(steps))} ms."
        caption += f" {late:,} slower than the axis are in the last bar." if late else ""
        said = ", ".join(f"{share} {format_number(value)} ms" for share, value in quantiles.items())
        chart = charts.step_histogram(steps, quantiles, (start_ms, end_ms), f"Time of a decode step in {name}: {said}")
        figures.append(Figure(f"Time of a decode step: {name}", caption, chart))
    return figures


def _quantile(steps: Sequence[float], share: float) -> float:
    return float(np.percentile(steps, share))


def _threshold(metrics: Sequence[Metric], check: Check) -> Bar | None:
    """The bar of a check that is about a threshold on a metric that was measured; else None."""
    threshold = check.threshold
    metric = find_metric(metrics, threshold.metric) if threshold else None
    if threshold is None or metric is None:
        return None
    value, at_least = threshold.value, threshold.operator == ">="
    asked = f"asked {'for at least' if at_least else 'for at most'} {words.figure(value, metric.unit)}"
    chart = charts.target_bar(metric.lowest, metric.figure, metric.highest, value, at_least)
    said = f"{words.figure(metric.figure, metric.unit)}, {asked}"
    return Bar(words.metric_title(metric), said, words.STATES[check.passed], chart)


def _changes(baseline: BaselineComparison) -> list[Bar]:
    sizes = [abs(change.change_percent or 0) for change in baseline.changes]
    longest = max([1.5 * baseline.max_regression_percent, *(min(size, 100) for size in sizes)])
    bars = []
    for change in baseline.changes:
        unit = kind_of(change.name).unit
        state = {True: "fail", False: "pass", None: "not judged"}[change.regressed]
        percent = change.change_percent or 0.0
        kind = {True: "bad", False: "worse" if percent > 0 else "better", None: "unsure"}[change.regressed]
        said = f"{words.shift_words(change)}: {words.figure(change.before, unit)} to {words.figure(change.after, unit)}"
        chart = charts.change_bar(percent, baseline.max_regression_percent, longest, kind)
        bars.append(Bar(change.name, said, state, chart))
    return bars
