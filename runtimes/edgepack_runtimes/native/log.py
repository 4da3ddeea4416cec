"""Keeping what native libraries write to stderr away from the user, unless it explains a failure."""

from __future__ import annotations

import atexit
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import RLock
from typing import IO

from edgepack.shown import one_line

_ERROR = re.compile(r"(?:ERROR: |E\d{4} )")
_MARKS = re.compile(r"(?:└ *)?(?:(?:ERROR|WARNING): ?|[EWF]\d{4} [^\]]*\] ?)?")
# Native lines; "WARNING:name:text" without a space is Python's logging and no noise.
_NOISE = re.compile(rb"(?:INFO|WARNING|VERBOSE|ERROR): |[IWEF]\d{4} |\s*" + "└".encode())
# What belongs to the native line before it: empty lines, and where in the source an error passed.
_NOISE_GOES_ON = re.compile(rb"\s*$|=== Source Location Trace|\S+\.(?:cc|cpp|h):\d+\s*$")


@dataclass(slots=True)
class NativeLog:
    """What was written: complete once the block has ended."""

    text: str = ""

    def reason(self) -> str:
        """The last error and the causes below it, on one line; empty where nothing tells of an error."""
        found: list[str] = []
        goes_on = False
        for line in filter(None, map(str.strip, self.text.splitlines())):
            if _ERROR.match(line):
                found, goes_on = [line], True
            elif goes_on and line.startswith("└"):
                found.append(line)
            else:
                goes_on = False
        return ": ".join(filter(None, (_MARKS.sub("", line, count=1).strip() for line in found)))

    def reason_of(self, error: Exception) -> str:
        """Why `error` came, on one line for a message: what the library has written, else what it raised."""
        return one_line(self.reason() or error)


class _Redirection:
    """File descriptor 2 in a file, for as long as anybody wants it there: threads overlap, the descriptor is one."""

    def __init__(self) -> None:
        # The same thread may come back: a finalizer or a signal handler that closes a model.
        self._lock = RLock()
        self._users = 0
        self._opened: tuple[int, IO[bytes]] | None = None  # the real stderr, and what stands in for it

    def enter(self) -> int:
        """Redirect, unless that is done already; where in the file the caller's part starts."""
        with self._lock:
            _flush_stderr()
            self._users += 1
            if self._users == 1:
                self._opened = self._open()
            return os.fstat(self._opened[1].fileno()).st_size if self._opened else 0

    def leave(self, start: int) -> str:
        """What was written since `start`; the last one to leave restores the descriptor."""
        with self._lock:
            _flush_stderr()
            text = self._read(start).decode("utf-8", "replace")
            self._users -= 1
            if self._users == 0:
                self.give_back()
            return text

    def give_back(self) -> None:
        """Restore the descriptor, and write to it what was no native library's."""
        with self._lock:
            if self._opened is None:
                return
            _flush_stderr()
            lines = self._read(0).splitlines(keepends=True)
            (kept, file), self._opened = self._opened, None
            os.dup2(kept, 2)
            os.close(kept)
            file.close()
            _write(b"".join(_without_noise(lines)))

    def _open(self) -> tuple[int, IO[bytes]] | None:
        """None where descriptor 2 is closed or there is no place for a file: a model loads without this, too."""
        try:
            kept = os.dup(2)
        except OSError:
            return None
        try:
            file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - the last one to leave closes it
        except OSError:
            os.close(kept)
            return None
        os.dup2(file.fileno(), 2)
        return kept, file

    def _read(self, start: int) -> bytes:
        if self._opened is None:
            return b""
        number = self._opened[1].fileno()
        # Not read(): descriptor 2 shares the position, and others go on writing.
        return os.pread(number, max(0, os.fstat(number).st_size - start), start)


def _flush_stderr() -> None:
    if sys.stderr is not None:  # as under pythonw, or in a service
        with suppress(OSError, ValueError):
            sys.stderr.flush()


def _without_noise(lines: list[bytes]) -> Iterator[bytes]:
    noise = False
    for line in lines:
        noise = bool(_NOISE.match(line) or (noise and _NOISE_GOES_ON.match(line)))
        if not noise:
            yield line


def _write(text: bytes) -> None:
    with suppress(OSError):
        while text:
            text = text[os.write(2, text) :]


_REDIRECTION = _Redirection()
_silent_exit = False


@contextmanager
def captured_log() -> Iterator[NativeLog]:
    """Take everything that this process writes to file descriptor 2 meanwhile.

    Where blocks of several threads overlap, each log has what all of them wrote. Lines that no native library wrote
    appear on stderr after all, once the last block has ended.
    """
    log = NativeLog()
    start = _REDIRECTION.enter()
    try:
        yield log
    finally:
        log.text = _REDIRECTION.leave(start)


def silence_exit() -> None:
    """Keep quiet what native libraries say while the process ends, when nobody can ask them not to."""
    global _silent_exit
    _silent_exit = True


# Handlers run in reverse order: one from the import of this module runs after those of everything that is imported or
# registered later, and what they raise is seen. Still hidden after `silence_exit`: what handlers from before this
# import say, what Python reports while it tears modules down ("Exception ignored in"), and all that native libraries
# write then, a crash included. The exit code is not touched.
@atexit.register
def _end() -> None:
    # A thread may still be loading a model: the traceback that ended the process must not stay in its file.
    _REDIRECTION.give_back()
    if not _silent_exit:
        return
    _flush_stderr()
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if nowhere != 2:  # as it is where 2 was closed
            os.dup2(nowhere, 2)
            os.close(nowhere)
