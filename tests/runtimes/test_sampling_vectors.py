"""The sampler, the loops of docs/sampling.md and tests/vectors/sampling.json say the same, bit for bit."""

from __future__ import annotations

import decimal
import json
import math
import random
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from edgepack_runtimes import portable_math
from edgepack_runtimes.portable_math import SplitMix64
from edgepack_runtimes.sampling import Sampler, SamplingParams
from tests.support.documented import python_blocks
from tests.support.sampling_vectors import FILE, text

VECTORS: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))


def page() -> dict[str, Any]:
    """What the blocks of the page define: Python without numpy."""
    names: dict[str, Any] = {}
    exec("\n".join(source for name, source in python_blocks() if name == "docs/sampling.md"), names)
    return names


PAGE = page()


def number(bits: str) -> float:
    return float(struct.unpack({8: ">f", 16: ">d"}[len(bits)], bytes.fromhex(bits))[0])


def logits_of(case: dict[str, Any]) -> list[float]:
    """As the last paragraph of the page says."""
    if "logits" in case:
        return [number(bits) for bits in case["logits"]]
    made, generator = case["made"], PAGE["Generator"](case["made"]["seed"])
    bits, fraction = made["bits"], made["fraction"]
    return [((generator.next_word() >> (64 - bits)) - 2 ** (bits - 1)) / 2**fraction for _ in range(made["size"])]


def tokens_of_the_page(logits: Sequence[float], history: Sequence[int], knobs: dict[str, Any], count: int) -> list[int]:
    seen, tokens, rest = list(history), [], dict(knobs)
    generator = PAGE["Generator"](rest.pop("seed"))
    for _ in range(count):
        tokens.append(PAGE["choose"](logits, seen, **rest, generator=generator))
        seen.append(tokens[-1])
    return tokens


def test_the_file_is_what_the_sampler_gives_today() -> None:
    assert FILE.read_text(encoding="utf-8") == text()


def test_the_loops_of_the_page_give_the_random_numbers_and_exponentials_of_the_file() -> None:
    for row in VECTORS["generator"]:
        words, floats = (PAGE["Generator"](int(row["seed"], 16)) for _ in range(2))
        assert [f"{words.next_word():016x}" for _ in row["words"]] == row["words"]
        assert [floats.next_float() for _ in row["floats"]] == [number(bits) for bits in row["floats"]]
    for x, expected in VECTORS["exp"]:
        assert PAGE["exp"](number(x)) == number(expected)


@pytest.mark.parametrize("case", VECTORS["cases"], ids=range(len(VECTORS["cases"])))
def test_the_loops_of_the_page_give_the_tokens_of_the_file(case: dict[str, Any]) -> None:
    knobs = {name: case[name] for name in ("temperature", "top_k", "top_p", "repetition_penalty")}
    knobs["seed"] = int(case["seed"] or "0", 16)
    assert tokens_of_the_page(logits_of(case), case["history"], knobs, len(case["tokens"])) == case["tokens"]


def random_case(rng: random.Random) -> tuple[list[float], list[int], dict[str, Any]]:
    size = rng.choice((1, 2, 9, 120, 700))
    step = rng.choice((0.0, 0.25))  # with steps many are tied
    drawn = [rng.gauss(0, rng.choice((0.3, 3, 12))) for _ in range(size)]
    logits = np.array([step * round(x / step) if step else x for x in drawn], np.float32)
    knobs = {
        "temperature": rng.choice((0.001, 0.3, 0.8, 1.0, 1.9, 1e9)),
        "top_k": rng.choice((0, 0, 1, 40, 64)),
        "top_p": rng.choice((1.0, 0.95, 0.5, 0.01, 1 - 1e-12)),
        "repetition_penalty": rng.choice((1.0, 1.0, 0.8, 1.3)),
        "seed": rng.getrandbits(64),
    }
    return [float(x) for x in logits], rng.choices(range(size), k=rng.choice((0, 5))), knobs


def test_the_loops_of_the_page_give_the_tokens_of_the_sampler() -> None:
    rng = random.Random(12)
    for _ in range(200):
        logits, history, knobs = random_case(rng)
        sampler, seen, tokens = Sampler(SamplingParams(**knobs)), set(history), []
        for _ in range(5):
            tokens.append(sampler.sample(np.array(logits, np.float32), seen))
            seen.add(tokens[-1])
        assert tokens_of_the_page(logits, history, knobs, 5) == tokens, (knobs, history)


def test_the_exponential_function_is_that_of_the_page_and_within_a_unit_of_the_last_place() -> None:
    rng = random.Random(4)
    points = [-(2.0 ** rng.uniform(-60, 10)) for _ in range(3000)]
    ours = portable_math.exp(np.array(points))
    assert ours.tolist() == [PAGE["exp"](x) for x in points]
    context = decimal.Context(prec=40, Emin=-1000)
    for x, value in zip(points, ours.tolist(), strict=True):
        if x >= -708:
            exact = context.exp(decimal.Decimal(x))
            assert abs(decimal.Decimal(value) - exact) < decimal.Decimal(math.ulp(float(exact)))


def test_words_of_the_generator_are_the_published_ones() -> None:
    """The check values of the C program for seed 1234567."""
    generator = SplitMix64(1234567)
    expected = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431)
    assert tuple(generator.next_word() for _ in expected) == expected
    again = SplitMix64(generator.state)
    assert again.next_float() == (16408922859458223821 >> 11) / 2**53


def test_a_running_sum_goes_from_left_to_right() -> None:
    values = np.random.default_rng(2).random(300_000) * np.logspace(-12, 0, 300_000)
    for array in (values, values[::3], values[::-1]):
        total, sums = 0.0, []
        for value in array.tolist():
            total = total + value
            sums.append(total)
        assert portable_math.running_sum(array).tolist() == sums
