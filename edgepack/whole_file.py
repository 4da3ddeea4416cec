"""A text file that is written whole or not at all, so that a full disk or a signal leaves the earlier one."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8; a link stays, and the file that it leads to is replaced in one step.

    Raises:
        OSError: it cannot be written; what stood there before still does.
    """
    real = Path(os.path.realpath(path))
    if real.exists() and not real.is_file():  # a pipe or a terminal, which nothing can take the place of
        real.write_text(text, encoding="utf-8", newline="\n")
        return
    partial = real.with_name(f".{real.name}.partial-{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.replace(partial, real)
    finally:
        partial.unlink(missing_ok=True)
