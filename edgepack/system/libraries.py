"""The libraries that texts need, and what they raise: whatever is wrong is one line."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgepack.errors import EdgepackError, PackageError, broken_library, is_missing, not_installed
from edgepack.shown import one_line


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
        raise EdgepackError(f"{not_installed(name, 'run')} (run-litert in place of run for LiteRT packages)") from error


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
    return one_line(error.object.decode("utf-8", "replace") if isinstance(error, UnicodeDecodeError) else error)
