"""Cached pages of files are dropped, and what cannot be dropped is no error."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from pathlib import Path

import pytest

from edgepack.validation.processes.page_cache import drop_page_cache

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone drops pages this way")


def resident_pages(file: Path) -> int:
    """Pages of `file` in the page cache (man page mincore)."""
    size = file.stat().st_size
    libc = ctypes.CDLL(None, use_errno=True)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_COPY) as view:
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        anchor = ctypes.c_char.from_buffer(view)
        code = libc.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(size), pages)
        del anchor
    assert code == 0
    return sum(page & 1 for page in pages)


def test_cached_pages_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"x" * (64 * mmap.PAGESIZE))
    if resident_pages(file) != 64:
        pytest.skip("this file system does not show its cached pages")
    os.sync()  # the suite does without fsync, and what was never written is kept
    assert drop_page_cache([file]) == 1
    left = resident_pages(file)
    if left == 64:
        pytest.skip("this file system keeps its pages in memory")
    assert left == 0


def test_dropping_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "there"
    file.write_bytes(b"x")
    assert drop_page_cache([tmp_path / "missing", Path("/anon_hugepage (deleted)"), file]) == 1
    assert drop_page_cache([]) == 0

    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "no such call here")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    assert drop_page_cache([file]) == 0
    monkeypatch.setattr("edgepack.validation.processes.page_cache.CAN_DROP", False)
    assert drop_page_cache([file]) == 0
