"""Resident pages of mapped files, and giving them back to the system."""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MADV_DONTNEED = 4
INTERVAL_S = 0.05


def drop_resident_pages(file: Path) -> None:
    """Unmap the resident pages of `file` from this process; they are read again when they are touched.

    A mapping with private changes is left alone, so nothing can be lost. Does nothing outside Linux.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in _unchanged_mappings(file):
        libc.madvise(start, end - start, MADV_DONTNEED)


def _unchanged_mappings(file: Path) -> Iterator[tuple[int, int]]:
    """Address ranges in which `file` is mapped, has resident pages, and was not written to."""
    wanted = str(file.resolve())
    span, resident = None, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        fields = line.split(maxsplit=5)
        if not fields[0].endswith(":"):
            start, end = (int(address, 16) for address in fields[0].split("-"))
            span = (start, end) if len(fields) == 6 and fields[5] == wanted else None
        elif span and fields[0] == "Rss:":
            resident = fields[1] != "0"
        elif span and fields[0] == "Anonymous:" and fields[1] == "0" and resident:
            yield span


@contextmanager
def few_resident_pages(file: Path) -> Iterator[None]:
    """Keep dropping the pages of `file` while the body runs, and once more at its end.

    ONNX Runtime reads every weight once while it opens a session, to check the prepacked bytes against it, and never
    again. Without this those pages would stay resident beside the prepacked ones and double the weights' share of RSS.
    """
    done = threading.Event()

    def keep_dropping() -> None:
        while not done.wait(INTERVAL_S):
            drop_resident_pages(file)

    thread = threading.Thread(target=keep_dropping, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        drop_resident_pages(file)
