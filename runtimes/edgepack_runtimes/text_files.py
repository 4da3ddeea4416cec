"""The libraries that texts need, and what they raise: whatever is wrong is one line."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgepack.errors import EdgepackError, PackageError
from edgepack.install import not_installed
from edgepack.text_files import one_line


def import_library(name: str) -> Any:
    """Return module `name`, or raise EdgepackError that says what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
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
