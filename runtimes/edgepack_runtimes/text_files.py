"""Reading a checkpoint's text files, for the tokenizer and for the chat templates: whatever is wrong is one line."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack.errors import EdgepackError, PackageError


def import_library(name: str) -> Any:
    """Return module `name`, or raise EdgepackError that says what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EdgepackError(
            f"{name} is not installed: pip install 'edgepack[run]' (or 'edgepack[run-litert]' for LiteRT packages)"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; empty where there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise PackageError(f"{path}: not a JSON file that can be read: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise PackageError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token`, `eos_token` and the like by name; old files wrap the text in an object."""
    found: dict[str, str] = {}
    for key, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            found[key] = content
    return found


def one_line(error: Exception) -> str:
    """Return the message of `error` without line breaks; its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
