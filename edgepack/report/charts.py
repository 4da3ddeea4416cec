"""Charts as inline SVG: pure functions from figures to markup, styled by the page's own CSS variables.

Drawn here, because no library gives what the page needs. pygal 3.1 (LGPL) has no time axis under stacked areas, no
limit line and no bands, and puts fixed colours and a script into every chart; matplotlib 3.11 follows no CSS variable,
and brings 120 MB with it. Both scale their text with the chart, which makes it unreadable on a phone.

How a chart keeps its text readable at any width: places along x are percentages, heights are pixels, and only shapes
without text (`svg.stretched`) are stretched. Labels that could meet are put on rows of their own, as if the chart
were as narrow as on a phone (`_rows`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from edgepack.report.svg import PLOT_PX, Point, area, frame, label, path, rect, short, stretched, vertical
from edgepack.report.words import one_line, size
from edgepack.units import format_number
from edgepack.validation.records import Moment, ProcessRecord
from edgepack.validation.result import PlanComparison

ROW_PX = 17
NARROWEST_PX = 255
CHARACTER_PX = 7
BINS = 44
FAR_LIMIT = 5.0
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def memory_timeline(process: ProcessRecord, limit_bytes: int | None) -> Markup:
    """Anonymous and file-backed memory stacked over time, RSS and charged as lines, the limit, phases as bands."""
    moments = process.timeline
    begin = min([moments[0].time_ms, *(phase.start_ms for phase in process.phases)])
    end = max(moments[-1].time_ms, *(phase.end_ms for phase in process.phases), begin + 1)
    peak = max(max(moment.rss_bytes, moment.charged_bytes or 0) for moment in moments)
    far = limit_bytes is not None and limit_bytes > FAR_LIMIT * peak
    top = 1.12 * max(peak, 0 if far or limit_bytes is None else limit_bytes, 1)

    def at(time_ms: float) -> float:
        return 100 * (time_ms - begin) / (end - begin)

    def line(read: Callable[[Moment], int | None]) -> list[Point]:
        values = ((at(moment.time_ms), read(moment)) for moment in moments)
        return [(x, 100 * value / top) for x, value in values if value is not None]

    anonymous, both = line(lambda moment: moment.anonymous_bytes), line(_parts)
    rss, charged = line(lambda moment: moment.rss_bytes), line(lambda moment: moment.charged_bytes)
    labels = [(at(phase.start_ms), one_line(phase.phase)[:28]) for phase in process.phases]
    head, marks = _labels(labels)
    bands = [
        rect(at(phase.start_ms), at(phase.end_ms) - at(phase.start_ms), head, PLOT_PX, f"band band{index % 2}")
        for index, phase in enumerate(process.phases)
    ]
    shapes = [area(both or rss, "file" if both else "whole"), area(anonymous, "anonymous")]
    shapes += [path(rss, "rss"), path(charged, "charged")]
    limit = [] if limit_bytes is None else [_limit(limit_bytes, head, 100 if far else 100 * limit_bytes / top, far)]
    parts = [
        *bands,
        *_grid(top, head),
        stretched(shapes, head),
        *marks,
        *limit,
        *_ticks(begin, end, head + PLOT_PX, " s", 1000),
    ]
    if process.failure:
        parts.append(vertical(at(moments[-1].time_ms), head, head + PLOT_PX, "died"))
    title = f"Memory of {process.purpose} over time; peak RSS {size(process.peak_rss_bytes)}, limit {size(limit_bytes)}"
    return frame(parts, head + PLOT_PX + 24, title)


def component_bars(plan: PlanComparison) -> Markup:
    """Two stacked bars, planned and measured, one segment a component; a third shows the whole context's plan."""
    planned = [part.planned_bytes for part in plan.components]
    measured = [part.measured_bytes or 0 for part in plan.components]
    total = plan.total
    longest = max(total.planned_bytes, total.measured_bytes, sum(planned), sum(measured), plan.full_context_total_bytes)
    bars: list[tuple[str, list[int], int]] = [
        (f"planned for {plan.filled_tokens:,} tokens: {size(total.planned_bytes)}", planned, total.planned_bytes),
        (f"measured: {size(total.measured_bytes)}", measured, total.measured_bytes),
        (f"planned for the whole context: {size(plan.full_context_total_bytes)}", [], plan.full_context_total_bytes),
    ]
    parts: list[Markup] = []
    for row, (said, values, whole) in enumerate(bars):
        y, x = row * 62, 0.0
        parts.append(label(0, y + 15, said, "strong"))
        for index, value in enumerate(values):
            width = 100 * value / (longest or 1)
            parts.append(rect(x, width, y + 24, 28, f"segment c{index % 8}"))
            if width >= 5:
                parts.append(label(x + width / 2, y + 43, LETTERS[index % 26], "letter middle"))
            x += width
        rest = 100 * whole / (longest or 1) - x
        if rest > 0.05:
            parts.append(rect(x, rest, y + 24, 28, "rest" if values else "outline"))
    return frame(
        parts, 62 * len(bars), "Planned and measured memory by component: " + "; ".join(bar[0] for bar in bars)
    )


def step_histogram(steps_ms: Sequence[float], quantiles: Mapping[str, float], span_ms: Point, title: str) -> Markup:
    """How many decode steps took how long, within `span_ms`; later ones are in the last bar."""
    start_ms, length_ms = span_ms[0], span_ms[1] - span_ms[0]
    counts = [0] * BINS
    for step in steps_ms:
        counts[min(BINS - 1, int(BINS * (step - start_ms) / length_ms))] += 1
    most = max(counts)
    labels = [
        (100 * (value - start_ms) / length_ms, f"{name} {format_number(value)} ms") for name, value in quantiles.items()
    ]
    head, marks = _labels(labels, "quantile")
    shapes = [
        Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"/>').format(
            short(100 * index / BINS + 0.2),
            short(100 - 96 * count / most),
            short(100 / BINS - 0.4),
            short(96 * count / most),
        )
        for index, count in enumerate(counts)
        if count
    ]
    lines = [vertical(min(place, 100), head - 2, head + 120, "quantile") for place, _ in labels]
    parts = [*_ticks(*span_ms, head + 120, " ms"), stretched(shapes, head, 120), *lines, *marks]
    return frame(parts, head + 144, title)


def target_bar(lowest: float, figure: float, highest: float, threshold: float, at_least: bool) -> Markup:
    """Where a metric's range stands to what was asked for: the good side is tinted."""
    end = 1.25 * max(highest, threshold) or 1.0
    place = 100 * threshold / end
    good = (place, 100 - place) if at_least else (0.0, place)
    low, high = 100 * lowest / end, 100 * highest / end
    parts = [
        rect(0, 100, 4, 14, "track"),
        rect(*good, 4, 14, "good"),
        rect(low, max(high - low, 0.6), 7, 8, "range"),
        vertical(100 * figure / end, 4, 18, "figure"),
        vertical(place, 0, 22, "threshold"),
    ]
    return frame(parts, 22, f"measured {format_number(figure)}, threshold {format_number(threshold)}", "flat")


def change_bar(change_percent: float, allowed_percent: float, longest: float, state: str) -> Markup:
    """A change to the left (better) or right (worse) of zero, and how much worse is allowed."""
    width = 48 * min(1.0, abs(change_percent) / (longest or 1))
    start = 50.0 if change_percent > 0 else 50 - width
    allowed = 50 + 48 * allowed_percent / (longest or 1)
    parts = [rect(0, 100, 4, 14, "track"), rect(start, width, 4, 14, f"change {state}")]
    parts += [vertical(50, 0, 22, "zero"), vertical(allowed, 0, 22, "threshold")]
    side = "worse" if change_percent > 0 else "better"
    return frame(parts, 22, f"{abs(change_percent):.1f} % {side}, {allowed_percent:g} % worse is allowed", "flat")


def nice_ticks(start: float, end: float, most: int = 5) -> list[float]:
    """Round values inside a range, at most `most` and one more."""
    raw = (end - start) / most
    if raw <= 0 or not math.isfinite(raw):
        return [start]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first = math.ceil(start / step)
    return [step * index for index in range(first, int(end / step + 1e-9) + 1)]


def _grid(top: float, head: int) -> list[Markup]:
    """Lines across at round sizes, named left of the plot."""
    parts = []
    for value in nice_ticks(0, top):
        y = short(head + PLOT_PX * (1 - value / top))
        parts.append(Markup('<line class="grid" x2="100%" y1="{}" y2="{}"/>').format(y, y))
        parts.append(label(0, float(y) + 4, size(int(value)) if value else "0", "end", -8))
    return parts


def _limit(limit_bytes: int, head: int, place: float, far: bool) -> Markup:
    y = head + PLOT_PX * (1 - place / 100)
    line = Markup('<line class="limit" x2="100%" y1="{}" y2="{}"/>').format(short(y), short(y))
    text = f"limit {size(limit_bytes)}{', far above this chart ↑' if far else ''}"
    return line + label(100, y + 15 if far else y - 6, text, "end limit-label", -4)


def _ticks(start: float, end: float, y: int, unit: str, scale: float = 1) -> list[Markup]:
    """The axis along x."""
    parts = [Markup('<line class="axis" x2="100%" y1="{}" y2="{}"/>').format(y, y)]
    for value in nice_ticks(start / scale, end / scale):
        x = 100 * (value * scale - start) / (end - start)
        kind = "start" if x < 3 else "end" if x > 95 else "middle"
        parts.append(label(x, y + 18, f"{value:g}{unit}", kind))
    return parts


def _labels(labels: Sequence[tuple[float, str]], kind: str = "lead") -> tuple[int, list[Markup]]:
    """Labels above a plot with a thin line down to their place, and the height that they take."""
    rows = _rows(labels)
    head = ROW_PX * (max(rows, default=-1) + 1) + 6
    lines, texts = [], []
    for (x, text), row in zip(labels, rows, strict=True):
        left = _overflows(x, text)
        lines.append(vertical(min(x, 100), ROW_PX * row + 4, head, kind))
        texts.append(label(min(x, 100), ROW_PX * row + 14, text, "end halo" if left else "halo", -4 if left else 4))
    return head, lines + texts


def _rows(labels: Sequence[tuple[float, str]]) -> list[int]:
    """A row for each label, so that none covers another on the narrowest screen; a later one goes below."""
    spans: list[Point] = []
    rows: list[int] = []
    for x, text in labels:
        width = _width(text)
        low, high = (x - width, x) if _overflows(x, text) else (x, x + width)
        below = [row for (left, right), row in zip(spans, rows, strict=True) if left < high and low < right]
        rows.append(max(below, default=-1) + 1)
        spans.append((low, high))
    return rows


def _width(text: str) -> float:
    return 100 * (CHARACTER_PX * len(text) + 10) / NARROWEST_PX


def _overflows(x: float, text: str) -> bool:
    return x + _width(text) > 100


def _parts(moment: Moment) -> int | None:
    known = moment.anonymous_bytes is not None and moment.file_bytes is not None
    return (moment.anonymous_bytes or 0) + (moment.file_bytes or 0) if known else None
