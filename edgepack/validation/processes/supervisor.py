"""Start a worker, watch its memory from outside, and take whatever happens to it as the result."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import IO, Any

from edgepack.system.child import READ_BYTES, child_process, end_in_words, last_line
from edgepack.system.process_memory import sample_memory
from edgepack.units import format_bytes
from edgepack.validation.processes.job import START, Job
from edgepack.validation.processes.limit import MemoryLimit
from edgepack.validation.processes.mappings import MappedMemory, read_mappings
from edgepack.validation.processes.memory import MemoryWatch
from edgepack.validation.result import LimitFacts

SAMPLE_INTERVAL_S = 0.02
KEYS = frozenset({"begin", "end", "note", "error"})
OnPhase = Callable[[str], None]
NO_LIMIT = MemoryLimit(LimitFacts(method="none", enforced=False, limit_bytes=None))


@dataclass(slots=True)
class WorkerRun:
    """What a worker did.

    Attributes:
        memory: its memory, as seen from outside.
        phase: the last phase that it entered.
        figures: what it reported at the end of each phase.
        mappings: what its memory was made of then.
        failure: why it did not come to its end, in words; None when it did.
        refused: the message of the `EdgepackError` that ended it.
        at_limit: the kernel ended it because it needed more than the limit.
        uncharged_bytes: the most pages by which the kernel's limit was lowered, see `MemoryLimit.count_uncharged`.
    """

    memory: MemoryWatch
    phase: str = START
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    mappings: dict[str, MappedMemory] = field(default_factory=dict)
    failure: str | None = None
    refused: str | None = None
    at_limit: bool = False
    uncharged_bytes: int | None = None


def worker_command() -> list[str]:
    """The command of a worker."""
    # -P: a module of the folder that the user stands in must not take the place of one of Python's.
    return [sys.executable, "-P", "-m", "edgepack.validation.processes.worker"]


def supervise(
    command: Sequence[str],
    job: Job,
    *,
    timeout_s: float,
    limit: MemoryLimit = NO_LIMIT,
    on_phase: OnPhase = lambda phase: None,
) -> WorkerRun:
    """Run `command` with `job` on its stdin. How it ends is part of the result, never an exception.

    Args:
        command: a process that speaks the protocol of `edgepack.validation.processes.job`.
        timeout_s: the process and its children are killed after that.
        limit: the memory limit in which the process begins its life.
        on_phase: called with the name of each phase as it begins.
    """
    kills_before = limit.kills()
    with (
        tempfile.TemporaryFile() as errors,
        child_process(limit.command(command), stdin=subprocess.PIPE, errors=errors) as process,
    ):
        account = _Account(limit, process.pid)
        run = WorkerRun(MemoryWatch(process.pid, account.charged_bytes))
        run.memory.enter(run.phase)
        deadline = monotonic() + timeout_s
        in_time = _converse(process, job, run, account, deadline, on_phase)
        try:
            code = process.wait(max(0.0, deadline - monotonic())) if in_time else None
        except subprocess.TimeoutExpired:
            code = None
        # The scope of systemd is gone together with its account, so there the signal has to do.
        at_signal = limit.facts.method == "systemd-run" and code == -signal.SIGKILL
        killed = at_signal or max(account.kills, limit.kills()) > kills_before
        run.at_limit = killed and limit.reached()
        if killed:
            run.failure = _killed(run, limit)
        elif code is None:
            run.failure = f"stopped in phase {run.phase}: no result within {timeout_s:g} s"
        elif code != 0:
            run.failure = run.failure or f"{end_in_words(code)} in phase {run.phase}{last_line(errors)}"
    return run


class _Account:
    """What the limit knows of a worker; systemd tells the group only after the start."""

    def __init__(self, limit: MemoryLimit, pid: int) -> None:
        self._limit, self._pid = limit, pid
        self.kills = 0

    def charged_bytes(self) -> int | None:
        """Bytes charged to the limit now."""
        found = self._found()
        if found.facts.method == "systemd-run":  # which takes the group away with its last process
            self.kills = max(self.kills, found.kills())
        return found.charged_bytes()

    def count_uncharged(self) -> int | None:
        """Lower the limit by what the worker maps at the cost of others, while it waits; return the bytes."""
        sample = sample_memory(self._pid)
        if sample is None or sample.file_bytes is None:
            return None
        return self._found().count_uncharged(sample.file_bytes + (sample.shared_bytes or 0))

    def _found(self) -> MemoryLimit:
        if self._limit.group is None:
            self._limit = self._limit.followed(self._pid)
        return self._limit


def _killed(run: WorkerRun, limit: MemoryLimit) -> str:
    """The kernel may have ended a child: then the worker itself lived, and told what it missed, or nothing."""
    limit_bytes = limit.facts.limit_bytes or 0
    size = f"{limit_bytes:,} bytes ({format_bytes(limit_bytes)})"
    if run.at_limit:
        return f"killed at {size} in phase {run.phase}"
    return (
        f"killed in phase {run.phase} for want of memory, but not at the limit of {size}: "
        "a tighter limit around it, or the machine itself, had none left"
    )


def _converse(
    process: subprocess.Popen[bytes],
    job: Job,
    run: WorkerRun,
    account: _Account,
    deadline: float,
    on_phase: OnPhase,
) -> bool:
    """Follow the worker until it closes its stdout; false when `deadline` comes first."""
    assert process.stdin is not None and process.stdout is not None  # both are pipes
    _tell(process.stdin, job.model_dump_json())
    output, unread = process.stdout.fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while (left := deadline - monotonic()) > 0:
            ready = selector.select(min(left, SAMPLE_INTERVAL_S))
            run.memory.look()
            if not ready:
                # A process that it started may have its stdout, and live on. What it wrote at the very end comes first.
                if process.poll() is not None and not selector.select(0):
                    return True
                continue
            received = os.read(output, READ_BYTES)
            if not received:
                return True
            *lines, unread = (unread + received).split(b"\n")
            for line in lines:
                message = _read_message(line)
                if message is not None:
                    _take(message, process.stdin, run, account, on_phase)
    return False


def _read_message(line: bytes) -> dict[str, Any] | None:
    """A line of the protocol; None for what something printed before the worker took its stdout for itself."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and not KEYS.isdisjoint(message) else None


def _take(message: dict[str, Any], answer: IO[bytes], run: WorkerRun, account: _Account, on_phase: OnPhase) -> None:
    if "begin" in message:
        run.phase = message["begin"]
        run.memory.enter(run.phase)
        on_phase(run.phase)
    elif "end" in message:
        phase = message.pop("end")
        run.memory.leave()
        mappings = read_mappings(run.memory.pid)
        if mappings is not None:
            run.mappings[phase] = mappings
        uncharged_bytes = account.count_uncharged()
        if uncharged_bytes is not None:
            run.uncharged_bytes = max(run.uncharged_bytes or 0, uncharged_bytes)
        run.figures[phase] = message
        _tell(answer, "go on")
    elif "note" in message:
        run.figures[message.pop("note")] = message
    else:
        run.failure = f"failed in phase {run.phase}: {message['error']}"
        run.refused = message["error"] if message["ours"] else None


def _tell(pipe: IO[bytes], line: str) -> None:
    with suppress(BrokenPipeError):  # the worker is gone: its end of stdout and its exit code tell why
        pipe.write(line.encode() + b"\n")
        pipe.flush()
