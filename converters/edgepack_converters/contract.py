"""The contract of a converter: two functions of the module that the backend's row names.

- ``costs(plan, checkpoint) -> dict[str, float]``: the phases of the work and what each costs, in weights (`phases`).
- ``emit(plan, checkpoint, weights, out, *, threads, phases) -> Emitted``: write the plan's models below the
  folder `out`, from rows that `weights` reads and rounds, and refuse what cannot be written with an `EdgepackError`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Emitted:
    """What a converter has written.

    Attributes:
        graphs: role of a model (``embed``, ``decoder``) to the path of its file below the package's folder.
        libraries: distributions whose versions decide the bytes.
        spans: offset and size in bytes of a model that is a part of its file, by role.
        notes: what the user should know, a line each.
    """

    graphs: dict[str, str]
    libraries: tuple[str, ...]
    spans: dict[str, tuple[int, int]]
    notes: tuple[str, ...] = ()
