"""Sketches of texts: how much of one text is in another, for scripts with and without spaces, long texts and short."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from pydantic import ValidationError

from edgepack.text.overlap import CHARACTERS, MOST_HASHES, WORDS, Sketch, said_in, sketch_of


def words(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(chr(97 + letter) for letter in rng.integers(0, 26, 6)) for _ in range(count)]


def han(count: int, seed: int) -> str:
    return "".join(chr(0x4E00 + code) for code in np.random.default_rng(seed).integers(0, 4000, count))


def test_the_bytes_that_are_documented() -> None:
    """docs/calibration.md: eight words, each a hash of 8 bytes, in a polynomial modulo 2**64."""
    text = "One TWO  three\nfour five six seven eight"
    value = 0
    for word in text.lower().split():
        digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
        value = (value * 0x9E3779B97F4A7C15 + int.from_bytes(digest, "little")) % 2**64
    assert sketch_of([text]) == Sketch(every=1, hashes=(f"{value:016x}",))


def test_a_long_text_keeps_some_hundreds_by_their_value() -> None:
    text = words(5000, 0)
    whole, half = sketch_of([" ".join(text)]), sketch_of([" ".join(text[:2500])])
    assert MOST_HASHES // 4 < len(whole.hashes) <= MOST_HASHES and whole.every in (8, 16, 32)
    assert list(whole.hashes) == sorted(whole.hashes)
    assert all(int(value, 16) % whole.every == 0 for value in whole.hashes)
    # What is chosen depends on the value alone, so the sketches of two texts have what the texts have in common.
    common = {value for value in half.hashes if int(value, 16) % whole.every == 0}
    assert common <= set(whole.hashes) and len(common) > 50


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_the_share_of_words(share: float) -> None:
    known = words(8000, 1)
    sketch = sketch_of(["Something else. " * 20, " ".join(known)])
    count = int(3000 * share)
    text = " ".join([*words(3000 - count, 2), *known[4000 : 4000 + count]])
    assert sketch.share_of(text) == pytest.approx(share, abs=0.15)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_share_of_characters_where_words_have_no_spaces(share: float) -> None:
    known = han(6000, 1)
    sketch = sketch_of([known])
    count = int(2000 * share)
    assert sketch.share_of(han(2000 - count, 2) + known[3000 : 3000 + count]) == pytest.approx(share, abs=0.15)
    if share == 1.0:  # lines are broken elsewhere, and spaces stand between
        lines = known[3000:5000]
        assert sketch.share_of(" \n".join(lines[i : i + 17] for i in range(0, 2000, 17))) == 1.0


@pytest.mark.parametrize("text", ["Three short words", "短文", "Hi", "mixed 文字 text", "สวัสดีครับ"])
def test_identical_short_texts(text: str) -> None:
    sketch = sketch_of([text])
    assert sketch.share_of(text) == 1.0
    assert sketch.share_of(text + " and") == 0.0


def test_what_does_not_count() -> None:
    text = " ".join(words(40, 3))
    sketch = sketch_of([text])
    assert sketch.share_of(text.upper().replace(" ", "\n\n")) == 1.0
    assert sketch_of(["Cafe\u0301 " * WORDS]) == sketch_of(["Café " * WORDS])
    assert sketch.share_of("") == sketch_of([]).share_of(text) == 0.0 and sketch_of(["", " \n"]).hashes == ()


def test_nothing_reaches_from_one_text_into_the_next() -> None:
    first, second = words(WORDS, 4), words(WORDS, 5)
    sketch = sketch_of([" ".join(first), " ".join(second)])
    assert len(sketch.hashes) == 2
    assert sketch.share_of(" ".join([*first, *second])) == pytest.approx(2 / (WORDS + 1))
    assert len(sketch_of([han(CHARACTERS, 1), han(CHARACTERS, 2)]).hashes) == 2


def test_a_conversation_is_what_is_said_in_it() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": []},
        {"role": "u", "content": "b"},
    ]
    assert said_in(messages) == "a\n\nb"


@pytest.mark.parametrize(
    "wrong",
    [{"every": 0, "hashes": ()}, {"every": 1, "hashes": ("xyz",)}, {"every": 1, "hashes": ("0" * 16,) * 401}, {}],
)
def test_a_strangers_sketch_is_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Sketch.model_validate(wrong)
