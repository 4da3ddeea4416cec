"""What the supervisor tells its worker to do, and the names of its phases."""

from __future__ import annotations

from edgepack.values import Frozen

TOKEN_SEED = 0
WARM_UP_TOKENS = 8
DECODE, LONG_DECODE = "decode", "long decode"
# The interpreter and its modules are there, and nothing of the model.
START = "start"


class Step(Frozen):
    """A prompt, and the decode phase behind it if there is one.

    Attributes:
        prompt_tokens: pseudo-random token ids that are prefilled into an empty cache.
        decode: name of the decode phase.
    """

    prompt_tokens: int
    decode: str | None = None

    @property
    def phase(self) -> str:
        """Name of the prefill phase."""
        return f"prefill {self.prompt_tokens}"


class WorkerJob(Frozen):
    """One run of a package in one process; without steps it ends after the load.

    Attributes:
        new_tokens: length of each decode phase.
        rebuild_cache: a first load, which packs the weights whether or not an earlier one has left them.
    """

    package: str
    runtime: str
    threads: int
    context_tokens: int
    new_tokens: int
    steps: tuple[Step, ...] = ()
    rebuild_cache: bool = False


def plan_steps(context_tokens: int, prompt_tokens: tuple[int, ...], new_tokens: int) -> tuple[Step, ...]:
    """The prompts that the context has room for, shortest first; decode behind the shortest and the longest.

    A length that does not leave room for `new_tokens` is cut; equal lengths are one.
    """
    lengths = sorted({max(1, min(length, context_tokens - new_tokens)) for length in prompt_tokens})
    names = dict.fromkeys(lengths, "") | {lengths[-1]: LONG_DECODE} | {lengths[0]: DECODE}
    return tuple(Step(prompt_tokens=length, decode=names[length] or None) for length in lengths)
