"""Reading the text files of a checkpoint or package: whatever is wrong is one line."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from edgepack.errors import EdgepackError, TextFileError
from edgepack.reading import loads_object
from edgepack.shown import one_line

# Where Transformers keeps the chat templates beside the default one, each in a file of its name.
TEMPLATE_FOLDER = "additional_chat_templates"
# Configurations and templates. Gemma's largest, tokenizer_config.json, has 1.2 MB.
MOST_TEXT_BYTES = 16_000_000
# Gemma's tokenizer.json has 33 MB.
MOST_TOKENIZER_BYTES = 300_000_000


def require_file(
    path: Path,
    most_bytes: int,
    *,
    links: bool = True,
    error: type[EdgepackError] = TextFileError,
    way_out: str = "is it the right file?",
) -> int:
    """Size of the file `path`.

    Args:
        links: whether it may be a link to one.
        error: raised where it is none.
        way_out: ends the message.

    Raises:
        EdgepackError: it is no file (to read a pipe would never end), or too large; it is of the class `error`.
        OSError: there is none, or it cannot be looked at.
    """
    status = path.stat() if links else path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{path} is {kind_in_words(status.st_mode)}: expected a file; {way_out}")
    if status.st_size > most_bytes:
        raise error(f"{path} has {status.st_size:,} bytes: expected at most {most_bytes:,}; {way_out}")
    return status.st_size


def kind_in_words(mode: int) -> str:
    """What has the `mode` of a `stat` and is no file."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


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
        return loads_object(text, unique_keys=False)
    except ValueError as error:
        raise TextFileError(f"{path}: {one_line(error)}") from error
