"""Files that people and strangers write: read within bounds, parsed strictly, and a wrong value told in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from edgepack.errors import EdgepackError
from edgepack.shown import printable, shown

# The plan of Gemma 3n E4B has 0.3 MB. /dev/zero and a checkpoint given by mistake would fill the machine.
MOST_BYTES = 32_000_000


def read_user_file(path: Path, what: str, way_out: str = "", most_bytes: int = MOST_BYTES) -> bytes:
    """The content of the file `path`.

    Args:
        what: what the file is to a user, such as ``recipe``.
        way_out: ends the message where the file cannot be read.

    Raises:
        EdgepackError: it cannot be read, or is larger than `most_bytes`.
    """
    ending = f"; {way_out}" if way_out else ""
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise EdgepackError(f"{what} {path} cannot be read: {error.strerror or error}{ending}") from error
    except ValueError as error:  # a name that no file can have
        raise EdgepackError(f"{what} {shown(str(path), 200)} cannot be read: {error}{ending}") from error
    if len(content) > most_bytes:
        raise EdgepackError(f"{what} {path} is too large: expected at most {most_bytes:,} bytes; is it the right file?")
    return content


def loads_strict(text: bytes | str) -> Any:
    """Parse JSON in which no object names a key twice.

    Raises:
        ValueError: `text` is not UTF-8, not JSON, nested too deep, an object repeats a key, or a text is no Unicode.
    """
    return _loads(text, unique_keys=True)


def loads_object(text: bytes | str, *, unique_keys: bool = True) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        unique_keys: false for files in which Transformers takes the last of keys that are named twice.

    Raises:
        ValueError: as `loads_strict`, or it is something else than an object; the message says which.
    """
    try:
        value = _loads(text, unique_keys=unique_keys)
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    return value


def _loads(text: bytes | str, *, unique_keys: bool) -> Any:
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(decoded, object_pairs_hook=_unique_keys if unique_keys else None)
        if "\\ud" in decoded.lower():  # half a character, written as an escape, which no file of ours could hold
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    except UnicodeEncodeError as error:
        raise ValueError("a text in it has half of a surrogate pair, which is no character") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {shown(key)} stands there twice")
        result[key] = value
    return result


MOST_SHOWN = 60
_TAGS = ("int", "float")
M = TypeVar("M", bound=BaseModel)


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
    """The name of a place in a file, without what pydantic adds: ``[key]``, and which of the two schemes it tried."""
    steps = [str(step) for step in place if step != "[key]"]
    told = [step for before, step in zip(["", *steps], steps, strict=False) if before != "scheme" or step not in _TAGS]
    return printable(".".join(told))


def first_wrong(error: ValidationError, whole: str = "the document") -> str:
    """The first wrong value of a document: its place, or `whole` where that is all of it, and what is wrong with it."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{dotted(first['loc']) or whole}: {printable(first['msg'].removeprefix('Value error, '))}"


def read_document(
    model: type[M], content: bytes, where: str, way_out: str, refuse: type[EdgepackError] = EdgepackError
) -> M:
    """The value in `content`, a JSON document that a program wrote.

    Raises:
        EdgepackError: it is none of this `model`, of the class `refuse`: where, the first wrong value, and the way out.
    """
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise refuse(f"{where}: {first_wrong(error)}; {way_out}") from error


def _shown(error: ErrorDetails) -> str:
    if error["type"] == "missing":
        return "nothing"
    text = json.dumps(error["input"], ensure_ascii=False, default=str)
    return printable(text, MOST_SHOWN)
