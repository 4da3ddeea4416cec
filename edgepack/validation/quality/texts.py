"""The texts on which quality is measured, and how they are cut into pieces that a model runs at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, model_validator

from edgepack.errors import EdgepackError
from edgepack.text.overlap import said_in
from edgepack.values import Frozen

BUILTIN = "builtin-2"
# Of each built-in text the last positions are compared, and those before are their context. One position of Gemma's
# vocabulary is 1 MB of logits on disk: the set has 5,051 tokens in Gemma's tokenizer, and 1,830 positions are compared.
COMPARED_POSITIONS = 100
# All built-in texts together are cut to this: other tokenizers make three times as many tokens of them.
MOST_TOKENS = 5100
# Of a user's text: long enough for a context, short enough that the logits of a piece (0.27 GB for Gemma) fit anywhere.
PIECE_TOKENS = 256
FILE_TOKENS = 1100
# Of a user's file only the beginning is read: more text than FILE_TOKENS tokens can ever be.
MOST_CHARACTERS = 200_000


class Text(Frozen):
    """One text: as it is, or a conversation that the package's own chat template renders."""

    name: str
    text: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Text:
        if (self.text is None) == (self.messages is None):
            raise ValueError("expected either text or messages")
        return self

    @property
    def plain(self) -> str:
        """The text, or the conversation in Gemma's turn format."""
        if self.text is not None:
            return self.text
        roles = {"assistant": "model"}
        return "".join(
            f"<start_of_turn>{roles.get(turn['role'], turn['role'])}\n{turn['content']}<end_of_turn>\n"
            for turn in self.messages or ()
        )

    @property
    def said(self) -> str:
        """The text, or what is said in the conversation, without roles."""
        return self.text if self.text is not None else said_in(self.messages or ())


class Piece(Frozen):
    """Tokens that are run at once over a fresh cache.

    Attributes:
        context: positions in front that are run and not compared.
    """

    name: str
    ids: tuple[int, ...]
    context: int = 0

    @property
    def positions(self) -> int:
        """Positions that are compared: those behind the context with a token that follows."""
        return len(self.ids) - 1 - self.context

    @property
    def targets(self) -> tuple[int, ...]:
        """The tokens that follow these positions."""
        return self.ids[self.context + 1 :]


def builtin_texts() -> tuple[Text, ...]:
    """The built-in set: see texts/README.md for what it is and its licence."""
    source = resources.files("edgepack.validation.quality") / "texts" / f"{BUILTIN}.json"
    return TypeAdapter(tuple[Text, ...]).validate_json(source.read_bytes())


def texts_sha256(texts: Iterable[Text]) -> str:
    """The sha256 of what `texts` say, in their order; what a user's file is called does not count."""
    said = [text.model_dump(mode="json", exclude={"name"}) for text in texts]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_text(file: Path) -> Text:
    """The text of a user's UTF-8 file, or its beginning.

    Raises:
        EdgepackError: it cannot be read, is empty or is no text.
    """
    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(MOST_CHARACTERS)
    except UnicodeDecodeError as error:
        raise EdgepackError(f"{file}: not a text file in UTF-8: {error.reason} at byte {error.start}") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise EdgepackError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not text.strip():
        raise EdgepackError(f"{file}: the text is empty: expected some hundred words of what the model is used for")
    return Text(name=file.name, text=text)


def cut_texts(pieces: Sequence[Piece], context_tokens: int) -> tuple[list[Piece], list[str]]:
    """The pieces within the context and all together within `MOST_TOKENS`, and notes on what was cut.

    Of each the last `COMPARED_POSITIONS` are compared.
    """
    longest = context_tokens
    while sum(min(len(piece.ids), longest) for piece in pieces) > MOST_TOKENS:
        longest -= 1
    cut = [
        Piece(name=piece.name, ids=ids, context=max(0, len(ids) - 1 - COMPARED_POSITIONS))
        for piece in pieces
        for ids in [piece.ids[:longest]]
    ]
    short = sum(len(piece.ids) > longest for piece in pieces)
    reason = f"{MOST_TOKENS:,} tokens are run" if longest < context_tokens else "the context has no more"
    notes = [f"{short} of {len(pieces)} texts were cut to {longest:,} tokens: {reason}"] if short else []
    return cut, notes


def cut_file(text: Piece, bos: int | None, context_tokens: int) -> tuple[list[Piece], list[str]]:
    """A user's text in pieces, each with the start token in front where the tokenizer has one."""
    head = () if bos is None else (bos,)
    ids = text.ids[len(head) :]
    step = min(PIECE_TOKENS, context_tokens) - len(head)
    used = ids[:FILE_TOKENS]
    starts = range(0, len(used), step)
    pieces = [
        Piece(name=f"{text.name} {start // step + 1}/{len(starts)}", ids=head + used[start : start + step])
        for start in starts
    ]
    notes = [f"the first {len(used):,} of {len(ids):,} tokens of {text.name} were used"] if len(used) < len(ids) else []
    return [piece for piece in pieces if piece.positions > 0], notes
