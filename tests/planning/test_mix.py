"""Mixed precision: the least cost that brute force finds, never more bits than asked for, and refusals."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgepack.calibration.sensitivity.file import Choice, GroupCost, Sensitivity, read_sensitivity
from edgepack.calibration.sensitivity.groups import groups_of
from edgepack.checkpoint.folder import open_checkpoint
from edgepack.errors import EdgepackError
from edgepack.model.read import read_model
from edgepack.model.spec import ModelSpec
from edgepack.planning.backends import Backend, backend_named
from edgepack.planning.candidates import candidates_of
from edgepack.planning.mix import Mix, bits_per_weight, choose_mix, solve
from edgepack.planning.planner import make_plan
from edgepack.quant import IntScheme, Recipe, load_recipe
from tests.support.tiny import TinyPackages


@pytest.mark.parametrize("seed", range(20))
def test_no_other_choice_costs_less(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = [random.integers(1, 40, random.integers(1, 5)).tolist() for _ in range(6)]
    costs = [random.random(len(each)).tolist() for each in sizes]
    budget = int(random.integers(sum(map(min, sizes)), sum(map(max, sizes)) + 1))
    places = solve(sizes, costs, budget)

    def total(values: list[list[float]], chosen: tuple[int, ...] | list[int]) -> float:
        return sum(each[place] for each, place in zip(values, chosen, strict=True))

    every = itertools.product(*(range(len(each)) for each in sizes))
    best = min(total(costs, chosen) for chosen in every if total(sizes, chosen) <= budget)
    assert total(sizes, places) <= budget and total(costs, places) == pytest.approx(best, abs=1e-12)


def test_sizes_without_a_common_divisor_stay_within_the_budget() -> None:
    """Billions of bytes in few units: rounded up, so that the sum never passes the budget, and little is lost."""
    random = np.random.default_rng(0)
    small = random.integers(10**6, 10**7, 60)
    sizes = [[int(size), int(size) * 2 + 1] for size in small]
    costs = [[float(cost), 0.0] for cost in random.random(60)]
    budget = int(small.sum() * 1.5)
    places = solve(sizes, costs, budget)
    used = sum(each[place] for each, place in zip(sizes, places, strict=True))
    assert budget * 0.999 < used <= budget
    assert solve(sizes, costs, sum(each[1] for each in sizes)) == [1] * 60
    assert solve(sizes, costs, sum(each[0] for each in sizes)) == [0] * 60


@pytest.fixture(scope="module")
def spec(tiny_packages: TinyPackages) -> ModelSpec:
    with open_checkpoint(tiny_packages("shared").checkpoint) as source:
        return read_model(source)


def costs_of(spec: ModelSpec, backend: Backend, seed: int = 0) -> Sensitivity:
    """A file in which fewer bits cost more, groups differ by a factor of up to a hundred, and gptq halves the cost."""
    random = np.random.default_rng(seed)
    groups = []
    for group, each in candidates_of(spec, backend):
        weight = 10 ** random.uniform(-3, -1)
        choices = []
        for one in each:
            scheme = one.asked.scheme
            bits = scheme.bits + 16 / (scheme.block or 64) if isinstance(scheme, IntScheme) else 32
            factor = 0.5 if one.asked.rounding == "gptq" else 1.0
            choices.append(Choice(storage=one.asked, kl=weight * factor * 4.0**-bits))
        names = tuple(tensor.name for tensor in group.tensors)
        groups.append(
            GroupCost(
                name=group.name, kind=group.kind, component=group.component, tensors=names, choices=tuple(choices)
            )
        )
    facts = dict.fromkeys(("spec_sha256", "checkpoint_sha256", "calibration_sha256", "text_sha256"), "0" * 64)
    return Sensitivity(
        **facts, backend=backend.name, text="t", sequences=1, sequence_tokens=2, positions=1, groups=tuple(groups)
    )


def chosen(spec: ModelSpec, to: str, bits: float, head_bits: float | None = None, calibrated: bool = True) -> Mix:
    backend = backend_named(to)
    base = load_recipe("int4", to)
    return choose_mix(
        spec, backend, costs_of(spec, backend), bits, base=base, head_bits=head_bits, calibrated=calibrated
    )


@pytest.mark.parametrize("to", ["onnx", "litert"])
def test_a_plan_reads_no_more_bits_than_asked_for_and_more_bits_cost_less(to: str, spec: ModelSpec) -> None:
    last = float("inf")
    for bits in (6.0, 6.5, 7.0, 8.0, 9.0):
        mix = chosen(spec, to, bits)
        plan = make_plan(spec, backend=to, recipe=mix.recipe)
        assert bits_per_weight(plan.tensors, spec) == mix.bits <= bits
        assert mix.kl < last
        last = mix.kl
        by_name = {tensor.name: tensor for tensor in plan.tensors}
        base = {tensor.name: tensor for tensor in make_plan(spec, backend=to).tensors}
        for group in groups_of(spec):
            if group.component in ("ple", "altup"):
                assert all(by_name[t.name].scheme == base[t.name].scheme for t in group.tensors)
        read = [t for t in plan.tensors if len(t.shape) == 2 and t.component != "ple"]
        nbytes, weights = sum(t.scheme.nbytes(t.shape) for t in read), sum(t.shape[0] * t.shape[1] for t in read)
        assert mix.bits == 8 * nbytes / weights  # the tied embedding counts, the per-layer table does not


def test_roundings_that_need_a_calibration_are_for_those_who_have_one(spec: ModelSpec) -> None:
    with_one, without = chosen(spec, "onnx", 6.5), chosen(spec, "onnx", 6.5, calibrated=False)
    assert with_one.recipe.calibrated and not without.recipe.calibrated
    assert with_one.kl < without.kl and any(group.storage.rounding == "gptq" for group in with_one.groups)


def test_two_bits_only_where_four_are_too_many(spec: ModelSpec) -> None:
    """ONNX Runtime multiplies many rows with 2-bit matrices in seven times the time."""

    def widths(bits: float) -> set[int]:
        return {
            g.storage.scheme.bits for g in chosen(spec, "onnx", bits).groups if isinstance(g.storage.scheme, IntScheme)
        }

    assert widths(6.5) == {4, 8} and 2 in widths(4.5)


def test_the_head_apart(spec: ModelSpec) -> None:
    mix = chosen(spec, "onnx", 6.0, head_bits=8.5)
    head = next(group for group in mix.groups if group.kind == "embedding")
    others = [group for group in mix.groups if group.kind != "embedding"]
    assert isinstance(head.storage.scheme, IntScheme) and head.storage.scheme.bits == 8
    assert 8 * sum(group.nbytes for group in others) / sum(group.weights for group in others) <= 6.0 < mix.bits
    assert mix.recipe.name == "mix-6-head-8.5"


def test_the_recipe_can_be_saved_and_read(spec: ModelSpec, tmp_path: Path) -> None:
    mix = chosen(spec, "onnx", 6.5)
    (tmp_path / "mix.json").write_text(mix.recipe.model_dump_json(), "utf-8")
    again = load_recipe(tmp_path / "mix.json")
    assert again == mix.recipe and isinstance(again, Recipe)
    assert make_plan(spec, recipe=again).tensors == make_plan(spec, recipe=mix.recipe).tensors
    assert chosen(spec, "onnx", 6.5) == mix


@pytest.mark.parametrize(
    ("action", "needles"),
    [
        (lambda spec: chosen(spec, "onnx", 2.0), ["bits 2 is not possible: expected "]),
        (lambda spec: chosen(spec, "onnx", 33.0), ["bits 33 is not possible: expected "]),
        (lambda spec: chosen(spec, "onnx", float("nan")), ["bits nan is not possible"]),
        (lambda spec: chosen(spec, "onnx", 6.5, 20.0), ["head bits 20 is not possible: expected "]),
        (lambda spec: chosen(spec, "onnx", 2.0, 6.0), ["bits without the head 2 is not possible"]),
        (
            lambda spec: choose_mix(
                spec,
                backend_named("onnx"),
                costs_of(spec, backend_named("onnx")).model_copy(update={"groups": ()}),
                6.0,
                base=load_recipe("int4"),
            ),
            ["the sensitivity has nothing that embedding can be stored as", "calibrate CHECKPOINT --calibration"],
        ),
    ],
)
def test_bits_that_are_refused(action: Callable[[ModelSpec], object], needles: list[str], spec: ModelSpec) -> None:
    with pytest.raises(EdgepackError) as caught:
        action(spec)
    message = str(caught.value)
    assert "\n" not in message and all(needle in message for needle in needles), message


def test_the_range_that_is_told_is_possible(spec: ModelSpec) -> None:
    with pytest.raises(EdgepackError) as caught:
        chosen(spec, "onnx", 2.0)
    least, most = (float(word.rstrip(",")) for word in str(caught.value).split("expected ")[1].split(" ")[0:3:2])
    assert chosen(spec, "onnx", least).bits <= least and chosen(spec, "onnx", most).bits <= most


def test_a_file_of_another_checkpoint_or_backend(tiny_packages: TinyPackages, spec: ModelSpec, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    costs = costs_of(spec, backend_named("onnx"))
    path.write_text(costs.model_dump_json(), "utf-8")
    assert read_sensitivity(path) == costs
    another = "a sensitivity of another checkpoint: expected fingerprint"
    with open_checkpoint(tiny_packages("shared").checkpoint) as source, pytest.raises(EdgepackError, match=another):
        costs.require_for(source, spec, "onnx", path)
    path.write_text("{}", "utf-8")
    with pytest.raises(EdgepackError, match=r"sensitivity .*costs.json: .*; measure with"):
        read_sensitivity(path)
    with pytest.raises(EdgepackError, match=r"sensitivity .*none.json cannot be read: No such file"):
        read_sensitivity(tmp_path / "none.json")
