"""What the supervisor tells its worker. The worker answers with JSON lines on stdout.

``{"begin": phase}`` before and ``{"end": phase, ...figures}`` after each phase; after an end the worker waits for a
line on stdin, so that the supervisor sees the process as the phase left it. A failure is ``{"error": text, "ours":
bool}``, where `ours` marks an `EdgepackError`.
"""

from __future__ import annotations

from typing import Literal

from edgepack.spec import Frozen

Phase = Literal["start", "load", "prefill", "decode"]
TOKEN_SEED = 0


class Job(Frozen):
    """One run of a package.

    Attributes:
        load_only: stop after the load; the run that prepares the runtime's cache.
        prompt_tokens: pseudo-random token ids that are prefilled.
        new_tokens: decode steps after that.
    """

    package: str
    runtime: str
    threads: int
    prompt_tokens: int
    new_tokens: int
    load_only: bool = False
