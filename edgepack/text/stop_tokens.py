"""Which tokens end an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgepack.errors import TextFileError
from edgepack.shown import shown
from edgepack.text.files import read_json
from edgepack.text.special_tokens import read_special_tokens
from edgepack.text.tokenizer_file import read_tokenizer_file

_END_OF_TURN = "<end_of_turn>"


def read_eos_token_ids(folder: str | Path) -> frozenset[int]:
    """Return the `eos_token_id` values (one id or a list) of generation_config.json and config.json in `folder`.

    Works without a tokenizer. Raises TextFileError where a file is not JSON or a value is no token id.
    """
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        path = Path(folder) / name
        for config in _with_text_config(read_json(path)):
            value = config.get("eos_token_id")
            ids = value if isinstance(value, list) else [] if value is None else [value]
            if any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in ids):
                raise TextFileError(f"{path}: eos_token_id is {shown(value)}: expected a token id or a list of them")
            found.update(ids)
    return frozenset(found)


def read_stop_token_ids(folder: str | Path) -> frozenset[int]:
    """Return the ids that end an answer in text: those of `read_eos_token_ids`, and of the tokenizer.

    Its own are `eos_token` and Gemma's `<end_of_turn>`, where it has them. The tokenizer is not opened.
    """
    root = Path(folder)
    tokenizer = read_tokenizer_file(root / "tokenizer.json")
    found = read_eos_token_ids(root)
    if tokenizer is None:
        return found
    names = (read_special_tokens(root).get("eos_token", ""), _END_OF_TURN)
    return found | {tokenizer.added[name] for name in names if name in tokenizer.added}


def _with_text_config(config: dict[str, Any]) -> list[dict[str, Any]]:
    inner = config.get("text_config")
    return [config, inner] if isinstance(inner, dict) else [config]
