"""Resident pages of mapped files, and giving them back to the system."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import RLock

MADV_RANDOM, MADV_DONTNEED = 1, 4
Span = tuple[int, int]

# Held from a first look at `mapped_spans` over opening a file to the second look: what is new is then one's own, and
# not that of another thread that opens the same file meanwhile.
opening_files = RLock()


def mapped_spans(files: Iterable[Path]) -> frozenset[Span]:
    """Address ranges in which this process maps `files` without having changed them; empty without /proc.

    ONNX Runtime maps weights privately and writable: a range without anonymous pages was not written to.
    """
    if not sys.platform.startswith("linux"):
        return frozenset()
    try:
        maps = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return frozenset()
    return frozenset(_unchanged(maps, {str(file.resolve()) for file in files}))


def _unchanged(maps: str, paths: set[str]) -> Iterator[Span]:
    span: Span | None = None
    for line in maps.split("\n")[:-1]:  # names may hold what splitlines() takes for a line break
        fields = line.split(maxsplit=5)
        if not fields[0].endswith(":"):
            start, end = (int(address, 16) for address in fields[0].split("-"))
            span = (start, end) if len(fields) == 6 and fields[5] in paths else None
        elif span is not None and fields[0] == "Anonymous:" and fields[1] == "0":
            yield span


def drop_resident_pages(spans: Iterable[Span]) -> None:
    """Unmap the resident pages of `spans`; they are read again when they are touched.

    The caller owns these mappings: were one of them unmapped meanwhile, somebody else's memory could be at its address
    and would be lost. So spans are taken when a session is opened and dropped only while that session is held.
    """
    _advise(spans, MADV_DONTNEED)


def expect_random_access(spans: Iterable[Span]) -> None:
    """Switch reading ahead off for `spans`: a looked-up row then reads its own pages and not megabytes around them."""
    _advise(spans, MADV_RANDOM)


def _advise(spans: Iterable[Span], advice: int) -> None:
    if not spans:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in spans:
        libc.madvise(start, end - start, advice)
