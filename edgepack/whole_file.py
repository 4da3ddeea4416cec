"""A text file that is written whole or not at all, so that a full disk or a signal leaves the earlier one."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8; a link stays, and the file that it leads to is replaced in one step.

    The new file has the permissions of the old one. What nothing can take the place of, such as a pipe, a terminal or a
    file that is mounted by itself, is written where it is.

    Raises:
        OSError: it cannot be written; what stood there before still does.
    """
    try:
        # Asked of the path itself: what /dev/stdout leads to has no name that could be asked for again.
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        path.write_text(text, encoding="utf-8", newline="\n")
        return
    real = Path(os.path.realpath(path))
    partial = real.with_name(f".{real.name}.partial-{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        if mode is not None:
            partial.chmod(stat.S_IMODE(mode))
        os.replace(partial, real)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        real.write_text(text, encoding="utf-8", newline="\n")
    finally:
        partial.unlink(missing_ok=True)
