"""One mutated input: what stands on disk, the command line that meets it, and how to make it again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """A command line over files that were changed.

    Attributes:
        kind, seed, number: these three make the same case again.
        told: what was changed.
        arguments: after ``edgepack``; bytes that are not UTF-8 as surrogates.
        out: the folder that the command would write.
    """

    kind: str
    seed: int
    number: int
    told: str
    arguments: tuple[str, ...]
    out: Path | None = None

    @property
    def again(self) -> str:
        return f"python benchmarks/fuzz.py --kind {self.kind} --seed {self.seed} --only {self.number}"

    @property
    def is_json(self) -> bool:
        """Whether JSON was asked for: at the end, not as the value of an option, not beside a request for help."""
        before = self.arguments[-2:-1]
        others = {"--help", "-h", "--version", "--"} & set(self.arguments)
        return self.arguments[-1] == "--json" and not others and not before[0].startswith("-")


@dataclass(frozen=True)
class Result:
    """How a command ended; `code` is negative for a signal, None where it did not end in time."""

    code: int | None
    output: bytes
    errors: bytes
    seconds: float


def generator(kind: str, seed: int, number: int) -> random.Random:
    """The random numbers of one case, whichever cases came before."""
    return random.Random(f"{kind} {seed} {number}")
