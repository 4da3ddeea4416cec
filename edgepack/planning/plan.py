"""The plan: how every tensor is stored, what that costs, and whether it fits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from edgepack.model.spec import Component, ModelSpec
from edgepack.planning.backends import BackendName, RuntimeName
from edgepack.quant import Recipe, Rounding, Scheme
from edgepack.reading import read_document, read_user_file
from edgepack.units import format_bytes
from edgepack.values import Frozen

SCHEMA_VERSION: Final = 2
MemoryKind = Literal["file", "anonymous"]


class TensorPlan(Frozen):
    """How one tensor is stored, and why if the recipe says otherwise."""

    name: str
    component: Component
    shape: tuple[int, ...]
    gathered: bool
    scheme: Scheme
    rounding: Rounding = "nearest"
    reason: str | None = None


class Target(Frozen):
    """A memory limit and the name it was given under."""

    name: str
    limit_bytes: int


class Suggestion(Frozen):
    """A nearby choice that fits the target."""

    recipe: str
    context_tokens: int
    total_bytes: int


class MemoryRow(Frozen):
    """One line of a memory budget: bytes on disk, and resident bytes at the peak of a generation."""

    name: str
    kind: MemoryKind
    disk_bytes: int = 0
    resident_bytes: int
    note: str = ""


class Plan(Frozen):
    """A complete decision about one package.

    Attributes:
        runtime: the one whose memory the rows count; the files of a package do not depend on it.
        prefill_tokens: lengths of the pieces in which a prompt is taken, shortest first: the signatures of a LiteRT
            model, the chunk of other runtimes.
        rows: the memory budget, line by line; a total is a sum over it.
        read_per_token_bytes: bytes that one decode step reads from memory: weights, whole windows, and half of the
            full-length caches.
        export_peak_bytes: expected peak RSS of the export itself, with the processes that it starts.
        blame: the largest row when the target is missed.
        suggestions: the nearest choices that do fit, largest context first.
    """

    schema_version: Literal[2] = SCHEMA_VERSION
    backend: BackendName
    runtime: RuntimeName
    recipe: Recipe
    context_tokens: int = Field(ge=1)
    prefill_tokens: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    target: Target | None
    spec: ModelSpec
    tensors: tuple[TensorPlan, ...]
    rows: tuple[MemoryRow, ...]
    read_per_token_bytes: int
    export_peak_bytes: int
    blame: str | None = None
    suggestions: tuple[Suggestion, ...] = ()

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        # A line, where the fields have a thousand: whoever prints a plan wants to know what it says.
        target = {"target": self.target.name, "fits": self.fits} if self.target else {}
        names = {"backend": self.backend, "runtime": self.runtime, "recipe": self.recipe.name}
        facts = {"context_tokens": self.context_tokens}
        sizes = {"total": format_bytes(self.total_bytes), "disk": format_bytes(self.disk_bytes)}
        return list((names | facts | sizes | target).items())

    @property
    def chunk_tokens(self) -> int:
        """Most tokens of a prompt that are processed at once."""
        return max(self.prefill_tokens)

    @property
    def total_bytes(self) -> int:
        """Resident bytes at the peak: file-backed and anonymous."""
        return sum(row.resident_bytes for row in self.rows)

    @property
    def anonymous_bytes(self) -> int:
        """The part of `total_bytes` that no system can drop."""
        return sum(row.resident_bytes for row in self.rows if row.kind == "anonymous")

    @property
    def disk_bytes(self) -> int:
        """Size of the weight files."""
        return sum(row.disk_bytes for row in self.rows)

    @property
    def fits(self) -> bool:
        """Whether the peak stays within the target; true without a target."""
        return self.target is None or self.total_bytes <= self.target.limit_bytes

    def exceptions(self) -> tuple[str, ...]:
        """What is not stored as the recipe says, and why, a line each; vectors are float32 everywhere."""
        reasons = Counter(
            (tensor.component, tensor.scheme.name, tensor.reason)
            for tensor in self.tensors
            if tensor.reason and len(tensor.shape) > 1
        )
        return tuple(
            f"{count} x {component} stored as {scheme}, not as the recipe says: {reason}"
            for (component, scheme, reason), count in reasons.items()
        )


def load_plan(path: Path) -> Plan:
    """Read a plan that `edgepack plan --save` wrote.

    Raises:
        EdgepackError: the file is missing, or no plan of this version; the first wrong field is named.
    """
    content = read_user_file(path, "plan", "write one with `edgepack plan --save`")
    return read_document(Plan, content, f"plan {path}", "write a new one with `edgepack plan --save`")
