"""Mixed precision: the scheme of each group of tensors, for the least expected KL at so many bits a weight.

What counts are the weights that a decode step reads, all matrices of products, with their scales and zero points. The
KLs of groups add up (docs/quantization.md has how well), so this is a multiple-choice knapsack, which dynamic
programming solves exactly up to the size of its unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, gcd, inf, prod

import numpy as np
from numpy.typing import NDArray

from edgepack.calibration.sensitivity.file import WAY_OUT, Choice, Sensitivity
from edgepack.calibration.sensitivity.groups import Candidate, Group, groups_of, is_head
from edgepack.errors import EdgepackError
from edgepack.model.spec import Component, ModelSpec
from edgepack.planning.assign import assign, is_multiplied
from edgepack.planning.backends import Backend
from edgepack.planning.candidates import candidate
from edgepack.planning.plan import TensorPlan
from edgepack.quant import CALIBRATED, IntScheme, Recipe, Storage

# What stays as the recipe under the mix has it: of no weight, and a step only looks rows up.
KEPT: frozenset[Component] = frozenset({"altup", "ple"})
# Fewer are chosen only where these are too many.
_FAST_BITS = 4
# Units in which sizes are counted; sizes are rounded up to whole ones where these are more than their common divisor.
_MOST_UNITS = 1 << 17


@dataclass(frozen=True, slots=True)
class Mixed:
    """One group of a mix.

    Attributes:
        kind: what it has in common with the same group of other layers.
        weights: elements of its matrices.
        nbytes: as they are stored, with scales and zero points.
        kl: expected, in nats.
    """

    name: str
    kind: str
    storage: Storage
    weights: int
    nbytes: int
    kl: float


@dataclass(frozen=True, slots=True)
class Mix:
    """A recipe that was chosen.

    Attributes:
        recipe: rows of components of the recipe below it, and single tensors.
        bits: mean bits of a weight that a decode step reads.
        kl: expected of the groups together, in nats.
        groups: what was chosen.
    """

    recipe: Recipe
    bits: float
    kl: float
    groups: tuple[Mixed, ...]


@dataclass(frozen=True, slots=True)
class _Option:
    choice: Choice
    candidate: Candidate
    nbytes: int


def bits_per_weight(tensors: Sequence[TensorPlan], spec: ModelSpec) -> float:
    """Mean bits of a weight that a decode step reads: matrices of products, the tied embedding as the head it is."""
    read = [tensor for tensor in tensors if len(tensor.shape) == 2 and is_multiplied(tensor, spec)]
    return 8 * sum(tensor.scheme.nbytes(tensor.shape) for tensor in read) / sum(prod(tensor.shape) for tensor in read)


def choose_mix(
    spec: ModelSpec,
    backend: Backend,
    sensitivity: Sensitivity,
    bits: float,
    *,
    base: Recipe,
    head_bits: float | None = None,
    calibrated: bool = False,
) -> Mix:
    """Choose a scheme and a rounding for every group.

    Args:
        sensitivity: of this checkpoint and backend.
        bits: at most so many bits a weight that a decode step reads, on the mean.
        base: the recipe for everything that is not chosen.
        head_bits: at most so many for the head, and `bits` for everything but the head.
        calibrated: whether the export has a calibration, and roundings may need one.

    Raises:
        EdgepackError: such a mean is not possible, or `sensitivity` lacks a group.
    """
    offered = {
        group.name: (group, _options(group, sensitivity, backend, calibrated))
        for group in groups_of(spec)
        if group.multiplied and group.component not in KEPT
    }
    kept = [tensor for tensor in assign(spec, base, backend) if tensor.component in KEPT and len(tensor.shape) == 2]
    kept = [tensor for tensor in kept if is_multiplied(tensor, spec)]
    heads = [name for name, (group, _) in offered.items() if head_bits is not None and is_head(group, spec)]
    others = [name for name in offered if name not in heads]
    chosen = _chosen([offered[name] for name in others], kept, bits, "bits" if not heads else "bits without the head")
    if head_bits is not None:
        chosen |= _chosen([offered[name] for name in heads], [], head_bits, "head bits")
    groups = tuple(
        Mixed(
            name=name,
            kind=group.kind,
            storage=chosen[name].choice.storage,
            weights=sum(prod(tensor.shape) for tensor in group.tensors),
            nbytes=chosen[name].nbytes,
            kl=chosen[name].choice.kl,
        )
        for name, (group, _) in offered.items()
    )
    kl = sum(group.kl for group in groups)
    stored = [(group.component, chosen[name].candidate.stored) for name, (group, _) in offered.items()]
    recipe = _recipe(base, stored, bits, head_bits, kl)
    return Mix(recipe, bits_per_weight(assign(spec, recipe, backend), spec), kl, groups)


def _options(group: Group, sensitivity: Sensitivity, backend: Backend, calibrated: bool) -> list[_Option]:
    found = next((cost for cost in sensitivity.groups if cost.name == group.name), None)
    options = []
    for choice in found.choices if found is not None else ():
        if choice.storage.rounding in CALIBRATED and not calibrated:
            continue
        stored = candidate(group, choice.storage, backend)
        if stored is not None:
            size = sum(stored.stored[tensor.name].scheme.nbytes(tensor.shape) for tensor in group.tensors)
            options.append(_Option(choice, stored, size))
    if not options:
        raise EdgepackError(f"the sensitivity has nothing that {group.name} can be stored as: {WAY_OUT}")
    return options


def _is_slow(option: _Option) -> bool:
    """Whether products of many rows take several times as long: of 2 bits (docs/quantization.md)."""
    scheme = option.choice.storage.scheme
    return isinstance(scheme, IntScheme) and scheme.bits < _FAST_BITS


def _chosen(
    groups: Sequence[tuple[Group, list[_Option]]], kept: Sequence[TensorPlan], bits: float, what: str
) -> dict[str, _Option]:
    """The best option of each group within a mean of `bits`, counting also what is `kept`; slow ones where it must be.

    Raises:
        EdgepackError: that is less than the least, or more than the most.
    """
    weights = sum(prod(tensor.shape) for group, _ in groups for tensor in group.tensors)
    weights += sum(prod(tensor.shape) for tensor in kept)
    fixed = sum(tensor.scheme.nbytes(tensor.shape) for tensor in kept)
    fast = [(group, [option for option in options if not _is_slow(option)] or options) for group, options in groups]
    if 8 * (fixed + sum(min(option.nbytes for option in options) for _, options in fast)) <= bits * weights:
        groups = fast
    sizes = [[option.nbytes for option in options] for _, options in groups]
    least, most = (8 * (fixed + sum(map(end, sizes))) / weights for end in (min, max))
    if not least <= bits <= most:
        raise EdgepackError(
            f"{what} {bits:g} is not possible: expected {ceil(least * 100) / 100:g} to {floor(most * 100) / 100:g}, "
            "what the schemes of this backend give for this model"
        )
    costs = [[option.choice.kl for option in options] for _, options in groups]
    places = solve(sizes, costs, floor(bits * weights / 8) - fixed)
    return {group.name: options[place] for (group, options), place in zip(groups, places, strict=True)}


def solve(sizes: Sequence[Sequence[int]], costs: Sequence[Sequence[float]], budget: int) -> list[int]:
    """One option of each group, of least total cost within `budget`; of two equal ones the smaller.

    Args:
        sizes, costs: of every option, by group.
        budget: at least the sum of the smallest sizes.
    """
    free = [min(zip(each, size, range(len(each)), strict=True))[2] for each, size in zip(costs, sizes, strict=True)]
    if sum(size[i] for size, i in zip(sizes, free, strict=True)) <= budget:
        return free
    least = [min(each) for each in sizes]
    spare = min(budget, sum(map(max, sizes))) - sum(least)
    more = [[size - low for size in each] for each, low in zip(sizes, least, strict=True)]
    unit = max(gcd(*(size for each in more for size in each)), ceil(spare / _MOST_UNITS), 1)
    units = spare // unit
    best = np.zeros(units + 1)
    taken: list[NDArray[np.uint8]] = []
    for group, each in zip(more, costs, strict=True):
        total, option = np.full(units + 1, inf), np.zeros(units + 1, np.uint8)
        for place in sorted(range(len(group)), key=group.__getitem__):
            step = -(-group[place] // unit)
            if step > units:
                break
            tried = best[: units + 1 - step] + each[place]
            better = tried < total[step:]
            total[step:][better] = tried[better]
            option[step:][better] = place
        best = total
        taken.append(option)
    places, left = [0] * len(taken), units
    for number in reversed(range(len(taken))):
        places[number] = int(taken[number][left])
        left -= -(-more[number][places[number]] // unit)
    return places


def _recipe(
    base: Recipe,
    stored: Sequence[tuple[Component, Mapping[str, Storage]]],
    bits: float,
    head_bits: float | None,
    kl: float,
) -> Recipe:
    head = "" if head_bits is None else f" and {head_bits:g} for the head"
    return Recipe(
        name=f"mix-{bits:g}" + ("" if head_bits is None else f"-head-{head_bits:g}"),
        description=f"At most {bits:g} bits a weight{head}, shared out by measurement: expected KL {kl:.3g}.",
        default=base.default,
        components=base.components,
        tensors={
            tensor: storage
            for component, each in stored
            for tensor, storage in each.items()
            if storage != base.storage(component)
        },
        folds=base.folds,
    )
