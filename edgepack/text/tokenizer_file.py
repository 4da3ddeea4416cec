"""What tokenizer.json says about single tokens, read without its vocabulary: that would take 0.4 GB."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.errors import TextFileError
from edgepack.shown import one_line
from edgepack.text.files import MOST_TOKENIZER_BYTES, require_file

# `tokenizers` writes the model last. All that stands before Gemma's has 1.3 MB.
HEAD_BYTES = 4_000_000
_WANTED = ("added_tokens", "post_processor")
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """The tokens of a tokenizer.json that stand beside its vocabulary, and those that it puts before a text.

    Attributes:
        path: the file.
        added: special and other added tokens with their ids.
        prefix: ids that the post-processor puts before a text, as Transformers then does too.
    """

    path: Path
    added: Mapping[str, int]
    prefix: tuple[int, ...]

    def token_id(self, text: str) -> int | None:
        """The id of the token `text`; None where there is none.

        Raises:
            TextFileError: as `read_tokenizer_file`.
        """
        if text in self.added:
            return self.added[text]
        token_id = _vocabulary(_members(self.path, ("model",))).get(text)
        return token_id if isinstance(token_id, int) else None

    def text_of(self, token_id: int) -> str | None:
        """The text of an added token; None where `token_id` is none."""
        return next((text for text, number in self.added.items() if number == token_id), None)


def read_tokenizer_file(path: Path) -> TokenizerFile | None:
    """Read a tokenizer.json; None where there is none.

    Raises:
        TextFileError: it cannot be read, or what is read here is put together in a way that is not known.
    """
    if not path.exists():
        return None
    found = _members(path, _WANTED)
    try:
        added = {str(token["content"]): int(token["id"]) for token in found.get("added_tokens") or ()}
        return TokenizerFile(path, added, _prefix(found.get("post_processor") or {}))
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError, RecursionError) as error:
        raise TextFileError(
            f"{path}: 'added_tokens' or 'post_processor' is put together in a way that is not known "
            f"({type(error).__name__}: {one_line(error)}): fetch it again"
        ) from error


def _prefix(processor: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that a post-processor puts before a text."""
    kind = processor.get("type")
    if kind == "Sequence":
        # Of several templates `tokenizers` follows the first.
        return next(filter(None, map(_prefix, processor["processors"])), ())
    if kind in ("BertProcessing", "RobertaProcessing"):
        return (int(processor["cls"][1]),)
    if kind != "TemplateProcessing":
        return ()
    ids: list[int] = []
    for piece in processor["single"]:
        if "SpecialToken" not in piece:
            break
        ids += map(int, processor["special_tokens"][piece["SpecialToken"]["id"]]["ids"])
    return tuple(ids)


def _vocabulary(found: Mapping[str, Any]) -> Mapping[str, Any]:
    model = found.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # of pairs, a piece and its score
        return {str(piece[0]): i for i, piece in enumerate(vocabulary) if isinstance(piece, list) and piece}
    return vocabulary if isinstance(vocabulary, dict) else {}


def _members(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """The members `names` of the JSON object in `path`, as far as it has them; the file is read as far as needed."""
    try:
        size = require_file(path, MOST_TOKENIZER_BYTES)
        with path.open("rb") as file:
            data = file.read(HEAD_BYTES)
            try:
                return _first_members(data, names)
            except (ValueError, RecursionError):
                if len(data) >= size:
                    raise
            return _first_members(data + file.read(), names)
    except OSError as error:
        raise TextFileError(f"{path}: cannot be read: {one_line(error)}") from error
    except (ValueError, RecursionError) as error:
        raise TextFileError(
            f"{path}: expected a JSON object, got a file that is cut or something else ({one_line(error)}): "
            "fetch it again"
        ) from error


def _first_members(data: bytes, names: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    # A cut file may end inside a character; whatever else is no UTF-8 is refused by who opens the tokenizer.
    for name, value in _each_member(data.decode("utf-8", "replace")):
        if name in names:
            found[name] = value
        if len(found) == len(names):
            break
    return found


def _each_member(text: str) -> Iterator[tuple[str, Any]]:
    """The members of the JSON object `text`, parsed one after the other."""
    decoder = json.JSONDecoder()
    at = _expect(text, 0, "{")
    while text[at : at + 1] != "}":
        name, at = decoder.raw_decode(text, at)
        value, at = decoder.raw_decode(text, _expect(text, at, ":"))
        yield name, value
        at = _behind_space(text, at)
        if text[at : at + 1] != "}":
            at = _expect(text, at, ",")


def _expect(text: str, at: int, mark: str) -> int:
    """Where the first thing behind `mark` begins, which is the next thing in `text`."""
    at = _behind_space(text, at)
    if text[at : at + 1] != mark:
        raise json.JSONDecodeError(f"expected '{mark}'", text, at)
    return _behind_space(text, at + 1)


def _behind_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at
