"""Forget cached file pages: the page cache is charged to the memory group that reads first, and makes loads warm."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

CAN_DROP = hasattr(os, "posix_fadvise")


def drop_page_cache(files: Iterable[Path]) -> int:
    """Drop the cached pages of `files` as far as nobody maps them; return how many files could be told.

    Pages that were written and not yet on disk are written first, because the system keeps them otherwise. A file that
    cannot be opened is skipped.
    """
    if not CAN_DROP:
        return 0
    dropped = 0
    for file in files:
        try:
            descriptor = os.open(file, os.O_RDONLY)
        except OSError:
            continue
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            dropped += 1
        except OSError:
            continue  # a file system without either call
        finally:
            os.close(descriptor)
    return dropped
