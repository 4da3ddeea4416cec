"""The few SVG elements of which `edgepack.report.charts` draws: x in percent, y in pixels, everything escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from edgepack.report.words import one_line

PLOT_PX = 220
Point = tuple[float, float]


def frame(parts: Iterable[Markup], height: int, title: str, kind: str = "plot") -> Markup:
    """A chart as wide as its box; `title` is what a screen reader says."""
    text = '<svg class="chart {}" role="img" width="100%" height="{}" aria-label="{}">{}</svg>'
    return Markup(text).format(kind, height, one_line(title), Markup("").join(parts))


def stretched(shapes: Iterable[Markup], y: int, height: int = PLOT_PX) -> Markup:
    """Shapes in a square of 100 by 100, y downwards, stretched over the plot."""
    text = '<svg y="{}" width="100%" height="{}" viewBox="0 0 100 100" preserveAspectRatio="none">{}</svg>'
    return Markup(text).format(y, height, Markup("").join(shapes))


def path(points: Sequence[Point], kind: str, end: str = "") -> Markup:
    """A line through points, or an area where `end` closes it."""
    if not points:
        return Markup("")
    line = "L".join(f"{short(x)} {short(100 - y)}" for x, y in points)
    return Markup('<path class="{}" d="M{}{}"/>').format(kind, line, end)


def area(points: Sequence[Point], kind: str) -> Markup:
    """The area between a line and the bottom."""
    return path(points, kind, f"L{short(points[-1][0])} 100L{short(points[0][0])} 100Z" if points else "")


def rect(x: float, width: float, y: int, height: int, kind: str) -> Markup:
    """A box: x and width in percent, y and height in pixels."""
    text = '<rect class="{}" x="{}%" y="{}" width="{}%" height="{}"/>'
    return Markup(text).format(kind, short(x), y, short(max(width, 0)), height)


def vertical(x: float, y1: int, y2: int, kind: str) -> Markup:
    """A line from y1 down to y2 at x percent."""
    text = '<line class="{}" x1="{}%" x2="{}%" y1="{}" y2="{}"/>'
    return Markup(text).format(kind, short(x), short(x), y1, y2)


def label(x: float, y: float, text: str, kind: str, dx: int = 0) -> Markup:
    """Text at x percent, moved by `dx` pixels."""
    return Markup('<text class="{}" x="{}%" y="{}" dx="{}">{}</text>').format(kind, short(x), short(y), dx, text)


def short(value: float) -> str:
    """Two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
