"""The start token of a checkpoint or package: the one answer for exports, bundles and all runtimes.

Config, generation config, tokenizer and chat template each say something about it. Which token it is follows
Transformers: the tokenizer's `bos_token`, else the `bos_token_id` of generation_config.json or config.json, else that
of the family's config class. Chat templates write it themselves; before a plain text it stands where the post-processor
of tokenizer.json puts one. Transformers reads no `add_bos_token` where there is a tokenizer.json, so nothing here does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepack.errors import TextFileError
from edgepack.shown import shown
from edgepack.text.files import read_json
from edgepack.text.special_tokens import declared_tokens, read_special_tokens
from edgepack.text.tokenizer_file import TokenizerFile, read_tokenizer_file

# Of the config classes of both families, for a config that does not have the key.
FAMILY_BOS = 2
_KEY = "bos_token_id"


@dataclass(frozen=True, slots=True)
class StartToken:
    """The token that a text starts with.

    Attributes:
        token_id: its id; None where there is none.
        text: how a text spells it; empty where it has no id or no spelling.
        before_texts: whether a plain text starts with it. Where not, it stands only where a chat template writes it.
        doubt: what does not go together, in one line; None where all does.
        origin: the file and the key that gave the id, for messages.
    """

    token_id: int | None
    text: str = ""
    before_texts: bool = True
    doubt: str | None = None
    origin: str = field(default="", compare=False)


def read_start_token(folder: Path, config: Mapping[str, Any] | None = None) -> StartToken:
    """The start token of the checkpoint or package in `folder`.

    Args:
        config: the content of config.json, where it has been read already.

    Raises:
        TextFileError: a file cannot be read, an id is none, or the tokenizer does not know its own `bos_token`.
    """
    config = read_json(folder / "config.json") if config is None else config
    tokenizer = read_tokenizer_file(folder / "tokenizer.json")
    if tokenizer is None:
        token_id, origin = _configured(folder, config)
        return StartToken(token_id, origin=origin)
    text = read_special_tokens(folder).get("bos_token")
    token_id = None if text is None else tokenizer.token_id(text)
    origin = f"tokenizer.json: {shown(text)}"
    if text is not None and token_id is None and declared_tokens(folder).get("bos_token") is not None:
        raise TextFileError(
            f"{folder}: tokenizer.json has no token {shown(text)}, which tokenizer_config.json or "
            "special_tokens_map.json names as bos_token: name one that it has, or null for none"
        )
    if token_id is None:
        token_id, origin = _configured(folder, config)
        text = None if token_id is None else tokenizer.text_of(token_id)
    doubt = _other_token(tokenizer, token_id, text) or _other_flag(folder, tokenizer)
    return StartToken(token_id, text or "", bool(tokenizer.prefix), doubt, origin)


def _other_token(tokenizer: TokenizerFile, token_id: int | None, text: str | None) -> str | None:
    prefix = tokenizer.prefix
    if not prefix or prefix == (token_id,):
        return None
    return (
        f"the post-processor of tokenizer.json puts {_spelt(tokenizer, prefix)} before a text, and the start token is "
        f"{shown(text) if text else token_id}: texts start with the latter alone"
    )


def _other_flag(folder: Path, tokenizer: TokenizerFile) -> str | None:
    flag = read_json(folder / "tokenizer_config.json").get("add_bos_token")
    if not isinstance(flag, bool) or flag == bool(tokenizer.prefix):
        return None
    what = f"puts {_spelt(tokenizer, tokenizer.prefix)}" if tokenizer.prefix else "puts no token"
    return (
        f"tokenizer_config.json says add_bos_token {str(flag).lower()}, and the post-processor of tokenizer.json "
        f"{what} before a text: the latter counts, as in Transformers 5, which does not read the former"
    )


def _spelt(tokenizer: TokenizerFile, ids: tuple[int, ...]) -> str:
    return " ".join(shown(tokenizer.text_of(token_id) or token_id) for token_id in ids)


def _configured(folder: Path, config: Mapping[str, Any]) -> tuple[int | None, str]:
    """What the configs say, and which does; an explicit null of one does not hide the id of another."""
    inner = config.get("text_config")
    inner = inner if isinstance(inner, dict) else config
    generation = folder / "generation_config.json"
    places = ((generation, read_json(generation)), (folder / "config.json", config), (folder / "config.json", inner))
    for path, values in places:
        token_id = _first_id(path, values.get(_KEY))
        if token_id is not None:
            return token_id, f"{path.name}: {_KEY}"
    return (None, "") if _KEY in inner else (FAMILY_BOS, f"config.json without {_KEY}")


def _first_id(path: Path, value: Any) -> int | None:
    """An id, or the first of a list of them."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in ids):
        raise TextFileError(f"{path}: {_KEY} is {shown(value)}: expected a token id or a list of them")
    return ids[0] if ids else None
