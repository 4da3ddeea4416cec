"""A comparison with a reference as metrics: what thresholds judge and baselines keep."""

from __future__ import annotations

from edgepack.validation.metrics import WORST_TEXT, Metric, measured
from edgepack.validation.result import QualityReport

_FIGURES = ("kl_mean", "kl_p99", "top1_agreement", "perplexity_ratio")


def quality_metrics(quality: QualityReport) -> list[Metric]:
    """The figures of all texts together, and that of the worst."""
    worst = max(quality.texts, key=lambda text: text.kl_mean)
    return [
        *(measured(name, [getattr(quality, name)]) for name in _FIGURES),
        measured(WORST_TEXT, [worst.kl_mean], text=worst.name),
    ]


def text_metrics(quality: QualityReport) -> list[Metric]:
    """The figures of each text, for thresholds on one of them."""
    return [
        measured(f"{name}@{text.name}", [getattr(text, name)], text=text.name)
        for text in quality.texts
        for name in _FIGURES
    ]
