"""JSON of strangers: what Python's parser takes and nothing of ours could write again is refused."""

from __future__ import annotations

import json
from typing import Any

from edgepack.shown import shown


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
