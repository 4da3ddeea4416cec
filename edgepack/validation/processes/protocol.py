"""How the processes of a validation talk: a job in one line on stdin, messages as JSON lines on stdout.

``{"begin": phase}`` comes before a phase. ``{"end": phase, ...figures}`` comes after it: the process then waits for a
line on stdin, so that whoever watches sees it as the phase left it. ``{"note": phase, ...figures}`` gives figures of a
phase that could not wait, ``{"result": {...}}`` what was asked for. The last message is ``{"done": peak RSS in bytes}``
or ``{"error": text, "ours": bool, "refused": bool}``: `ours` marks an `EdgepackError`, and `refused` one that is about
what was asked and not about what the package or its runtime did.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import IO, Any

from edgepack.errors import EdgepackError, PackageError
from edgepack.shown import one_line
from edgepack.system.child import READ_BYTES, end_in_words, last_line
from edgepack.system.process_memory import sample_memory

Message = dict[str, Any]
OnMessage = Callable[[Message], None]
OnPhase = Callable[[str], None]
KINDS = frozenset({"begin", "end", "note", "result", "done", "error"})
# Far more than any message has: what is longer was printed by something else, and is dropped.
MOST_LINE_BYTES = 1 << 26
LOOK_INTERVAL_S = 0.5


class FailedRunError(EdgepackError):
    """A model that died, hung or gave nothing usable: of a package that is a result, of a reference it is not."""


class Channel:
    """The child's end: messages on what was stdout when the process began.

    File descriptor 1 then becomes stderr, so that nothing a library prints gets between the lines.
    """

    def __init__(self) -> None:
        self._out: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, **message: Any) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def begin(self, phase: str) -> None:
        self.send(begin=phase)

    def note(self, phase: str, **figures: Any) -> None:
        """Report `figures` of a phase that is over, without waiting."""
        self.send(note=phase, **figures)

    def end(self, phase: str, **figures: Any) -> None:
        """Report `figures` and wait until the parent has looked; leave where it is gone."""
        self.send(end=phase, **figures)
        if not sys.stdin.readline():
            raise SystemExit(1)

    def give(self, **result: Any) -> None:
        """Report a part of what was asked for."""
        self.send(result=result)


def child_main(run: Callable[[str, Channel], None]) -> int:
    """The main function of a child: give `run` the job and a channel; return the exit code."""
    channel = Channel()
    try:
        run(sys.stdin.readline(), channel)
        # Not `getrusage`, which begins with the peak of the parent.
        sample = sample_memory(os.getpid())
        channel.send(done=sample.peak_rss_bytes if sample else None)
    except EdgepackError as error:
        # What a package or its runtime does is a result; everything else that we refuse is about what was asked.
        channel.send(error=str(error), ours=True, refused=not isinstance(error, (FailedRunError, PackageError)))
        return 1
    except Exception as error:  # noqa: BLE001 - whatever stops a child is told by its parent, in one line
        channel.send(error=f"{type(error).__name__}: {one_line(str(error))}", ours=False, refused=False)
        return 1
    return 0


def follow(
    process: subprocess.Popen[bytes],
    deadline: float,
    on_message: OnMessage,
    *,
    on_look: Callable[[], None] = lambda: None,
    interval_s: float = LOOK_INTERVAL_S,
) -> int | None:
    """Take messages until the process ends; its exit code, or None where `deadline` comes first.

    Args:
        on_look: called at least every `interval_s` seconds.
    """
    assert process.stdout is not None  # it is a pipe
    output, lines = process.stdout.fileno(), _Lines()
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while (left := deadline - monotonic()) > 0:
            ready = selector.select(min(left, interval_s))
            on_look()
            if not ready:
                # A process that it started may have its stdout, and live on. What it wrote at the very end comes first.
                if process.poll() is not None and not selector.select(0):
                    break
                continue
            received = os.read(output, READ_BYTES)
            if not received:
                break
            for line in lines.take(received):
                message = _read_message(line)
                if message is not None:
                    on_message(message)
        else:
            return None
    with suppress(subprocess.TimeoutExpired):
        return process.wait(max(0.0, deadline - monotonic()))
    return None


class _Lines:
    """Whole lines of what comes in pieces."""

    def __init__(self) -> None:
        self._unread, self._is_too_long = b"", False

    def take(self, received: bytes) -> list[bytes]:
        *lines, unread = (self._unread + received).split(b"\n")
        if self._is_too_long and lines:
            del lines[0]  # its beginning is gone, and what is left may look like a message
            self._is_too_long = False
        self._is_too_long |= len(unread) > MOST_LINE_BYTES
        self._unread = b"" if self._is_too_long else unread
        return lines


def _read_message(line: bytes) -> Message | None:
    """A message; None for what something printed before the child took its stdout for itself."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) and not KINDS.isdisjoint(message) else None


def tell(pipe: IO[bytes], line: str) -> None:
    """Write `line` to the child."""
    with suppress(BrokenPipeError):  # the child is gone: its end of stdout and its exit code tell why
        pipe.write(line.encode() + b"\n")
        pipe.flush()


def death_in_words(code: int, phase: str, errors: IO[bytes]) -> str:
    """How a child ended that told no error, with the last line of what it wrote to stderr."""
    return f"{end_in_words(code)} in phase {phase}{last_line(errors)}"
