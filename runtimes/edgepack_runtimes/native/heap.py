"""Giving freed heap memory back to the system while it is still being used by somebody else's allocations."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_INTERVAL_S = 0.1


@contextmanager
def trimmed_heap() -> Iterator[None]:
    """Keep returning freed heap to the system while the body runs, and once more at its end.

    A load of ONNX Runtime packs hundreds of matrices one after another. glibc keeps what they leave free, or not,
    depending on where the heap happens to start: 112 MB of E2B's peak in about every other run. `malloc_trim` takes the
    allocator's own locks and gives back only what is free, so it is safe beside other threads. Does nothing where
    there is no glibc.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is None:
        yield
        return
    done = threading.Event()

    def keep_trimming() -> None:
        while not done.wait(TRIM_INTERVAL_S):
            trim(0)

    thread = threading.Thread(target=keep_trimming, name="trim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        trim(0)
