"""The special tokens of a checkpoint by name, as chat templates know them, from everywhere that Transformers looks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack.errors import TextFileError
from edgepack.shown import shown
from edgepack.text.files import read_json

STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# What Transformers' GemmaTokenizer has where nothing is said. It takes that class unless a file names another one.
GEMMA_CLASS = "GemmaTokenizer"
GEMMA_TOKENS = {
    "unk_token": "<unk>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_EXTRA, _SPECIFIC = "extra_special_tokens", "model_specific_special_tokens"


def read_special_tokens(folder: Path) -> dict[str, str]:
    """`bos_token`, `eos_token` and the like by name, and the further names that the checkpoint gives to tokens.

    Raises:
        TextFileError: a file cannot be read, or a special token is no text.
    """
    found: dict[str, str | None] = dict(declared_tokens(folder))
    tokens = {**_class_tokens(folder), **found}
    return {name: text for name, text in tokens.items() if text is not None}


def declared_tokens(folder: Path) -> dict[str, str | None]:
    """Those of `read_special_tokens` that a file names; None where it says that there is no such token.

    Raises:
        TextFileError: as `read_special_tokens`.
    """
    config = read_json(folder / "tokenizer_config.json")
    # Transformers writes this key since tokenizer_config.json has it all.
    extra = {} if "added_tokens_decoder" in config else read_json(folder / "special_tokens_map.json")
    tokens = {name: _text(folder, name, value) for name, value in {**config, **extra}.items() if _is_token(name, value)}
    named: dict[str, Any] = {name: value for name, value in tokens.items() if name not in STANDARD}
    if not named and not isinstance(config.get(_EXTRA), dict):
        named = _names(config, _SPECIFIC)
    for source in (config, extra):
        named |= _names(source, _EXTRA)
    return tokens | {name: _text(folder, name, value) for name, value in named.items()}


def _is_token(name: str, value: Any) -> bool:
    """Whether this member of a file names a token; `add_bos_token` does not."""
    named = isinstance(value, str) or (isinstance(value, dict) and "content" in value)
    return name in STANDARD or (name.endswith("_token") and named)


def _names(source: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = source.get(key)
    return value if isinstance(value, dict) else {}


def _text(folder: Path, name: str, value: Any) -> str | None:
    """The text of a token; old files wrap it in an object."""
    text = value.get("content") if isinstance(value, dict) else value
    if text is None and name in STANDARD and value is None:
        return None
    if not isinstance(text, str):
        raise TextFileError(
            f"{folder}: tokenizer_config.json or special_tokens_map.json gives the special token {shown(name)} as "
            f"{shown(value)}: expected a text; correct it there, or remove the key"
        )
    return text


def _class_tokens(folder: Path) -> dict[str, str]:
    """What the checkpoint's tokenizer class has without being told."""
    files = ("tokenizer_config.json", "config.json")
    named = next((name for file in files if (name := read_json(folder / file).get("tokenizer_class"))), GEMMA_CLASS)
    return GEMMA_TOKENS if str(named).removesuffix("Fast") == GEMMA_CLASS else {}
