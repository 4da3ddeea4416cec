"""Reading a checkpoint's text files, for the tokenizer and for the chat templates: whatever is wrong is one line."""

from __future__ import annotations

import importlib
import json
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgepack.errors import EdgepackError, PackageError, broken_library, is_missing
from edgepack.shown import printable

# Configurations and templates. Gemma's largest, tokenizer_config.json, has 1.2 MB.
MOST_TEXT_BYTES = 16_000_000
# Gemma's tokenizer.json has 33 MB.
MOST_TOKENIZER_BYTES = 300_000_000


def import_library(name: str) -> Any:
    """Return module `name`.

    Raises:
        EdgepackError: it is not installed, with what to install; or it is and cannot be loaded, with the reason.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if not is_missing(error, name):
            raise broken_library(error, name) from error
        raise EdgepackError(
            f"{name} is not installed: pip install 'edgepack[run]' (or 'edgepack[run-litert]' for LiteRT packages)"
        ) from error


def read_text(path: Path) -> str | None:
    """The text in `path`, which may be a link; None where there is no such file.

    Raises:
        PackageError: it is no file (to read a pipe would never end), too large, or no text.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_TEXT_BYTES:
            raise PackageError(
                f"{path}: expected a file of at most {MOST_TEXT_BYTES} bytes, got {status.st_size} bytes, or no file"
            )
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise PackageError(f"{path}: not a text file that can be read: {one_line(error)}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; empty where there is no such file."""
    text = read_text(path)
    if text is None:
        return {}
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # half a character, written as an escape, which no tokenizer takes
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
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


@contextmanager
def no_panic(path: Path) -> Iterator[None]:
    """Turn a panic of a library in Rust, which is no `Exception`, into a PackageError about `path`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise PackageError(f"{path}: the tokenizer cannot be used: {one_line(error)}; fetch it again") from error


def native_reason(error: Exception) -> str:
    """The message of a native library's error on one line.

    Where a name in the message is not UTF-8, Python raises a UnicodeDecodeError in its place, which holds the message.
    """
    said = error.object.decode("utf-8", "replace") if isinstance(error, UnicodeDecodeError) else str(error)
    return printable(" ".join(said.split()), 1000) or type(error).__name__


def one_line(error: BaseException) -> str:
    """Return the message of `error` without line breaks and control characters; its class where it has none."""
    return printable(" ".join(str(error).split()), 1000) or type(error).__name__
