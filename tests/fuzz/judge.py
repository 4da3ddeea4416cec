"""What is wrong with how a command ended; nothing, for most."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from edgepack.checkpoint.folder import open_checkpoint
from edgepack.errors import EdgepackError
from edgepack.package.folder import open_package
from tests.fuzz.case import Case, Result

MOST_CHARACTERS = 2_500
UNUSABLE = 2
DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def faults(case: Case, result: Result) -> list[str]:
    """One line for each promise that was not kept."""
    errors = result.errors.decode("utf-8", "replace")
    return [*_ending(result, errors), *_message(result, errors), *_document(case, result), *_folder(case, result)]


def _ending(result: Result, errors: str) -> Iterator[str]:
    if result.code is None:
        yield f"no end after {result.seconds:.0f} s"
    elif result.code < 0:
        yield f"ended by signal {-result.code}"
    elif result.code not in (0, 1, UNUSABLE):
        yield f"exit code {result.code}"
    if "Traceback (most recent call last)" in errors:
        yield f"traceback: {errors.strip().splitlines()[-1][:200]}"


def _message(result: Result, errors: str) -> Iterator[str]:
    """One line for exit code 2, with notes before it; none for the others."""
    lines = [line for line in errors.splitlines() if line.strip()]
    wrong = [line for line in lines if line.startswith("error:")]
    if result.code == UNUSABLE:
        if len(wrong) != 1 or lines[-1] != wrong[0]:
            yield f"{len(wrong)} lines of error as the last one"
        if other := [line for line in lines if not line.startswith(("error:", "note:"))]:
            yield f"other lines on stderr: {other[0][:100]!r}"
        if wrong and any(_misleads(character) for character in wrong[0]):
            yield f"control characters in {wrong[0][:200]!a}"
    elif wrong and result.code in (0, 1):
        yield f"exit code {result.code} with an error: {wrong[0][:200]}"
    if longest := max((line for line in wrong if len(line) >= MOST_CHARACTERS), key=len, default=""):
        yield f"a message of {len(longest)} characters: {longest[:150]!r}"


def _misleads(character: str) -> bool:
    """Whether a terminal obeys it: controls, line ends, and marks that turn the direction of what follows."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in DIRECTIONS


def _document(case: Case, result: Result) -> Iterator[str]:
    text = result.output.decode("utf-8", "replace")
    if case.is_json and text:
        try:
            json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            yield f"stdout is not one JSON document: {error}: {text[:100]!r}"
    if case.is_json and not text and result.code == 0:
        yield "exit code 0 and no document"
    if result.code == UNUSABLE and not case.is_json and case.arguments[0] not in ("generate", "demo") and text:
        yield f"output before an error: {text[:100]!r}"


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _folder(case: Case, result: Result) -> Iterator[str]:
    """Nothing, or all of it, and nothing beside it."""
    if case.out is None or result.code is None or result.code < 0:  # killed: the next run clears up after it
        return
    if left := sorted(path.name for path in case.out.parent.glob("*.partial-*")):
        yield f"left behind: {left}"
    if not case.out.exists():
        if result.code == 0 and case.arguments[0] in ("export", "synth") and "--help" not in case.arguments:
            yield "exit code 0 and no folder"
        return
    if result.code != 0:
        yield f"exit code {result.code} and a folder"
    try:
        if case.arguments[0] == "synth":
            open_checkpoint(case.out).close()
        else:
            _open(case.out)
    except EdgepackError as error:
        yield f"half a folder: {error}"


def _open(out: Path) -> Any:
    return open_package(out, verify=True)
