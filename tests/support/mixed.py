"""Plans in which matrices that a graph stacks are stored in several ways, as no recipe of today asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from edgepack.model.spec import ModelSpec
from edgepack.planning import planner
from edgepack.planning.backends import Backend
from edgepack.planning.plan import TensorPlan
from edgepack.quant import Recipe
from edgepack_converters.weights import Placement


def assign_differently(monkeypatch: pytest.MonkeyPatch, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """From now on plans have these fields in tensors whose names end so; of several endings the last decides."""
    assigned = planner.assign

    def assign(spec: ModelSpec, recipe: Recipe, backend: Backend) -> tuple[TensorPlan, ...]:
        tensors = []
        for tensor in assigned(spec, recipe, backend):
            fields = [change for end, change in changes.items() if tensor.name.endswith(end)]
            tensors.append(tensor.model_copy(update=dict(fields[-1])) if fields else tensor)
        return tuple(tensors)

    monkeypatch.setattr(planner, "assign", assign)


def stored_bytes(placements: Iterable[Placement]) -> dict[str, int]:
    """Bytes of every tensor by name, its share of what it is stacked in; copies of one part count once."""
    parts = {(place.tensor, place.part) for place in placements if place.tensor is not None}
    sizes: dict[str, int] = {}
    for tensor, part in parts:
        for plan, _ in tensor.sources:
            sizes[plan.name] = sizes.get(plan.name, 0) + part.nbytes * plan.shape[0] // tensor.shape[0]
    return sizes
