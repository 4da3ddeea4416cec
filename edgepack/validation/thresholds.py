"""Limits that a user sets on metrics, such as ``ttft_ms@1024 <= 8s`` or ``kl_mean@hindi <= 0.3``."""

from __future__ import annotations

import re
from math import isfinite
from typing import Literal

from edgepack.errors import EdgepackError
from edgepack.shown import shown
from edgepack.units import parse_bytes
from edgepack.validation.metrics import Unit, format_figure, kind_of, require_metric_name
from edgepack.values import Frozen

Operator = Literal["<=", ">="]
_PATTERN = re.compile(r"\s*([A-Za-z0-9_]+(?:@[^<>=:]*[^<>=:\s])?)\s*(<=|>=|=|<|>|:)?\s*(.*?)\s*")
_LIMIT = re.compile(r"\s*(<=|>=)?\s*(.*?)\s*")
_MS = {"": 1.0, "ms": 1.0, "s": 1e3}


class Threshold(Frozen):
    """A limit on one metric, in the metric's own unit."""

    metric: str
    operator: Operator
    value: float

    def __str__(self) -> str:
        return f"{self.metric} {self.operator} {format_figure(self.value, kind_of(self.metric).unit)}"


def parse_threshold(text: str) -> Threshold:
    """Read ``metric <= value`` or ``metric >= value``.

    Raises:
        EdgepackError: no such metric (the list is given), or no limit that its unit understands.
    """
    match = _PATTERN.fullmatch(text)
    if match is None or match.group(2) not in ("<=", ">="):
        raise EdgepackError(
            f"threshold {shown(text)} is not understood: expected a metric, <= or >=, and a value, "
            "such as 'decode_tokens_per_s >= 10' or 'ttft_ms@1024 <= 8s'"
        )
    return make_threshold(match.group(1), f"{match.group(2)} {match.group(3)}", f"threshold {shown(text)}")


def make_threshold(name: str, limit: str | float, where: str) -> Threshold:
    """A limit on the metric `name`; one without an operator is taken as the worst value that still passes.

    Args:
        limit: a number in the metric's unit, or a text such as ``<= 1.9GB``, ``8s``, ``95%``.
        where: what the user wrote, for the error.

    Raises:
        EdgepackError: no such metric, or no such limit.
    """
    require_metric_name(name, where)
    kind = kind_of(name)
    match = _LIMIT.fullmatch(str(limit))
    assert match is not None  # everything is optional
    natural: Operator = "<=" if kind.better == "lower" else ">="
    operator = match.group(1) or natural
    if operator != natural:
        raise EdgepackError(f"{where}: {name} is better when {kind.better}: expected a limit with {natural}")
    return Threshold(metric=name, operator=natural, value=_parse_value(match.group(2), kind.unit, where))


def _parse_value(text: str, unit: Unit, where: str) -> float:
    if unit == "bytes" and re.fullmatch(r"[0-9]+\.[0-9]+", text) and not float(text).is_integer():
        raise EdgepackError(f"{where}: {text} is no whole number of bytes: expected a value such as {text}GB")
    try:
        if unit == "bytes":
            return float(parse_bytes(text))
        match = re.fullmatch(r"([0-9][0-9_]*\.?[0-9]*(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z%/]*)", text)
        number = float(match.group(1)) if match else float("nan")
        word = match.group(2).lower() if match else ""
        if unit == "ms" and word in _MS:
            number *= _MS[word]
        elif unit in ("share", "ratio") and word == "%":
            number /= 100
        elif word and not (unit == "tokens_per_s" and word in ("tok/s", "tokens/s")):
            number = float("nan")
        if not isfinite(number):
            raise ValueError
    except (EdgepackError, ValueError):
        examples = {"bytes": "1.9GB", "ms": "800ms or 2s", "share": "95% or 0.95", "tokens_per_s": "10"}
        raise EdgepackError(
            f"{where}: {shown(text)} is no limit: expected a value such as {examples.get(unit, '1.5')}"
        ) from None
    if unit == "share" and number > 1:
        raise EdgepackError(f"{where}: {shown(text)} is more than all of it: expected a share such as 95% or 0.95")
    return number
