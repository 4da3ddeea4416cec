"""Figures as people write and read them. Decimal and binary units of bytes are never mixed silently."""

from __future__ import annotations

import re
from math import isfinite

from edgepack.errors import EdgepackError
from edgepack.shown import shown

_FACTORS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
# Less than any program takes, and than any model has.
LEAST_BYTES = 10**6
# What a number without its unit was meant in: 4 is no limit in MB, 1500 none in GB.
MOST_GB, MOST_MB = 64, 100_000
_PATTERN = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """Return the number of bytes that `text` names: ``2GB`` is 2,000,000,000, ``2GiB`` is 2,147,483,648.

    Raises:
        EdgepackError: `text` is no number with one of the units B, KB, MB, GB, KiB, MiB, GiB, or it is zero.
    """
    match = _PATTERN.fullmatch(text)
    factor = _FACTORS.get(match.group(2).upper()) if match else None
    if match is None or factor is None:
        raise EdgepackError(
            f"size {shown(text)} is not understood: expected a number and a unit such as 2GB, 3GB, 1500MB or 2GiB"
        )
    size = float(match.group(1)) * factor
    if factor == 1 and isfinite(size) and not size.is_integer():
        raise EdgepackError(f"size {shown(text)} is no whole number of bytes: expected a unit, such as 2GB or 1500MB")
    size_bytes = int(size) if isfinite(size) else 0
    if size_bytes <= 0:
        raise EdgepackError(
            f"size {shown(text)} is no usable budget: expected more than 0 bytes, and a number that a machine can have"
        )
    return size_bytes


def require_unit(text: str, size_bytes: int) -> None:
    """Refuse a size that no model, program or limit has: ``2`` is hardly two bytes.

    Raises:
        EdgepackError: `size_bytes`, which `text` says, is less than a megabyte; names what was probably meant.
    """
    if size_bytes < LEAST_BYTES:
        number = re.match(r"\s*([0-9.]+)", text)
        figure = number.group(1) if number else "0"
        unit = "GB" if float(figure) < MOST_GB else "MB"
        meant = f"; did you mean {figure}{unit}?" if 0.1 <= float(figure) <= MOST_MB else ", such as 2GB or 1500MB"
        count = f"{size_bytes:,} byte{'s' * (size_bytes != 1)}"
        raise EdgepackError(f"size {shown(text)} is {count}: expected a unit and at least 1MB{meant}")


def format_bytes(size_bytes: int | float) -> str:
    """Return `size_bytes` in decimal units with three significant figures, for example ``1.02 GB``."""
    size = float(size_bytes)
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(size) >= factor:
            value = size / factor
            digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
            return f"{value:.{digits}f} {unit}"
    return f"{int(size)} B"


def format_number(value: float) -> str:
    """Three significant figures, with commas from a thousand on."""
    size = abs(float(f"{value:.3g}"))  # 9.996 is written 10.0
    if value == 0:
        return "0"
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{digits}f}" if size >= 0.001 else f"{value:.2g}"


def format_percent(value: float) -> str:
    """`value` percent; never rounded to 100 when it is less."""
    text = f"{value:.1f}"
    return f"{'99.9' if text == '100.0' and value < 100 else text} %"
