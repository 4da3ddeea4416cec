"""What all verbs share: where output goes, progress, and the exit codes.

Results go to stdout, everything else to stderr. Exit codes: 0 good; 1 the answer is no; 2 unusable input; 70 a
mistake of edgepack itself, which Python alone would end with 1, the answer no.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from edgepack.checkpoint.hub import is_hub_id
from edgepack.errors import EdgepackError
from edgepack.shown import bounded

ANSWER_NO = 1
UNUSABLE = 2
INTERNAL = 70  # EX_SOFTWARE of sysexits.h
SIGNALLED = 128  # and the number of the signal, as shells say it

# No markup: paths, titles of devices and notes come from users, and [/x] in one of them is only text.
out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def fail(message: str, code: int = UNUSABLE) -> NoReturn:
    """Print one error line on stderr and leave with `code`, whether or not somebody can read it."""
    line = bounded(" ".join(message.split()))
    try:
        err.print("error:", style="red", end=" ")
        err.print(line)
        sys.stderr.flush()
    except (OSError, ValueError):  # a full disk under it: the exit code still has to be true
        _to_nowhere(2)
    sys.exit(code)


class Interrupted(SystemExit):
    """A signal asks to leave. Everything is cleaned up on the way, and `main` says the line at the end.

    Attributes:
        said: what was written and what was not; the innermost block that knows has set it.
    """

    said: str | None = None


@contextmanager
def told_of_interruption(what: Callable[[], str | None]) -> Iterator[None]:
    """Say `what` where a signal ends the block: asked once the block is cleaned up, it can look at what is left."""
    try:
        yield
    except Interrupted as signal:
        if signal.said is None:
            signal.said = what()
        raise


def say_interrupted(said: str | None) -> None:
    """The last line of a run that a signal has ended."""
    line = bounded(f"interrupted: {said}" if said else "interrupted")
    # Not by `err`: the terminal may be what has gone, and rich would leave with another exit code.
    with suppress(OSError):
        os.write(2, f"{line}\n".encode("utf-8", "backslashreplace"))


def nothing_written(checkpoint: str) -> str:
    """What an interruption leaves before any output: nothing, but for what the hub library keeps."""
    downloads = is_hub_id(checkpoint) and not os.path.exists(checkpoint)
    return "nothing was written" + (", downloads so far stay in the hub cache" if downloads else "")


def open_standard_streams() -> None:
    """Give the streams that were closed for us (``>&-``) to /dev/null.

    Python has no `sys.stdout` then, and the next file that is opened would take the number.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
    # Not by these numbers: whatever was imported may have opened a file there already.
    sys.stdout = sys.stdout or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def keep_stdout() -> None:
    """Take standard output for ourselves: what native libraries write to descriptor 1 goes to stderr from now on.

    With --json there is one document on stdout, whatever they say. A character that the encoding of stdout lacks is
    written as its number: the answer and its exit code are not lost over it.
    """
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        return
    stream.flush()
    errors = "backslashreplace" if stream.errors in ("strict", "surrogateescape") else stream.errors
    own = os.dup(stream.fileno())
    if stream.fileno() == 1:  # else that number may be a file of whatever was imported
        os.dup2(2, 1)
    sys.stdout = SafeStdout(os.fdopen(own, "wb"), encoding=stream.encoding, errors=errors, line_buffering=True)


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send to stderr what Python libraries print meanwhile."""
    with redirect_stdout(sys.stderr):
        yield


def _to_nowhere(number: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)


def keep_stderr() -> None:
    """Let standard error go silent where nobody can read it: the exit code is the answer, with it or without."""
    stream = sys.stderr
    if isinstance(stream, io.TextIOWrapper):
        encoding = stream.encoding
        # The same descriptor, not a copy: what native libraries say is caught by taking its place.
        sys.stderr = SafeStream(stream.detach(), encoding=encoding, errors="backslashreplace", line_buffering=True)


class SafeStream(io.TextIOWrapper):
    """A stream whose reader may leave: what cannot be written is dropped, and `_failed` hears of it."""

    def write(self, text: str, /) -> int:
        """Write `text`, or drop it where nobody reads."""
        self._guard(lambda: super(SafeStream, self).write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, or drop what is buffered where nobody reads."""
        self._guard(super().flush)

    def _guard(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            _to_nowhere(self.fileno())
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        pass


class SafeStdout(SafeStream):
    """Standard output. A command goes on without a reader (``| head -1``): its exit code tells what it found out.

    Any other failure, such as a full disk, is raised as `EdgepackError`.

    Attributes:
        reader_left: nobody reads any more; a command whose output is all that it is for may end.
    """

    reader_left = False

    def _failed(self, error: OSError) -> None:
        self.reader_left = True
        if not isinstance(error, BrokenPipeError):
            raise EdgepackError(f"standard output cannot be written: {error.strerror}") from error


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr if that is a terminal; the body gets a function of (done, total, what runs)."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *times, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(title, total=None)

        def update(done: float, total: float, phase: str = "") -> None:
            described = f"{title}: {phase}" if phase else title
            progress.update(task, completed=done, total=total, description=described)

        yield update
