"""tokenizer.json to a SentencePiece model, for tokenizers put together as Gemma's are.

The two name the same merges in different ways. A BPE of `tokenizers` joins the neighbours whose merge stands first in a
list; SentencePiece joins those whose union is the piece with the highest score. So a piece scores minus the rank of the
first merge that makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def to_sentencepiece(data: Mapping[str, Any]) -> bytes:
    """The SentencePiece model of a parsed tokenizer.json that is like Gemma's.

    Raises:
        ValueError: most of its ids have no token.
    """
    model, added = data["model"], {token["content"]: token["id"] for token in data.get("added_tokens") or ()}
    names = {token_id: name for name, token_id in model["vocab"].items()}
    names.update((token_id, name) for name, token_id in added.items())
    size = max(names) + 1
    if size > 2 * len(names):
        raise ValueError(f"{size} ids for {len(names)} tokens")
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        # A pair, or in files of older versions a text with one space.
        ranks.setdefault("".join(merge) if isinstance(merge, list) else merge.replace(" ", "", 1), rank)
    last = len(model["merges"])
    result = proto.ModelProto()
    for token_id in range(size):
        # A piece needs a name of its own, even where the id has none.
        name = names.get(token_id, f"<edgepack_{token_id}>")
        result.pieces.add(
            piece=name,
            score=-ranks.get(name, last),
            type=_type(name, token_id in names, name in added, name == model["unk_token"], name in ranks),
        )
    _describe(result, model["unk_token"])
    return bytes(result.SerializeToString(deterministic=True))


def _type(name: str, exists: bool, added: bool, unknown: bool, merged: bool) -> int:
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
    elif exists and (merged or len(name) == 1):
        kind = types.NORMAL
    else:
        kind = types.UNUSED
    return int(kind)


def _describe(result: Any, unknown: str) -> None:
    """Say how texts are treated: as they are, except that a space is written as a piece has it."""
    ids = {piece.piece: token_id for token_id, piece in enumerate(result.pieces)}
    trainer = result.trainer_spec
    trainer.model_type, trainer.vocab_size, trainer.byte_fallback = proto.TrainerSpec.BPE, len(ids), True
    for role, name in zip(("pad", "bos", "eos", "unk"), (*CONTROL, unknown), strict=True):
        setattr(trainer, f"{role}_id", ids.get(name, -1))
        setattr(trainer, f"{role}_piece", name)
    normalizer = result.normalizer_spec
    normalizer.name, normalizer.escape_whitespaces = "identity", True
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = False
