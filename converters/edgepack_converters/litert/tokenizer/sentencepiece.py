"""tokenizer.json to a SentencePiece model, for tokenizers put together as Gemma's are.

The two name the same merges in different ways. A BPE of `tokenizers` joins the neighbours whose merge stands first in a
list; SentencePiece joins those whose union is the piece with the highest score. So a piece scores minus the rank of the
first merge that makes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from edgepack.shown import shown

# Its classes come into being when it is imported, unseen by type checkers.
proto: Any = sentencepiece_model_pb2

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
# In SentencePiece these have no text and are never found in one. A checkpoint may well call <end_of_turn> its
# eos_token, which has to be found in chats: so their names decide here, and not their roles.
CONTROL = ("<pad>", "<bos>", "<eos>")
# What a text never has in SentencePiece; `tokenizers` finds it where a text spells it out.
SILENT = (*CONTROL, "<unk>")

_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
_ESCAPE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
# Finds no space, as all have been replaced by then.
_NO_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
_PIECES_AT_ONCE = 8192
_FLAGS = ("lstrip", "rstrip", "single_word")
_DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ],
}


def unlike_gemma(data: Mapping[str, Any]) -> str | None:
    """Why a parsed tokenizer.json cannot become a SentencePiece model; None where it can be tried."""
    model = data.get("model") or {}
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        return "its model is no BPE with byte_fallback"
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(name):
            return f"its model has {name} {shown(model[name])}"
    if model.get("unk_token") not in model["vocab"] or not model["vocab"].keys() >= _BYTES:
        return "its vocabulary has not all of unk_token and <0x00> to <0xFF>"
    if data.get("normalizer") != _ESCAPE:
        return f"its normalizer does something else than to write {SPACE} for a space"
    if data.get("pre_tokenizer") not in (None, _NO_SPLIT):
        return "its pre_tokenizer splits texts"
    if data.get("decoder") != _DECODER:
        return "its decoder is not Replace, ByteFallback and Fuse"
    for token in data.get("added_tokens") or ():
        content = token["content"]
        if not content or " " in content or SPACE in content or any(token.get(flag) for flag in _FLAGS):
            return f"its added token {shown(content)} contains a space or takes in its surroundings"
    return None


def to_sentencepiece(data: Mapping[str, Any], merges: Iterable[str]) -> bytes:
    """The SentencePiece model of a parsed tokenizer.json that is like Gemma's.

    Args:
        data: all of it; its own list of merges is not looked at.
        merges: what every merge makes, in their order.

    Raises:
        ValueError: most of its ids have no token.
    """
    model, added = data["model"], {token["content"]: token["id"] for token in data.get("added_tokens") or ()}
    vocab: dict[str, int] = model["vocab"]
    size = max(chain(vocab.values(), added.values())) + 1
    if size > 2 * (len(vocab) + len(added)):
        raise ValueError(f"{size} ids for {len(vocab)} tokens")
    names: list[str | None] = [None] * size
    for name, token_id in chain(vocab.items(), added.items()):
        names[token_id] = name
    ranks, last = _ranks(vocab, merges, size)
    parts = []
    for start in range(0, size, _PIECES_AT_ONCE):
        # A message of some pieces at a time: written one behind the other they are the message of all.
        result = proto.ModelProto()
        for token_id, name in enumerate(names[start : start + _PIECES_AT_ONCE], start):
            rank = ranks[token_id]
            result.pieces.add(
                # A piece needs a name of its own, even where the id has none.
                piece=f"<edgepack_{token_id}>" if name is None else name,
                score=-(last if rank is None else rank),
                type=_type(name, name in added, name == model["unk_token"], rank is not None),
            )
        parts.append(result.SerializeToString(deterministic=True))
    ids = {name: names.index(name) for name in (*CONTROL, model["unk_token"]) if name in names}
    parts.append(_description(ids, size, model["unk_token"]).SerializeToString(deterministic=True))
    return b"".join(parts)


def _ranks(vocab: Mapping[str, int], merges: Iterable[str], size: int) -> tuple[list[int | None], int]:
    """By id, the rank of the first merge that makes the token, or None; and how many merges there are."""
    ranks: list[int | None] = [None] * size
    count = 0
    for rank, name in enumerate(merges):
        count = rank + 1
        token_id = vocab.get(name)
        if token_id is not None and ranks[token_id] is None:
            ranks[token_id] = rank
    return ranks, count


def _type(name: str | None, added: bool, unknown: bool, merged: bool) -> int:
    types = proto.ModelProto.SentencePiece
    if unknown:
        kind = types.UNKNOWN
    elif name in CONTROL:
        kind = types.CONTROL
    elif added:
        kind = types.USER_DEFINED
    elif name in _BYTES:
        kind = types.BYTE
    # Without a merge only a character is ever found: SentencePiece takes anything else apart again if it is unused.
    elif name is not None and (merged or len(name) == 1):
        kind = types.NORMAL
    else:
        kind = types.UNUSED
    return int(kind)


def _description(ids: Mapping[str, int], size: int, unknown: str) -> Any:
    """How texts are treated: as they are, except that a space is written as a piece has it."""
    result = proto.ModelProto()
    trainer = result.trainer_spec
    trainer.model_type, trainer.vocab_size, trainer.byte_fallback = proto.TrainerSpec.BPE, size, True
    for role, name in zip(("pad", "bos", "eos", "unk"), (*CONTROL, unknown), strict=True):
        setattr(trainer, f"{role}_id", ids.get(name, -1))
        setattr(trainer, f"{role}_piece", name)
    normalizer = result.normalizer_spec
    normalizer.name, normalizer.escape_whitespaces = "identity", True
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = False
    return result
