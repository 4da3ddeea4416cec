"""The sampler against hand-computed cases, against Transformers' logits processors, and against its own frequencies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgepack.errors import EdgepackError
from edgepack_runtimes import sampling
from edgepack_runtimes.portable_math import exp
from edgepack_runtimes.sampling import GREEDY, Sampler, SamplingParams, _candidates, _draw, _nucleus, _penalize


def kept_probabilities(logits: np.ndarray, history: list[int], params: SamplingParams) -> np.ndarray:
    """Probabilities [V] from which the sampler draws."""
    scores = _penalize(logits, history, params.repetition_penalty)
    ids, exponents = _candidates(scores, float(scores.max()), params)
    weights = exp(exponents)
    probabilities = np.zeros(logits.size)
    probabilities[slice(None) if ids is None else ids] = weights / weights.sum()
    return probabilities


def transformers_probabilities(logits: np.ndarray, history: list[int], params: SamplingParams) -> np.ndarray:
    import torch
    from transformers.generation import logits_process as hf

    ids, scores = torch.tensor([history]), torch.from_numpy(logits.copy())[None]
    processors: list[Any] = [
        hf.RepetitionPenaltyLogitsProcessor(params.repetition_penalty),
        hf.TemperatureLogitsWarper(params.temperature),
    ]
    if params.top_k:
        processors.append(hf.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        processors.append(hf.TopPLogitsWarper(params.top_p))
    for processor in processors:
        scores = processor(ids, scores)
    return scores.double().softmax(-1)[0].numpy()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.3},
        {"top_k": 7},
        {"top_k": 1},
        {"top_k": 5000},
        {"top_p": 0.9},
        {"top_p": 0.01},
        {"temperature": 1.7, "top_p": 0.999},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.7},
        {"temperature": 0.8, "top_k": 64, "top_p": 0.95, "repetition_penalty": 1.2},
    ],
)
def test_same_distribution_as_transformers(options: dict[str, Any]) -> None:
    params = SamplingParams(**{"temperature": 1.0, **options})
    rng = np.random.default_rng(3)
    for scale in (0.5, 4.0):
        logits = rng.normal(0, scale, 1000).astype(np.float32)
        history = [5, 5, *np.argsort(logits)[-9::3].tolist(), 0]
        ours = kept_probabilities(logits, history, params)
        theirs = transformers_probabilities(logits, history, params)
        np.testing.assert_array_equal(ours > 0, theirs > 0)
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_top_k_keeps_ties_and_top_p_takes_the_lowest_id_among_them() -> None:
    logits = np.log(np.array([0.2, 0.4, 0.2, 0.2], dtype=np.float32))
    by_k = kept_probabilities(logits, [], SamplingParams(temperature=1, top_k=2))
    np.testing.assert_allclose(by_k, [0.2, 0.4, 0.2, 0.2], atol=1e-6)
    by_p = kept_probabilities(logits, [], SamplingParams(temperature=1, top_p=0.5))
    np.testing.assert_allclose(by_p, [1 / 3, 2 / 3, 0, 0], atol=1e-6)


def test_top_p_counts_what_top_k_left() -> None:
    """Of 0.4, 0.3, 0.2, 0.1 top_k=2 leaves 4/7 and 3/7; 4/7 alone reaches 0.55, though 0.4 would not."""
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32))
    params = SamplingParams(temperature=1, top_k=2, top_p=0.55)
    np.testing.assert_allclose(kept_probabilities(logits, [], params), [0, 0, 0, 1])


def test_repetition_penalty_divides_positive_and_multiplies_negative_once() -> None:
    logits = np.array([3.0, -1.0, 2.0, 0.0], dtype=np.float32)
    np.testing.assert_array_equal(
        _penalize(logits, [0, 0, 1, 3], 2.0), np.array([1.5, -2.0, 2.0, 0.0], dtype=np.float32)
    )


def test_penalty_changes_the_greedy_choice_and_not_the_callers_logits() -> None:
    logits = np.array([3.0, 2.0, -9.0], dtype=np.float32)
    before = logits.copy()
    assert Sampler(SamplingParams(repetition_penalty=2.0)).sample(logits, {0}) == 1
    assert Sampler(SamplingParams(repetition_penalty=2.0)).sample(logits, ()) == 0
    Sampler(SamplingParams(temperature=0.5, top_k=2, top_p=0.9, seed=1)).sample(logits, [0])
    np.testing.assert_array_equal(logits, before)


def test_read_only_logits_are_fine() -> None:
    logits = np.array([0.0, 1.0, 0.5], dtype=np.float32)
    logits.flags.writeable = False
    assert Sampler(SamplingParams(repetition_penalty=1.5)).sample(logits, [1]) == 1


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    assert Sampler().sample(np.array([1.0, 7.0, 7.0, 7.0], dtype=np.float32)) == 1
    assert SamplingParams() == GREEDY


def test_frequencies_follow_the_probabilities() -> None:
    """20,000 draws: 4 standard deviations of a binomial are under 0.015."""
    probabilities = np.array([0.05, 0.5, 0.0, 0.15, 0.3])
    logits = np.log(np.maximum(probabilities, 1e-30)).astype(np.float32)
    logits[2] = -np.inf
    sampler = Sampler(SamplingParams(temperature=1.0, seed=11))
    counts = np.bincount([sampler.sample(logits) for _ in range(20_000)], minlength=5) / 20_000
    assert counts[2] == 0
    np.testing.assert_allclose(counts, probabilities, atol=0.015)


def test_temperature_reshapes_the_frequencies() -> None:
    """At temperature 2 probabilities 0.8 and 0.2 become sqrt(0.8) : sqrt(0.2) = 2 : 1."""
    logits = np.log(np.array([0.8, 0.2], dtype=np.float32))
    sampler = Sampler(SamplingParams(temperature=2.0, seed=5))
    share = np.mean([sampler.sample(logits) for _ in range(10_000)])
    assert abs(share - 1 / 3) < 0.019


def exponents_of(size: int) -> np.ndarray:
    """Logarithms of weights, more than are computed at once, some of which are 0."""
    found = np.minimum(np.random.default_rng(0).normal(-30, 6, size), -8)
    found[[5, size // 2]] = 0.0, -0.1
    found[:3], found[-5:] = -np.inf, -800.0
    return found


def test_a_draw_is_that_of_the_plain_running_sum_at_both_ends_and_at_a_sum_itself() -> None:
    exponents = exponents_of(3 * sampling._FEW + 100)
    sums = np.cumsum(exp(exponents))
    shares = sums[np.linspace(3, sums.size - 6, 50).astype(int)] / sums[-1]
    for point in (0.0, *shares, *np.linspace(0.01, 0.99, 50), np.nextafter(1.0, 0.0)):
        assert _draw(exponents, float(point)) == np.searchsorted(sums, point * sums[-1], side="right")
    assert _draw(exponents, 0.0) == 3
    assert _draw(exponents, float(np.nextafter(1.0, 0.0))) == sums.size - 6


def test_a_nucleus_is_that_of_a_sort_of_all_also_where_a_sum_is_the_share_itself() -> None:
    exponents = np.round(exponents_of(2 * sampling._FEW), 1)  # many ties
    weights = exp(exponents)
    order = np.argsort(-weights, kind="stable")
    sums, total = np.cumsum(weights[order]), np.cumsum(weights)[-1]
    shares = sums[[0, 1, 9, *range(100, 3000, 100)]] / total
    for top_p in (1e-9, 0.3, 0.9, 0.999, 1 - 1e-8, *shares, *np.nextafter(shares, 1)):
        count = np.count_nonzero(sums < top_p * total) + 1
        assert _nucleus(exponents, float(top_p)).tolist() == sorted(order[:count].tolist())


def test_where_an_estimate_decides_the_weights_of_all_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    exponents, sizes = exponents_of(2 * sampling._FEW), []
    monkeypatch.setattr(sampling, "exp", lambda x: sizes.append(x.size) or exp(x))
    assert _draw(exponents, 0.7) == exponents.size // 2
    assert 2 <= len(_nucleus(exponents, 0.9)) <= sizes[0] < exponents.size
    assert len(sizes) == 1
    even = np.zeros(exponents.size)  # every sum is exact, so that half of all ends where a token does
    assert (_draw(even, 0.5), len(_nucleus(even, 0.5))) == (sampling._FEW, sampling._FEW)
    assert sizes[1:] == [even.size] * 3


def test_seed_gives_the_same_tokens_and_none_does_not() -> None:
    logits = np.zeros(50_000, dtype=np.float32)

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed))
        return [sampler.sample(logits) for _ in range(8)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)
    assert len(set(draw(7))) > 1


def test_smallest_temperature_does_not_overflow() -> None:
    logits = np.array([-30.0, 30.0, 29.0], dtype=np.float32)
    assert Sampler(SamplingParams(temperature=0.001, seed=0)).sample(logits) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_unusable_logits_are_refused(bad: float, temperature: float) -> None:
    with pytest.raises(EdgepackError, match="unusable logits"):
        Sampler(SamplingParams(temperature=temperature)).sample(np.array([0.0, bad, 1.0], dtype=np.float32))


def test_all_minus_infinity_and_wrong_shape_are_refused() -> None:
    with pytest.raises(EdgepackError, match="unusable logits"):
        Sampler().sample(np.full(4, -np.inf, dtype=np.float32))
    with pytest.raises(EdgepackError, match=r"shape \[V\]: got shape \[1, 4\]"):
        Sampler().sample(np.zeros((1, 4), dtype=np.float32))


@pytest.mark.parametrize("token_id", [-1, 4])
def test_history_outside_the_vocabulary_is_refused(token_id: int) -> None:
    with pytest.raises(EdgepackError, match=f"token id {token_id} in the history is outside the vocabulary of 4"):
        Sampler(SamplingParams(repetition_penalty=1.1)).sample(np.zeros(4, dtype=np.float32), [token_id])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.5),
        ("temperature", 1e-9),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_k", True),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("repetition_penalty", 0),
        ("repetition_penalty", float("inf")),
        ("seed", -3),
        ("seed", "x"),
        ("seed", 2**64),
    ],
)
def test_bad_parameters_give_one_clear_line(field: str, value: object) -> None:
    with pytest.raises(EdgepackError, match=rf"^{field} .* is not usable: expected [^\n]*$") as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert repr(value) in str(caught.value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("temperature", "expected"), [(0.001, {2}), (1e300, {0, 1, 2, 3})])
def test_extreme_temperatures_are_their_limits(temperature: float, expected: set[int]) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature, seed=3))
    logits = np.array([-3e5, 1.0, 9.0, -5.0], np.float32)
    assert {sampler.sample(logits) for _ in range(200)} == expected


@pytest.mark.filterwarnings("error")
def test_an_extreme_penalty_overflows_without_a_word() -> None:
    logits = np.array([-3e30, 1.0, 3e30], np.float32)
    strong = Sampler(SamplingParams(temperature=0.001, repetition_penalty=1e300, seed=3))
    assert {strong.sample(logits, [0, 2]) for _ in range(20)} == {1}
    with pytest.raises(EdgepackError, match=r"unusable logits \(largest value inf\)"):
        Sampler(SamplingParams(repetition_penalty=1e-300)).sample(logits, [2])
