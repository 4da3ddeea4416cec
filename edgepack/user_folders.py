"""Folders of the user on machines that may have no home for them, and the names that a path may have."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from edgepack.errors import EdgepackError
from edgepack.shown import printable

MOST_PATH_CHARACTERS = 300


def home_folder() -> Path | None:
    """The user's home; None where neither HOME nor the system's list of users has one."""
    try:
        return Path.home()
    except RuntimeError:  # a user id without an entry
        return None


def private_temporary_folder(name: str, *, variable: str) -> Path:
    """A folder for this user alone in the folder for temporary files, made if it is missing.

    Anybody may write there: a folder that somebody else has put in its place would feed us files of theirs.

    Args:
        variable: environment variable that names another folder, for the error.

    Raises:
        EdgepackError: it cannot be made, or is not this user's alone.
    """
    way_out = f"set {variable} to a folder that can be written"
    try:
        folder = Path(tempfile.gettempdir(), f"{name}-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise EdgepackError(
            f"no home folder, and no place for temporary files ({error.strerror}): {way_out}"
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise EdgepackError(f"no home folder, and {folder} is not a folder of this user alone: {way_out}")
    return folder


def require_utf8(path: Path, what: str) -> None:
    """Refuse a path whose bytes are not UTF-8: no runtime can open it, and no JSON can hold it.

    Args:
        what: the path in words, for the error.

    Raises:
        EdgepackError: with the path in characters that everything can show.
    """
    text = str(path)
    try:
        utf8 = text.encode("utf-8") == os.fsencode(text)  # in a Latin-1 locale they differ where both are possible
    except UnicodeError:
        utf8 = False
    if not utf8:
        raise EdgepackError(
            f"{what} is {printable(text, MOST_PATH_CHARACTERS)}, which is not UTF-8, so runtimes cannot open it: "
            "rename it, or give a link to it that has a plain name"
        )
