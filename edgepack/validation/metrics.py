"""What a validation measures: every figure's name, unit and good direction, in one table.

A figure that depends on the length of the prompt has the length in its name: ``ttft_ms@1024``. A figure of one text of
the quality check has that text in its name: ``kl_mean@hindi``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from edgepack.errors import EdgepackError
from edgepack.shown import shown
from edgepack.units import format_bytes, format_number, format_percent
from edgepack.values import Frozen

Unit = Literal["bytes", "ms", "tokens_per_s", "count", "share", "nats", "ratio"]
Better = Literal["lower", "higher"]
Category = Literal["ram", "latency", "quality"]
UNIT_WORDS: dict[Unit, str] = {"ms": "ms", "tokens_per_s": "tok/s", "nats": "nats"}
SECONDS_FROM_MS = 10_000
GOLDEN_RATE, WORST_TEXT = "golden_pass_rate", "kl_worst_text"


@dataclass(frozen=True, slots=True)
class MetricKind:
    """A figure that can be measured.

    Attributes:
        category: which of the three questions it belongs to.
        by_prompt: measured once for each length of the prompt.
        by_text: measured on all texts, and on each of them.
        noise_percent: how much it is known to differ between runs of the same package, so that one value is enough to
            compare; None where that differs by machine and hour and must be seen from repetitions.
        floor: a change of less than this, in its unit, is none: near zero a share of it means nothing.
        headline: of the figures with unknown noise one of the few that a baseline judges unasked. The others say much
            the same once more, or vary most: each would add its own false alarms.
        peak: a peak of memory: what stands for all repetitions is the largest, not the median.
    """

    title: str
    unit: Unit
    better: Better
    category: Category
    by_prompt: bool = False
    by_text: bool = False
    noise_percent: float | None = None
    floor: float = 0.0
    headline: bool = False
    peak: bool = False


# Peak RSS of repeated validations was the same within 1.0 % (Gemma 3n E2B) and 2.5 % (Gemma 3 270M).
RSS_NOISE_PERCENT = 3.0
# A float32 package is 6.5e-11 nats from its checkpoint, an int8 one 0.1: what is below this is rounding.
KL_FLOOR_NATS = 1e-6


def _answers(title: str, unit: Unit, better: Better, *, by_text: bool = False) -> MetricKind:
    """A figure of what a package answers, which is the same whenever it is measured."""
    floor = KL_FLOOR_NATS if unit == "nats" else 0.0
    return MetricKind(title, unit, better, "quality", by_text=by_text, noise_percent=0, floor=floor)


METRICS: dict[str, MetricKind] = {
    "package_bytes": MetricKind("package on disk", "bytes", "lower", "ram", noise_percent=0),
    "peak_rss_bytes": MetricKind("peak RSS", "bytes", "lower", "ram", noise_percent=RSS_NOISE_PERCENT, peak=True),
    # glibc keeps freed activations or gives them back, depending on where the heap starts: 115 or 188 MB of E2B.
    "peak_anonymous_bytes": MetricKind("peak anonymous memory", "bytes", "lower", "ram", peak=True),
    # Who else maps the libraries, and who read them first, decides about these two: 10 to 80 % of a small model.
    "peak_pss_bytes": MetricKind("peak PSS", "bytes", "lower", "ram", peak=True),
    "peak_charged_bytes": MetricKind("peak memory charged to the limit", "bytes", "lower", "ram", peak=True),
    "first_load_ms": MetricKind("first load, packs the weights", "ms", "lower", "latency"),
    "cold_load_ms": MetricKind("cold load", "ms", "lower", "latency", headline=True),
    "warm_load_ms": MetricKind("warm load", "ms", "lower", "latency"),
    "warm_up_ms": MetricKind("first use after a load", "ms", "lower", "latency"),
    "ttft_ms": MetricKind("time to first token", "ms", "lower", "latency", by_prompt=True),
    "prefill_tokens_per_s": MetricKind("prefill", "tokens_per_s", "higher", "latency", by_prompt=True, headline=True),
    "decode_tokens_per_s": MetricKind("decode", "tokens_per_s", "higher", "latency", headline=True),
    "itl_p50_ms": MetricKind("inter-token latency, median", "ms", "lower", "latency"),
    "itl_p95_ms": MetricKind("inter-token latency, 95th percentile", "ms", "lower", "latency"),
    "itl_p99_ms": MetricKind("inter-token latency, 99th percentile", "ms", "lower", "latency"),
    "long_decode_tokens_per_s": MetricKind("decode behind the longest prompt", "tokens_per_s", "higher", "latency"),
    "long_itl_p50_ms": MetricKind("inter-token latency there, median", "ms", "lower", "latency"),
    "long_itl_p95_ms": MetricKind("inter-token latency there, 95th percentile", "ms", "lower", "latency"),
    "long_itl_p99_ms": MetricKind("inter-token latency there, 99th percentile", "ms", "lower", "latency"),
    "decode_major_faults": MetricKind("page faults that read the disk in decode", "count", "lower", "latency"),
    "kl_mean": _answers("mean KL divergence from the reference", "nats", "lower", by_text=True),
    "kl_p99": _answers("KL divergence, 99th percentile", "nats", "lower", by_text=True),
    WORST_TEXT: _answers("mean KL divergence of the worst text", "nats", "lower"),
    "top1_agreement": _answers("same most likely token, near ties aside", "share", "higher", by_text=True),
    "perplexity_ratio": _answers("perplexity over the reference's", "ratio", "lower", by_text=True),
    GOLDEN_RATE: _answers("golden answers that pass", "share", "higher"),
}


class Metric(Frozen):
    """One measured figure with its spread.

    Attributes:
        name: its name in `METRICS`, with ``@<prompt tokens>`` where it depends on the prompt, ``@<text>`` where it is
            the figure of one text.
        figure: the one value that is told, judged and compared: the largest of a peak, the median of anything else.
        median, lowest, highest: of `values`.
        values: one value a repetition, in order.
        text: the one text that it is the figure of; None for all others.
    """

    name: str
    unit: Unit
    better: Better
    figure: float
    median: float
    lowest: float
    highest: float
    values: tuple[float, ...]
    text: str | None = None

    @property
    def kind(self) -> MetricKind:
        """Its row in `METRICS`."""
        return kind_of(self.name)


def measured(name: str, values: Sequence[float], *, text: str | None = None) -> Metric:
    """The metric `name` with at least one value."""
    kind = kind_of(name)
    return Metric(
        name=name,
        unit=kind.unit,
        better=kind.better,
        figure=float(max(values) if kind.peak else median(values)),
        median=median(values),
        lowest=min(values),
        highest=max(values),
        values=tuple(float(value) for value in values),
        text=text,
    )


def format_figure(value: float, unit: Unit) -> str:
    """A figure as people read it, with its unit."""
    if unit == "bytes":
        return format_bytes(value)
    if unit == "share":
        return format_percent(100 * value)
    if unit == "count":
        return f"{value:,.6g}"
    if unit == "ratio":
        return f"{value:.3f}"
    if unit == "ms" and value >= SECONDS_FROM_MS:
        return f"{format_number(value / 1e3)} s"
    return f"{format_number(value)} {UNIT_WORDS[unit]}"


def base_name(name: str) -> str:
    """``ttft_ms@1024`` -> ``ttft_ms``."""
    return name.partition("@")[0]


def kind_of(name: str) -> MetricKind:
    """The row in `METRICS` of the metric `name`."""
    return METRICS[base_name(name)]


def require_metric_name(name: str, where: str) -> None:
    """Refuse a name that no metric can have.

    Raises:
        EdgepackError: with the list of names.
    """
    base, at, of = name.partition("@")
    kind = METRICS.get(base)
    if kind is None or (at and not _has_figure_of(kind, of)):
        known = ", ".join(f"{key}{_suffix(metric)}" for key, metric in METRICS.items())
        raise EdgepackError(f"{where}: {shown(name)} is no metric: expected one of {known}")


def _has_figure_of(kind: MetricKind, of: str) -> bool:
    """Whether `of`, which stands behind the ``@`` of a name, is something that `kind` is measured for."""
    return bool(of) if kind.by_text else kind.by_prompt and of.isdecimal() and int(of) > 0


def _suffix(kind: MetricKind) -> str:
    return "@TOKENS" if kind.by_prompt else "[@TEXT]" if kind.by_text else ""


def find_metric(metrics: Iterable[Metric], name: str) -> Metric | None:
    """The metric that `name` means; without a length that of the shortest prompt. None where it was not measured."""
    every = list(metrics)
    if exact := next((metric for metric in every if metric.name == name), None):
        return exact
    found = [metric for metric in every if metric.kind.by_prompt and base_name(metric.name) == name]
    return min(found, key=lambda metric: int(metric.name.partition("@")[2]), default=None)
