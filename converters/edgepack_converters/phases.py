"""How far an export is: phases with a name, each a share of the whole by the time that it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from edgepack.checkpoint.folder import Checkpoint
from edgepack.planning.plan import Plan

# What is done, what there is in all, and the name of the phase that runs.
Progress = Callable[[float, float, str], None]

TOKENIZER, TEMPLATE, WEIGHTS, HASHES = "converting the tokenizer", "checking the chat template", "weights", "hashing"
# What a phase costs, in weights that are quantized in that time (Gemma 3 270M, two threads).
WEIGHTS_A_TOKENIZER_BYTE = 25
WEIGHTS_A_TEMPLATE = 60_000_000
WEIGHTS_A_HASHED_BYTE = 0.12


def weights_of(plan: Plan) -> int:
    """How many weights an export of `plan` quantizes."""
    return sum(prod(tensor.shape) for tensor in plan.tensors)


def tokenizer_bytes(checkpoint: Checkpoint) -> int:
    """Size of the tokenizer's files, which take a noticeable part of an export."""
    return sum(file.stat().st_size for file in checkpoint.side_files() if file.name.startswith("tokenizer."))


class Phases:
    """Tells `report` of phases one after another.

    Args:
        report: gets what is done and what there is, in weights, and the name of the phase.
        costs: of every phase, in weights.
    """

    def __init__(self, report: Progress, costs: Mapping[str, float]) -> None:
        self._report, self._costs = report, costs
        self._before = self._done = 0.0
        self._name = ""

    def begin(self, name: str) -> None:
        """The phase before is over, this one has begun. One that has no cost is not told."""
        self._before += self._costs.get(self._name, 0.0)
        self._name, self._done = name, 0.0
        self.advance(0)

    def advance(self, cost: float) -> None:
        """So much more of the phase is done."""
        self._done += cost
        if self._name in self._costs:
            self._report(self._before + self._done, sum(self._costs.values()), self._name)

    def end(self) -> None:
        """All phases are over."""
        total = sum(self._costs.values())
        self._report(total, total, self._name)
