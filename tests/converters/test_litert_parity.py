"""T2 for LiteRT: the fp32 export computes what Transformers computes, padding, rings and the end of the context in."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack_runtimes.litert.runtime import LitertRuntime
from tests.converters.test_onnx_parity import probabilities
from tests.support import tiny
from tests.support.tiny import Tiny, TinyPackages
from tests.support.tolerances import FP32_PROBABILITIES, LITERT_FP32_LOGITS

# Pieces shorter than the window of 8, as long, longer, and two lengths in one model.
PREFILL = {"short": (4,), "window": (8,), "long": (16,), "two": (4, 32)}
LENGTH = 5 * tiny.WINDOW


@pytest.fixture(scope="module", params=tiny.NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def export(tiny_packages: TinyPackages, name: str, pieces: str) -> Tiny:
    return tiny_packages(name, to="litert", prefill=PREFILL[pieces])


def test_every_position_is_that_of_transformers(name: str, tiny_packages: TinyPackages) -> None:
    case = export(tiny_packages, name, "window")
    ids = tiny.token_ids(LENGTH)
    with LitertRuntime(case.package, threads=1) as runtime:
        logits = runtime.logits(ids[0].tolist())
    expected = tiny.reference(case.model, ids)[0]
    assert logits.shape == expected.shape == (LENGTH, tiny.VOCAB)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=LITERT_FP32_LOGITS)
    # Greedy output does not notice a missing softcap, probabilities do.
    np.testing.assert_allclose(probabilities(logits), probabilities(expected), rtol=0, atol=FP32_PROBABILITIES)


def test_the_last_positions_behind_a_context_without_logits(name: str, tiny_packages: TinyPackages) -> None:
    case = export(tiny_packages, name, "two")
    ids = tiny.token_ids(LENGTH)
    with LitertRuntime(case.package, threads=1) as runtime:
        runtime.prefill(tiny.token_ids(50, seed=99)[0].tolist())  # what an earlier prompt left in the caches
        logits = runtime.logits(ids[0].tolist(), 3)
    np.testing.assert_allclose(logits, tiny.reference(case.model, ids)[0, -3:], rtol=0, atol=LITERT_FP32_LOGITS)


@pytest.mark.parametrize("pieces", PREFILL)
@pytest.mark.parametrize("prompt", [1, 2, 6, 9, 13, 27, LENGTH])
def test_a_prompt_in_pieces_and_what_follows(name: str, tiny_packages: TinyPackages, pieces: str, prompt: int) -> None:
    # Most of these prompts end in a piece that is partly padding, which must not reach any cache.
    case = export(tiny_packages, name, pieces)
    ids = tiny.token_ids(prompt + 12, seed=prompt)
    expected = tiny.reference(case.model, ids)[0]
    with LitertRuntime(case.package, threads=1) as runtime:
        runtime.prefill(tiny.token_ids(50, seed=99)[0].tolist())  # what an earlier prompt left in the caches
        runtime.reset()
        got = [runtime.prefill(ids[0, :prompt].tolist())]
        got += [runtime.decode(int(token)) for token in ids[0, prompt:]]
    np.testing.assert_allclose(np.stack(got), expected[prompt - 1 :], rtol=0, atol=LITERT_FP32_LOGITS)


@pytest.mark.parametrize("pieces", PREFILL)
def test_a_second_prompt_behind_the_first(name: str, tiny_packages: TinyPackages, pieces: str) -> None:
    case = export(tiny_packages, name, pieces)
    ids = tiny.token_ids(45)
    with LitertRuntime(case.package, threads=1) as runtime:
        got = [runtime.prefill(ids[0, a:b].tolist()) for a, b in ((0, 7), (7, 8), (8, 30), (30, 45))]
    expected = tiny.reference(case.model, ids)[0][[6, 7, 29, 44]]
    np.testing.assert_allclose(np.stack(got), expected, rtol=0, atol=LITERT_FP32_LOGITS)


@pytest.mark.parametrize("pieces", PREFILL)
def test_padding_behind_the_end_of_the_context(name: str, tiny_packages: TinyPackages, pieces: str) -> None:
    # The last piece reaches over the end of the caches; an operator that moves it back would overwrite older tokens.
    case = export(tiny_packages, name, pieces)
    ids = tiny.token_ids(tiny.CONTEXT)
    with LitertRuntime(case.package, threads=1) as runtime:
        runtime.prefill(ids[0, :6].tolist())  # after that no piece begins where one would end with the context
        first = runtime.prefill(ids[0, 6:-1].tolist())
        last = runtime.decode(int(ids[0, -1]))
    expected = tiny.reference(case.model, ids)[0][-2:]
    np.testing.assert_allclose(np.stack([first, last]), expected, rtol=0, atol=LITERT_FP32_LOGITS)
