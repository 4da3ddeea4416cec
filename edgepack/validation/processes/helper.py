"""Helper processes: a job, its results, and one clear line for every end.

A model of this size lives and dies in a process of its own: whatever it takes, or breaks, ends with the process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from pydantic import BaseModel

from edgepack.errors import EdgepackError
from edgepack.system.child import child_process, last_line, python_command
from edgepack.validation.processes.protocol import (
    FailedRunError,
    Message,
    OnPhase,
    death_in_words,
    follow,
)


@dataclass(slots=True)
class HelperOutput:
    """What a helper said.

    Attributes:
        results: in order.
        phase: the last one that it entered.
        duration_s: from its start to its end, imports included.
        peak_rss_bytes: by its own account at its end; None where the system does not tell.
        ended: it said that it came to its end.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    phase: str = "start"
    duration_s: float = 0.0
    peak_rss_bytes: int | None = None
    ended: bool = False


def run_helper(
    module: str, job: BaseModel, *, whose: str, timeout_s: float, on_phase: OnPhase, files: Sequence[int] = ()
) -> HelperOutput:
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
    start, output = monotonic(), HelperOutput()

    def on_message(message: Message) -> None:
        if "begin" in message:
            output.phase = message["begin"]
            on_phase(output.phase)
        elif "result" in message:
            output.results.append(message["result"])
        elif "done" in message:
            output.peak_rss_bytes, output.ended = message["done"], True
        elif "error" in message:
            kind = EdgepackError if message["refused"] else FailedRunError
            raise kind(message["error"] if message["ours"] else f"{whose}: {message['error']}")

    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as question:
        # A file, not a pipe: a helper that never reads cannot block us.
        question.write(job.model_dump_json().encode() + b"\n")
        question.seek(0)
        with child_process(python_command("-m", module), stdin=question, errors=errors, files=files) as process:
            code = follow(process, start + timeout_s, on_message)
        if code is None:
            raise FailedRunError(f"{whose}: no result within {timeout_s:g} s, stopped in phase {output.phase}")
        if code != 0:
            raise FailedRunError(f"{whose}: {death_in_words(code, output.phase, errors)}")
        if not output.ended:
            said = last_line(errors)
            raise FailedRunError(f"{whose}: it left in phase {output.phase} without a word{said}")
    output.duration_s = monotonic() - start
    return output
