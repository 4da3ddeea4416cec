"""Reading the text files of a checkpoint or package: whatever is wrong is one line."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from edgepack.errors import TextFileError
from edgepack.shown import printable

# Where Transformers keeps the chat templates beside the default one, each in a file of its name.
TEMPLATE_FOLDER = "additional_chat_templates"
# Configurations and templates. Gemma's largest, tokenizer_config.json, has 1.2 MB.
MOST_TEXT_BYTES = 16_000_000
# Gemma's tokenizer.json has 33 MB.
MOST_TOKENIZER_BYTES = 300_000_000


def require_file(path: Path, most_bytes: int) -> int:
    """Size of the file `path`, which may be a link.

    Raises:
        TextFileError: it is no file (to read a pipe would never end), or too large.
        OSError: there is none, or it cannot be looked at.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > most_bytes:
        raise TextFileError(
            f"{path}: expected a file of at most {most_bytes} bytes, got {status.st_size} bytes, or no file"
        )
    return status.st_size


def read_text(path: Path) -> str | None:
    """The text in `path`, which may be a link; None where there is no such file.

    Raises:
        TextFileError: it is no file, too large, or no text.
    """
    try:
        require_file(path, MOST_TEXT_BYTES)
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TextFileError(f"{path}: not a text file that can be read: {one_line(error)}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; empty where there is no such file.

    Raises:
        TextFileError: as `read_text`, or it is no JSON object.
    """
    text = read_text(path)
    if text is None:
        return {}
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # half a character, written as an escape, which no tokenizer takes
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise TextFileError(f"{path}: not a JSON file that can be read: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise TextFileError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def one_line(error: BaseException) -> str:
    """Return the message of `error` without line breaks and control characters; its class where it has none."""
    return printable(" ".join(str(error).split()), 1000) or type(error).__name__
