"""Start a worker, watch its memory from outside, and take whatever happens to it as the result."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import IO, Any

from edgepack.system.child import child_process, python_command
from edgepack.system.process_memory import sample_memory
from edgepack.units import format_bytes
from edgepack.validation.processes.job import START, WorkerJob
from edgepack.validation.processes.limit import MemoryLimit
from edgepack.validation.processes.mappings import MappedMemory, read_mappings
from edgepack.validation.processes.memory import MemoryWatch
from edgepack.validation.processes.protocol import (
    Message,
    OnPhase,
    death_in_words,
    follow,
    tell,
)
from edgepack.validation.records import LimitFacts

SAMPLE_INTERVAL_S = 0.02
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
    return python_command("-m", "edgepack.validation.processes.worker")


def supervise(
    command: Sequence[str],
    job: WorkerJob,
    *,
    timeout_s: float,
    limit: MemoryLimit = NO_LIMIT,
    on_phase: OnPhase = lambda phase: None,
) -> WorkerRun:
    """Run `command` with `job` on its stdin. How it ends is part of the result, never an exception.

    Args:
        command: a process that speaks the protocol of `edgepack.validation.processes.protocol`.
        timeout_s: the process and its children are killed after that.
        limit: the memory limit in which the process begins its life.
        on_phase: called with the name of each phase as it begins.
    """
    kills_before = limit.kills()
    with (
        tempfile.TemporaryFile() as errors,
        child_process(limit.command(command), stdin=subprocess.PIPE, errors=errors) as process,
    ):
        account = CgroupAccount(limit, process.pid)
        run = WorkerRun(MemoryWatch(process.pid, account.charged_bytes))
        run.memory.enter(run.phase)
        deadline = monotonic() + timeout_s
        assert process.stdin is not None  # it is a pipe
        tell(process.stdin, job.model_dump_json())
        on_message = partial(_take, answer=process.stdin, run=run, account=account, on_phase=on_phase)
        code = follow(process, deadline, on_message, on_look=run.memory.look, interval_s=SAMPLE_INTERVAL_S)
        # The scope of systemd is gone together with its account, so there the signal has to do.
        at_signal = limit.facts.method == "systemd-run" and code == -signal.SIGKILL
        killed = at_signal or max(account.kills, limit.kills()) > kills_before
        run.at_limit = killed and limit.reached()
        if killed:
            run.failure = _killed(run, limit)
        elif code is None:
            run.failure = f"stopped in phase {run.phase}: no result within {timeout_s:g} s"
        elif code != 0:
            run.failure = run.failure or death_in_words(code, run.phase, errors)
    return run


class CgroupAccount:
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


def _take(message: Message, answer: IO[bytes], run: WorkerRun, account: CgroupAccount, on_phase: OnPhase) -> None:
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
        tell(answer, "go on")
    elif "note" in message:
        run.figures[message.pop("note")] = message
    elif "error" in message:
        run.failure = f"failed in phase {run.phase}: {message['error']}"
        run.refused = message["error"] if message["ours"] else None
