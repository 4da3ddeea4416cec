"""Start a worker, watch its memory from outside, and take whatever happens to it as the result."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import IO, Any

from edgepack.validation.job import Job, Phase
from edgepack.validation.memory import MemoryWatch

SAMPLE_INTERVAL_S = 0.02
READ_BYTES = 1 << 16
OnPhase = Callable[[str], None]


@dataclass(slots=True)
class WorkerRun:
    """What a worker did.

    Attributes:
        memory: its memory, as seen from outside.
        phase: the last phase that it entered.
        figures: what it reported at the end of its phases.
        failure: why it did not come to its end, in words; None when it did.
        refused: the message of the `EdgepackError` that ended it.
    """

    memory: MemoryWatch
    phase: Phase = "start"
    figures: dict[str, Any] = field(default_factory=dict)
    failure: str | None = None
    refused: str | None = None


def worker_command() -> list[str]:
    """The command of a worker."""
    return [sys.executable, "-m", "edgepack.validation.worker"]


def supervise(
    command: Sequence[str], job: Job, *, timeout_s: float, on_phase: OnPhase = lambda phase: None
) -> WorkerRun:
    """Run `command` with `job` on its stdin. How it ends is part of the result, never an exception.

    Args:
        command: a process that speaks the protocol of `edgepack.validation.job`.
        timeout_s: the process and its children are killed after that.
        on_phase: called with the name of each phase as it begins.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with tempfile.TemporaryFile() as errors, _process(command, environment, errors) as process:
        run = WorkerRun(MemoryWatch(process.pid))
        deadline = monotonic() + timeout_s
        in_time = _converse(process, job, run, deadline, on_phase)
        try:
            code = process.wait(max(0.0, deadline - monotonic())) if in_time else None
        except subprocess.TimeoutExpired:
            code = None
        if code is None:
            run.failure = f"stopped in phase {run.phase}: no result within {timeout_s:g} s"
        elif code != 0 and run.failure is None:
            run.failure = f"{_end(code)} in phase {run.phase}{_last_line(errors)}"
    return run


@contextmanager
def _process(
    command: Sequence[str], environment: dict[str, str], errors: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own; at the end of the block it and its children are gone."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environment,
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


def _converse(process: subprocess.Popen[bytes], job: Job, run: WorkerRun, deadline: float, on_phase: OnPhase) -> bool:
    """Follow the worker until it closes its stdout; false when `deadline` comes first."""
    assert process.stdin is not None and process.stdout is not None  # both are pipes
    _tell(process.stdin, job.model_dump_json())
    output, unread = process.stdout.fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while (left := deadline - monotonic()) > 0:
            ready = selector.select(min(left, SAMPLE_INTERVAL_S))
            run.memory.look(run.phase)
            if not ready:
                continue
            received = os.read(output, READ_BYTES)
            if not received:
                return True
            *lines, unread = (unread + received).split(b"\n")
            for line in lines:
                _take(json.loads(line), process.stdin, run, on_phase)
    return False


def _take(message: dict[str, Any], answer: IO[bytes], run: WorkerRun, on_phase: OnPhase) -> None:
    if "begin" in message:
        run.phase = message["begin"]
        on_phase(run.phase)
    elif "end" in message:
        run.memory.look(message.pop("end"))
        run.figures |= message
        _tell(answer, "go on")
    else:
        run.failure = f"failed in phase {run.phase}: {message['error']}"
        run.refused = message["error"] if message["ours"] else None


def _tell(pipe: IO[bytes], line: str) -> None:
    with suppress(BrokenPipeError):  # the worker is gone: its end of stdout and its exit code tell why
        pipe.write(line.encode() + b"\n")
        pipe.flush()


def _end(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    with suppress(ValueError):
        name = signal.Signals(-code).name
        hint = ", which is how a system that is out of memory ends a process," if name == "SIGKILL" else ""
        return f"killed by signal {-code} ({name}){hint}"
    return f"killed by signal {-code}"


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    return f": {lines[-1].strip()}" if lines else ""
