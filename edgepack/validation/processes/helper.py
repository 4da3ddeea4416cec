"""Helper processes of a quality comparison: a job on stdin, JSON lines on stdout, and one clear line for every end.

A model of this size lives and dies in a process of its own: whatever it takes, or breaks, ends with the process.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from pydantic import BaseModel

from edgepack.errors import EdgepackError, PackageError
from edgepack.system.child import READ_BYTES, child_process, end_in_words, last_line, python_command

OnPhase = Callable[[str], None]
Send = Callable[..., None]
# What waits longer is no check of a build any more, and far longer than that no system call takes.
MOST_TIMEOUT_S = 7 * 86400.0


class FailedRunError(EdgepackError):
    """A model that died, hung or gave nothing usable: of a package that is a result, of a reference it is not."""


@dataclass(slots=True)
class Answer:
    """What a helper said.

    Attributes:
        messages: its lines, without phases.
        phase: the last one that it entered.
        duration_s: from its start to its end, imports included.
        peak_rss_bytes: by its own account at its end; None where the system does not tell.
        ended: it said that it came to its end.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    phase: str = "start"
    duration_s: float = 0.0
    peak_rss_bytes: int | None = None
    ended: bool = False


def check_timeout(name: str, seconds: float) -> None:
    """Raise `EdgepackError` unless `seconds` is a time that can be waited."""
    if not 0 < seconds <= MOST_TIMEOUT_S:
        raise EdgepackError(
            f"{name} is {seconds:g}: expected more than 0 seconds and at most {MOST_TIMEOUT_S:,.0f}, which is a week"
        )


def ask(
    module: str, job: BaseModel, *, whose: str, timeout_s: float, on_phase: OnPhase, files: Sequence[int] = ()
) -> Answer:
    """Run ``python -m module`` with `job` and return what it says.

    Args:
        whose: subject and verb of the line of a helper that did not come to its end, for instance
            ``the reference ./checkpoint did not run``.
        timeout_s: the process and its children are killed after that.
        on_phase: called with the name of each phase as it begins.
        files: descriptors that the process inherits under their numbers.

    Raises:
        EdgepackError: the helper refused what it was asked.
        FailedRunError: it failed, was killed, took too long or left early.
    """
    start = monotonic()
    answer = Answer()
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as question:
        # A file, not a pipe: a helper that never reads cannot block us.
        question.write(job.model_dump_json().encode() + b"\n")
        question.seek(0)
        with child_process(python_command("-m", module), stdin=question, errors=errors, files=files) as process:
            code = _listen(process, answer, start + timeout_s, on_phase)
        said = last_line(errors)
    if code is None:
        raise FailedRunError(f"{whose}: no result within {timeout_s:g} s, stopped in phase {answer.phase}")
    if code != 0:
        raise FailedRunError(f"{whose}: {end_in_words(code)} in phase {answer.phase}{said}")
    for message in answer.messages:
        if "error" in message:
            kind = EdgepackError if message["refused"] else FailedRunError
            raise kind(message["error"] if message["ours"] else f"{whose}: {message['error']}")
    if not answer.ended:
        raise FailedRunError(f"{whose}: it left in phase {answer.phase} without a word{said}")
    answer.duration_s = monotonic() - start
    return answer


def _listen(process: subprocess.Popen[bytes], answer: Answer, deadline: float, on_phase: OnPhase) -> int | None:
    """Collect lines until the process ends; its exit code, or None where `deadline` came first."""
    assert process.stdout is not None  # it is a pipe
    output, unread = process.stdout.fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while (left := deadline - monotonic()) > 0:
            if not selector.select(left):
                continue
            received = os.read(output, READ_BYTES)
            if not received:
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(max(0.0, deadline - monotonic()))
                return None
            *lines, unread = (unread + received).split(b"\n")
            for line in lines:
                _take(line, answer, on_phase)
    return None


def _take(line: bytes, answer: Answer, on_phase: OnPhase) -> None:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return  # something printed before the helper took its stdout for itself
    if not isinstance(message, dict):
        return
    if "begin" in message:
        answer.phase = message["begin"]
        on_phase(answer.phase)
    elif "peak_rss_bytes" in message:
        answer.peak_rss_bytes = message["peak_rss_bytes"]
        answer.ended = True
    else:
        answer.messages.append(message)


def helper_main(run: Callable[[str, Send], None]) -> int:
    """The main function of a helper: give `run` the job and a way to send lines; return the exit code."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing that a library prints gets between the lines

    def send(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        run(sys.stdin.readline(), send)
        send(peak_rss_bytes=_peak_rss_bytes())
    except EdgepackError as error:
        # What a package or its runtime does is a result; everything else that we refuse is about what was asked.
        send(error=str(error), ours=True, refused=not isinstance(error, (FailedRunError, PackageError)))
    except Exception as error:  # noqa: BLE001 - whatever stops a helper is told by its parent, in one line
        reason = " ".join(str(error).split())
        send(error=f"{type(error).__name__}: {reason}", ours=False, refused=False)
    return 0


def _peak_rss_bytes() -> int | None:
    """The kernel's record of this process. `getrusage` is no help: it begins with the peak of the parent."""
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
