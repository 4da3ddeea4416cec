"""How a report says a figure: units, spreads and names, the same in every face."""

from __future__ import annotations

import re

from edgepack.package.folder import CalibrationSource
from edgepack.shown import printable
from edgepack.units import format_bytes
from edgepack.validation.identity import SHOWN_DIGITS
from edgepack.validation.metrics import Metric, Unit, format_figure
from edgepack.validation.records import LimitFacts
from edgepack.validation.result import Check, MetricChange, PredictionBasis, Report, Unjudged

# Everything that XML 1.0 forbids, and the marks with which a text can turn the reading direction of what follows it.
_UNFIT = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
STATES = {True: "pass", False: "fail", None: "not judged"}


def clean(text: str) -> str:
    """`text` with every character that a page or an XML file cannot carry replaced by U+FFFD."""
    return _UNFIT.sub("\ufffd", text)


def one_line(text: str) -> str:
    """`text` without line breaks and runs of blanks."""
    return " ".join(clean(text).split())


def figure(value: float | None, unit: Unit) -> str:
    """A value with its unit; a dash where there is none."""
    return "-" if value is None else format_figure(value, unit)


def spread(metric: Metric) -> str:
    """Lowest to highest, with the unit once where both have the same."""
    low, high = figure(metric.lowest, metric.unit), figure(metric.highest, metric.unit)
    if low == high:
        return low
    unit = re.sub(r"^[-\d.,e]+", "", high)
    return f"{low.removesuffix(unit) if unit else low} to {high}"


def signed_percent(value: float | None) -> str:
    """A difference in percent with its sign."""
    return "-" if value is None else f"{value:+.1f} %"


def size(value: int | None) -> str:
    """Bytes, or a dash where they are not known."""
    return figure(value, "bytes")


def metric_title(metric: Metric) -> str:
    """Its name in plain words, with the prompt that it depends on or the text that it is of."""
    title = metric.kind.title
    if metric.text is not None:
        return f"{title}, {metric.text}"
    length = metric.name.partition("@")[2]
    return f"{title}, prompt of {length}" if length else title


def verdict_word(report: Report) -> str:
    """The verdict in one word."""
    return "PASS" if report.verdict else "FAIL"


def first_reason(report: Report) -> str:
    """The line that says it all."""
    return one_line(report.reasons[0]) if report.reasons else "no reason was given"


def limit_warning(limit: LimitFacts) -> str | None:
    """What a reader must know of a limit that nothing enforced; None where it was enforced or none was asked for."""
    if limit.enforced or limit.limit_bytes is None:
        return None
    how = "sampled from outside" if limit.method == "sampled" else "not even watched"
    why = f" Why: {one_line(limit.why)}" if limit.why else ""
    return (
        f"Limit not enforced: the memory was {how}, and nothing stopped it at {format_bytes(limit.limit_bytes)}.{why}"
    )


def limit_words(limit: LimitFacts) -> str:
    """The limit in one line."""
    if limit.limit_bytes is None:
        return "none"
    words = f"{format_bytes(limit.limit_bytes)}, {'enforced by' if limit.enforced else 'not enforced;'} {limit.method}"
    if limit.uncharged_bytes:
        words += f", lowered by {format_bytes(limit.uncharged_bytes)} of pages that other processes paid for"
    return words


def calibration_words(calibration: CalibrationSource) -> str:
    """Text, length and content of a calibration in one line."""
    return one_line(
        f"{printable(calibration.text)}, {calibration.tokens:,} tokens in sequences of "
        f"{calibration.sequence_tokens:,}, sha256 {calibration.sha256[:SHOWN_DIGITS]}"
    )


def prediction_words(basis: PredictionBasis | None) -> tuple[str, ...]:
    """What is said once of all predictions: why there is no speed or why it is doubtful, and the formula."""
    if basis is None:
        return ()
    said = [basis.text[:1].upper() + basis.text[1:] + "."]
    if basis.withheld is not None:
        said.insert(0, f"No speed is predicted: {basis.withheld}.")
    elif basis.doubt is not None:
        said.insert(0, f"The predicted speeds are doubtful: {basis.doubt}.")
    return tuple(said)


def config_title(report: Report) -> str:
    """What stands over the text of the settings."""
    return f"Settings that were obeyed, {report.config}; the command line goes before them"


def counts(checks: tuple[Check, ...]) -> str:
    """``5 passed, 1 failed, 2 not judged``, without the zeros."""
    numbers = {word: sum(check.passed is state for check in checks) for state, word in _COUNT_WORDS.items()}
    return ", ".join(f"{count} {word}" for word, count in numbers.items() if count) or "no checks"


_COUNT_WORDS = {True: "passed", False: "failed", None: "not judged"}


def shift_words(change: MetricChange) -> str:
    """``4.0 % worse``; of what was 0 there is no percentage."""
    percent = change.change_percent
    if percent is None:
        return "from 0"
    return f"{abs(percent):.1f} % {'worse' if percent > 0 else 'better'}" if percent else "same"


def judgement(change: MetricChange) -> str:
    """What a change of a metric means, or why that was not judged."""
    if change.unjudged is not None:
        return UNJUDGED_WORDS[change.unjudged]
    return "regressed" if change.regressed else "within bounds"


UNJUDGED_WORDS: dict[Unjudged, str] = {
    "within noise": "not beyond the noise",
    "few runs": "too few runs to say",
    "told only": "told, not judged",
    "from zero": "not judged",
}
