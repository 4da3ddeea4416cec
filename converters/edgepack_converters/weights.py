"""Where every byte of a weight file stands, decided before the first weight is read. All backends share it.

Parts are placed one after another, each aligned so that a runtime can map it: large parts on a page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy.typing as npt

from edgepack.model.ops import Weight
from edgepack.planning.plan import TensorPlan
from edgepack.quant.layout import Part, Scheme

PAGE_BYTES = 4096
SMALL_ALIGNMENT_BYTES = 64
LARGE_PART_BYTES = 65536
Encode = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in the form in which a graph uses it: folded factors and storage scheme included.

    Attributes:
        sources: planned tensors and their folded factors, stacked along the rows; most have one, a packed q/k/v three.

    Raises:
        ValueError: the sources are not planned alike.
    """

    sources: tuple[tuple[TensorPlan, Weight], ...]

    def __post_init__(self) -> None:
        first, *others = (plan for plan, _ in self.sources)
        for other in others:
            if (_storage(other), other.shape[1:]) != (_storage(first), first.shape[1:]):
                raise ValueError(f"cannot be stored as one tensor: {_told(first)}, and {_told(other)}")

    @property
    def scheme(self) -> Scheme:
        """Storage of the whole, which is that of every source."""
        return self.sources[0][0].scheme

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, K] of the stacked matrix, [N] of a vector."""
        rows = sum(plan.shape[0] for plan, _ in self.sources)
        return (rows, *self.sources[0][0].shape[1:])

    @property
    def name(self) -> str:
        """Unique name: that of the first source, with a mark for what was done to it."""
        first = self.sources[0][1]
        folded = "" if (first.times, first.plus) == (1.0, 0.0) else ".folded"
        return f"{first.name}{'.packed' if len(self.sources) > 1 else ''}{folded}"


def stackable(matrices: Sequence[Weight], tensors: Mapping[str, TensorPlan]) -> list[tuple[Weight, ...]]:
    """`matrices` in their order, neighbours that are planned alike together: each group can be one stored tensor."""
    return [tuple(group) for _, group in groupby(matrices, key=lambda matrix: _storage(tensors[matrix.name]))]


def _storage(plan: TensorPlan) -> tuple[object, ...]:
    """Whatever decides the bytes of a row."""
    return plan.scheme, plan.rounding


def _told(plan: TensorPlan) -> str:
    return f"{plan.name} {list(plan.shape)} ({plan.scheme}, {plan.rounding})"


def as_it_is(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The encoding of a backend that stores parts as a scheme makes them."""
    return array


@dataclass(frozen=True, slots=True)
class Placement:
    """A part's place: byte `offset` in its file.

    Attributes:
        tensor: what it is a part of; None for a table that the exporter computes itself, which is its `content`.
        encode: what a backend does to the bytes; it must not change their number.
    """

    part: Part
    offset: int
    tensor: StoredTensor | None = None
    content: npt.NDArray[Any] | None = None
    encode: Encode = as_it_is


@dataclass(slots=True)
class WeightFile:
    """A file of weights under construction; `base` is the offset of its first byte in the file that holds it."""

    name: str
    size_bytes: int = 0
    placements: list[Placement] = field(default_factory=list)

    def append(
        self,
        part: Part,
        tensor: StoredTensor | None = None,
        content: npt.NDArray[Any] | None = None,
        encode: Encode = as_it_is,
    ) -> Placement:
        """Place `part` behind what is there and return where it stands."""
        alignment = PAGE_BYTES if part.nbytes >= LARGE_PART_BYTES else SMALL_ALIGNMENT_BYTES
        offset = -(-self.size_bytes // alignment) * alignment
        placement = Placement(part, offset, tensor, content, encode)
        self.placements.append(placement)
        self.size_bytes = offset + part.nbytes
        return placement
