"""What is told of a wrong value in a file that users write: where it stands, what is expected, what is there."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from edgepack.shown import printable

MOST_SHOWN = 60


def wrong_value(error: ErrorDetails, expected: Mapping[str, str]) -> str:
    """One line for `error`, such as ``validate.repeat: expected a whole number such as 3, got "3"``.

    Args:
        expected: words for what a key takes, by its dotted name without positions in lists; ``thresholds.*`` stands for
            every key of a table.
    """
    place = error["loc"]
    for length in range(len(place), 0, -1):
        if isinstance(place[length - 1], int):  # the list is what has a name
            continue
        names = [part for part in place[:length] if isinstance(part, str)]
        words = expected.get(".".join(names)) or expected.get(".".join([*names[:-1], "*"]))
        if words is not None:
            return f"{dotted(place[:length])}: expected {words}, got {_shown(error)}"
    return f"{dotted(place)}: {printable(error['msg'])}"


def dotted(place: tuple[int | str, ...]) -> str:
    """The name of a place in a file."""
    return printable(".".join(map(str, place)))


def first_wrong(error: ValidationError) -> str:
    """The first wrong value of a document that a program wrote: its place and what is wrong with it."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{dotted(first['loc']) or 'the document'}: {printable(first['msg'].removeprefix('Value error, '))}"


def _shown(error: ErrorDetails) -> str:
    if error["type"] == "missing":
        return "nothing"
    text = json.dumps(error["input"], ensure_ascii=False, default=str)
    return printable(text, MOST_SHOWN)
