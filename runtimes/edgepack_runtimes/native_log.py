"""Keeping what native libraries write to stderr away from the user, unless it explains a failure."""

from __future__ import annotations

import atexit
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_MARKS = re.compile(r"^(?:ERROR|WARNING|[EWF]\d{4} [^\]]*)[:\]]? ?")


@dataclass(slots=True)
class NativeLog:
    """What was written: complete once the block has ended."""

    text: str = ""

    def reason(self) -> str:
        """The last line that tells of an error, else the last line; empty where nothing was written."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR") or re.match(r"E\d{4} ", line)]
        return _MARKS.sub("", (errors or lines or [""])[-1])


def silence_exit() -> None:
    """Keep quiet what native libraries say while the process ends, when nobody can ask them not to."""
    atexit.unregister(_close_stderr)
    atexit.register(_close_stderr)


def _close_stderr() -> None:
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


@contextmanager
def captured_log() -> Iterator[NativeLog]:
    """Take everything that this process writes to file descriptor 2 meanwhile."""
    log = NativeLog()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield log
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            log.text = file.read().decode("utf-8", "replace")
