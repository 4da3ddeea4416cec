"""Texts as sequences of tokens of one length, each with the start token in front where the model has one."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgepack.calibration.texts import BUILTIN, CalibrationText, builtin_texts
from edgepack.checkpoint.folder import Checkpoint
from edgepack.errors import CheckpointError, EdgepackError
from edgepack.model.families import family_of
from edgepack.model.spec import ModelSpec
from edgepack.reading import read_user_file
from edgepack.shown import shown
from edgepack.text.codec import TextCodec
from edgepack.text.overlap import Sketch, sketch_of

DEFAULT_TOKENS, DEFAULT_SEQUENCE = 16_384, 512
# The first position is the start token, and one more is the least that says something.
LEAST_SEQUENCE = 2
# Of a long text so much is given to the tokenizer at once: it takes some hundred bytes a token.
_ENCODED_CHARACTERS = 100_000
# A document is there for its length: where not all tokens of all texts are wanted, it gives more than others.
_WEIGHTS = {"document": 4}


@dataclass(frozen=True, slots=True)
class Sequences:
    """What a calibration runs.

    Attributes:
        ids: token ids [N, S].
        text: ``builtin``, or the name of the file.
        text_sha256: of its content.
        sketch: of what it says.
    """

    ids: NDArray[np.int32]
    text: str
    text_sha256: str
    sketch: Sketch


def read_sequences(
    checkpoint: Checkpoint, spec: ModelSpec, text: str | Path, tokens: int | None, sequence: int | None
) -> Sequences:
    """Cut `text`, ``builtin`` or a UTF-8 file, into sequences.

    Args:
        tokens: how many in all, at most; fewer where the text has no more.
        sequence: tokens of each sequence.

    Raises:
        EdgepackError: a number is out of range, the text cannot be read or is too short, or the tokenizer is missing or
            that of another model.
    """
    length = _sequence_length(spec, sequence)
    most = _sequence_count(tokens, length)
    codec = _codec(checkpoint)
    start = codec.encode("")
    taken: Sequence[int]
    if str(text) == BUILTIN:
        texts, digest = builtin_texts()
        name, said = BUILTIN, [one.said for one in texts]
        taken = _shares([(t, _ids(codec, spec, t)) for t in texts], most * (length - len(start)))
    else:
        path = Path(text)
        content = read_user_file(path, "text")
        name, digest = path.name, hashlib.sha256(content).hexdigest()
        said = [_decoded(path, content)]
        taken = _encode_long(codec, said[0])
    _require_vocabulary(checkpoint, spec, taken)
    ids = _cut(np.asarray(taken, np.int32), start, length, most)
    if not len(ids):
        raise EdgepackError(
            f"text {name}: {len(taken):,} tokens are fewer than one sequence: expected at least "
            f"{length - len(start):,}; give a longer text, or a smaller --sequence"
        )
    return Sequences(ids, name, digest, sketch_of(said))


def _codec(checkpoint: Checkpoint) -> TextCodec:
    if not (checkpoint.path / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{checkpoint.path}: no tokenizer.json: expected the tokenizer of the checkpoint beside its weights, "
            "which cuts the text into tokens; save or download it there"
        )
    return TextCodec(checkpoint.path)


def _sequence_length(spec: ModelSpec, sequence: int | None) -> int:
    if sequence is None:
        return min(DEFAULT_SEQUENCE, spec.max_context_tokens)
    if isinstance(sequence, bool) or not LEAST_SEQUENCE <= sequence <= spec.max_context_tokens:
        raise EdgepackError(
            f"sequence is {shown(sequence)}: expected {LEAST_SEQUENCE} to {spec.max_context_tokens:,}, the context of "
            "the model"
        )
    return sequence


def _sequence_count(tokens: int | None, length: int) -> int:
    if tokens is None:
        return max(1, DEFAULT_TOKENS // length)
    if isinstance(tokens, bool) or tokens < length:
        raise EdgepackError(f"tokens is {shown(tokens)}: expected at least {length}, the tokens of one sequence")
    return tokens // length


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EdgepackError(f"text {path}: byte {error.start:,} is not UTF-8: save the file as UTF-8") from error


def _encode_long(codec: TextCodec, text: str) -> Sequence[int]:
    """The ids of `text`, a few lines at a time: tokens do not reach over the end of a line."""
    ids = array("i")
    for piece in _pieces(text):
        ids.extend(codec.encode(piece, add_bos=False))
    return ids


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        stop = start + _ENCODED_CHARACTERS
        if stop < len(text):
            stop = text.rfind("\n", start, stop) + 1 or stop
        yield text[start:stop]
        start = stop


def _ids(codec: TextCodec, spec: ModelSpec, text: CalibrationText) -> list[int]:
    """The ids of a built-in text, without a start token."""
    plain = text.text if text.text is not None else _conversation(codec, spec, text)
    ids = codec.encode(plain, add_bos=False)
    return ids[1:] if ids[:1] == [codec.bos_token_id] else ids


def _conversation(codec: TextCodec, spec: ModelSpec, text: CalibrationText) -> str:
    """As the checkpoint's template renders it, or in the turns of the family where there is none that takes it."""
    messages = text.messages or ()
    if codec.has_chat_template:
        try:
            return codec.render_chat(messages, add_generation_prompt=False)
        except EdgepackError:  # some templates know no system turn
            pass
    (begin, end), roles = family_of(spec).turn, {"assistant": "model"}
    return "".join(f"{begin}{roles.get(m['role'], m['role'])}\n{m['content']}{end}" for m in messages)


def _shares(texts: Sequence[tuple[CalibrationText, list[int]]], tokens: int) -> list[int]:
    """The beginnings of all texts, `tokens` in all or what there is: each gives its share, short ones all they have."""
    left, level = float(tokens), 0.0
    weighted = sorted(((len(ids) / _WEIGHTS.get(t.kind, 1), _WEIGHTS.get(t.kind, 1)) for t, ids in texts))
    weights = sum(weight for _, weight in weighted)
    for full, weight in weighted:
        if (full - level) * weights > left:
            break
        left -= (full - level) * weights
        level, weights = full, weights - weight
    level += left / weights if weights else 0.0
    return [i for t, ids in texts for i in ids[: ceil(level * _WEIGHTS.get(t.kind, 1))]]


def _cut(ids: NDArray[np.int32], start: Sequence[int], length: int, most: int) -> NDArray[np.int32]:
    """Up to `most` sequences [N, length] that begin with `start`, evenly spread over `ids`."""
    step = length - len(start)
    count = min(most, len(ids) // step)
    spare = len(ids) - count * step
    places = [i * step + (i * spare // (count - 1) if count > 1 else 0) for i in range(count)]
    rows = [np.concatenate([np.asarray(start, np.int32), ids[place : place + step]]) for place in places]
    return np.stack(rows) if rows else np.empty((0, length), np.int32)


def _require_vocabulary(checkpoint: Checkpoint, spec: ModelSpec, ids: Sequence[int]) -> None:
    largest = max(ids, default=0)
    if largest >= spec.vocab_size:
        raise EdgepackError(
            f"{checkpoint.path}: the tokenizer gives the id {largest:,}: expected less than "
            f"vocab_size={spec.vocab_size:,}; does tokenizer.json belong to another model?"
        )
