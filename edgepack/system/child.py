"""Python processes of ours: their environment, nothing left of them at the end, and their end in words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

READ_BYTES = 1 << 16
_SIGNAL_HINTS = {
    "SIGKILL": ", which is how a system that is out of memory ends a process,",
    "SIGILL": ", which is how a library ends that needs instructions which this CPU lacks,",
}


@contextmanager
def child_process(
    command: Sequence[str], *, stdin: int | IO[bytes], errors: IO[bytes], files: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own; at the end of the block it and its children are gone.

    Args:
        stdin: a file that it reads, or `subprocess.PIPE`; its stdout is always a pipe.
        errors: the file that takes its stderr.
        files: descriptors that it inherits under their numbers.
    """
    process = subprocess.Popen(
        command,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=child_environment(),
        pass_fds=files,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


def python_command(*arguments: str) -> list[str]:
    """The command of a Python process of ours: a file of the folder that the user is in is no module of it."""
    return [sys.executable, "-P", *arguments]


@dataclass(frozen=True, slots=True)
class Ended:
    """What is left of a process.

    Attributes:
        code: its exit code, or the negative number of the signal that killed it.
        output: all that it wrote to stdout.
        problem: why it failed, in its own last line or by its exit code; None where it did not.
    """

    code: int
    output: bytes
    problem: str | None


def run_python(
    *arguments: str, said: Sequence[bytes] = (), timeout_s: float | None = None, files: Sequence[int] = ()
) -> Ended:
    """Run a Python process of ours to its end.

    Args:
        said: its stdin, in pieces, which it reads before it answers.
        files: descriptors that it inherits under their numbers.

    Raises:
        subprocess.TimeoutExpired: it takes longer than `timeout_s`; it is gone then.
    """
    with (
        tempfile.TemporaryFile() as errors,
        child_process(python_command(*arguments), stdin=subprocess.PIPE, errors=errors, files=files) as process,
    ):
        if process.stdin is not None:
            with suppress(BrokenPipeError):  # it has failed, and says why
                for piece in said:
                    process.stdin.write(piece)
        output, _ = process.communicate(timeout=timeout_s)
        problem = last_line(errors).removeprefix(": ") or end_in_words(process.returncode)
    return Ended(process.returncode, output, problem if process.returncode else None)


def child_environment() -> dict[str, str]:
    """The environment of every Python process that we start.

    What it is asked comes in UTF-8, whatever the user's terminal or build step takes.
    """
    return {**os.environ, "PYTHONPATH": os.pathsep.join(import_folders()), "PYTHONIOENCODING": "utf-8"}


def import_folders() -> list[str]:
    """The folders that this process imports from, without the one that the user stands in.

    ``python -m`` puts that one first, and a random.py in it would take the place of Python's. Where edgepack itself
    lies there, it is needed.
    """
    try:
        here = Path.cwd()
    except OSError:  # it has been removed
        here = None
    if here is None:  # Python does not start with a name relative to no folder
        return [path for path in sys.path if os.path.isabs(path)]
    own = Path(__file__).parents[2].resolve()
    return [path for path in sys.path if path and (here == own or Path(path).resolve() != here)]


def end_in_words(code: int) -> str:
    """What an exit code of `subprocess` says."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return f"killed by signal {-code}"
    return f"killed by signal {-code} ({name}){_SIGNAL_HINTS.get(name, '')}"


def last_line(errors: IO[bytes]) -> str:
    """``: `` and the last line of what a process wrote to stderr; nothing where it wrote nothing."""
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    return f": {lines[-1].strip()}" if lines else ""
