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
    """The folders that this process imports from, without the user's: where they stand, and where their script lies.

    Python puts one of them first, and a random.py in it would take the place of Python's. Where edgepack itself lies
    there, it is needed.
    """
    own, here = Path(__file__).parents[2].resolve(), _working_folder()
    users = {folder for folder in (here, _script_folder()) if folder not in (None, own)}
    # Where the working folder has been removed, Python does not start with a name relative to it.
    usable = [path for path in sys.path if (path if here else os.path.isabs(path))]
    return [path for path in usable if Path(path).resolve() not in users]


def _working_folder() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # it has been removed
        return None


def _script_folder() -> Path | None:
    """The folder of the script that was started; None for ``python -m`` and ``python -c``."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    return Path(file).resolve().parent if file and getattr(main, "__spec__", None) is None else None


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
