"""What to try next: only what the plan of the same checkpoint says fits the target, for the same backend."""

from __future__ import annotations

import pytest

import edgepack
from edgepack.planning.plan import Plan, Target
from edgepack.planning.planner import make_plan, replan
from edgepack.validation.figures.schedule import FIRST_LOAD, Measurement
from edgepack.validation.processes.job import Step
from edgepack.validation.processes.memory import MemoryWatch
from edgepack.validation.processes.supervisor import WorkerRun
from edgepack.validation.records import LimitFacts
from edgepack.validation.result import Advice
from edgepack.validation.verdict.advice import advise
from edgepack.validation.verdict.judge import check_run, check_target
from tests.support.paths import DEMO

GONE = 2**22 + 1


def plan_of(backend: str = "onnx", recipe: str = "fp32", context: int = 1024) -> Plan:
    return edgepack.plan(DEMO, to=backend, recipe=recipe, context=context)


def advised(
    plan: Plan, limit_bytes: int, purpose: str = "run 1", runtime: str = "", at_limit: bool = True
) -> Advice | None:
    target = Target(name="gadget", limit_bytes=limit_bytes)
    facts = LimitFacts(method="cgroup v2", enforced=True, limit_bytes=limit_bytes)
    died = WorkerRun(MemoryWatch(GONE), failure="killed", at_limit=at_limit)
    found = Measurement((Step(prompt_tokens=4),), 2, facts, [(purpose, died)])
    checks = [check for check in (check_run(found), check_target(found, target)) if check is not None]
    return advise(plan, runtime or plan.backend, target, found, checks)


@pytest.mark.parametrize("backend", ["onnx", "litert"])
def test_what_fits_by_the_plan_is_said_with_its_options(backend: str) -> None:
    plan = plan_of(backend)
    limit = plan.total_bytes - 300_000
    advice = advised(plan, limit)
    assert advice is not None and advice.suggestions
    assert f"--to {backend} --recipe {advice.suggestions[0].recipe} --context " in advice.text
    for suggestion in advice.suggestions:
        again = make_plan(
            plan.spec, backend=backend, recipe=suggestion.recipe, context_tokens=suggestion.context_tokens,
            prefill_tokens=plan.prefill_tokens,
        )  # fmt: skip
        assert again.total_bytes == suggestion.total_bytes <= limit


def test_an_engine_takes_its_part_of_the_target() -> None:
    plan = plan_of("litert", "int8")
    engine = replan(plan, runtime="litert-lm")
    limit = engine.total_bytes - 300_000
    assert plan.total_bytes < limit
    advice = advised(plan, limit, runtime="litert-lm")
    assert advice is not None and "--to litert --runtime litert-lm --recipe " in advice.text
    assert advice.suggestions == replan(engine, target=Target(name="gadget", limit_bytes=limit)).suggestions


def test_where_nothing_fits_that_is_said() -> None:
    advice = advised(plan_of(), 40_000_000)
    assert advice is not None and advice.suggestions == ()
    assert "no built-in recipe fits gadget with the backend onnx" in advice.text
    assert "its largest part is runtime, " in advice.text


@pytest.mark.parametrize(
    ("purpose", "said"), [(FIRST_LOAD, "the first load packs the weights"), ("run 2", "report the plan's error")]
)
def test_a_plan_that_fits_has_nothing_to_suggest(purpose: str, said: str) -> None:
    plan = plan_of()
    advice = advised(plan, plan.total_bytes, purpose)
    assert advice is not None and advice.suggestions == ()
    assert "fits gadget" in advice.text and said in advice.text


def test_a_crash_is_no_question_of_memory() -> None:
    assert advised(plan_of(), 40_000_000, at_limit=False) is None
