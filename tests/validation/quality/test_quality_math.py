"""The figures of a comparison and the texts that it is made on."""

from __future__ import annotations

import json
import math
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from edgepack.errors import EdgepackError
from edgepack.validation.processes.protocol import FailedRunError
from edgepack.validation.quality.divergence import (
    NEAR_TIE_NATS,
    Positions,
    compare_positions,
    joined,
    p99,
    perplexity,
    perplexity_ratio,
    require_finite,
    share,
    text_quality,
)
from edgepack.validation.quality.texts import (
    COMPARED_POSITIONS,
    FILE_TOKENS,
    MOST_TOKENS,
    PIECE_TOKENS,
    Piece,
    builtin_texts,
    cut_file,
    cut_texts,
    read_text,
)

# --- arithmetic ---


def logs(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def test_figures_by_hand() -> None:
    reference = np.array([logs(0.5, 0.25, 0.25), logs(0.48, 0.5, 0.02), logs(0.25, 0.5, 0.25)], np.float32) + 7
    package = np.array([logs(0.25, 0.125, 0.625), logs(0.5, 0.48, 0.02), logs(0.25, 0.5, 0.25)], np.float32) - 3
    got = compare_positions(reference, package, [0, 2, 1])
    # 0.5 ln(0.5 / 0.25) + 0.25 ln(0.25 / 0.125) + 0.25 ln(0.25 / 0.625); then 0.48 ln(48/50) + 0.5 ln(50/48).
    assert got.kl == pytest.approx((0.75 * math.log(2) - 0.25 * math.log(2.5), 0.02 * math.log(50 / 48), 0.0), abs=1e-7)
    assert got.loss == pytest.approx((math.log(4), math.log(50), math.log(2)), abs=1e-6)
    assert got.reference_loss == pytest.approx((math.log(2), math.log(50), math.log(2)), abs=1e-6)
    assert got.same == (False, False, True)
    assert got.near_tie == (False, True, False)  # ln(50 / 48) = 0.04
    assert got.agreement == [False, True, True]
    row = text_quality("row", got)
    assert (row.tokens, row.top1_agreement) == (3, 2 / 3)
    assert row.perplexity == pytest.approx((4 * 50 * 2) ** (1 / 3))
    assert row.reference_perplexity == pytest.approx((2 * 50 * 2) ** (1 / 3))
    assert perplexity_ratio(got) == pytest.approx(2 ** (1 / 3))


def test_a_near_tie_is_no_excuse_for_a_third_token() -> None:
    reference = np.array([logs(0.4, 0.39, 0.21)] * 3, np.float32)
    package = np.array([logs(0.6, 0.2, 0.2), logs(0.2, 0.6, 0.2), logs(0.2, 0.2, 0.6)], np.float32)
    got = compare_positions(reference, package, [0, 0, 0])
    assert got.near_tie == (True, True, True)
    assert got.same == (True, False, False)
    assert got.agreement == [True, True, False]


@pytest.mark.parametrize(("gap", "tie"), [(0.99 * NEAR_TIE_NATS, True), (1.01 * NEAR_TIE_NATS, False)])
def test_where_a_near_tie_ends(gap: float, tie: bool) -> None:
    row = np.array([[0.0, gap, -5.0]], np.float32)
    assert compare_positions(row, row, [0]).near_tie == (tie,)


def test_many_positions_against_plain_numpy() -> None:
    random = np.random.default_rng(0)
    reference = (random.normal(size=(53, 1000)) * 4).astype(np.float32)
    package = (reference + random.normal(size=reference.shape)).astype(np.float32)
    targets = random.integers(0, 1000, 53)
    got = compare_positions(reference, package, targets.tolist())
    p, q = (
        np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(-1, keepdims=True) for x in (reference, package)
    )
    np.testing.assert_allclose(got.kl, (p * np.log(p / q)).sum(-1), rtol=1e-12)
    np.testing.assert_allclose(got.loss, -np.log(q[np.arange(53), targets]), rtol=1e-12)
    np.testing.assert_allclose(got.reference_loss, -np.log(p[np.arange(53), targets]), rtol=1e-12)
    assert list(got.same) == (p.argmax(-1) == q.argmax(-1)).tolist()
    best = np.sort(p, -1)
    assert list(got.near_tie) == (np.log(best[:, -1] / best[:, -2]) <= NEAR_TIE_NATS).tolist()
    assert 0 < share(got.same) < 1
    whole = joined([compare_positions(reference[:20], package[:20], targets[:20].tolist()), got])
    assert whole.kl == got.kl[:20] + got.kl
    assert p99(got.kl) == pytest.approx(sorted(got.kl)[-1] * 0.48 + sorted(got.kl)[-2] * 0.52)  # 0.99 * 52 = 51.48


def test_extreme_logits_give_finite_figures() -> None:
    reference = np.array([[3e38, 0.0, -3e38], [0.0, 0.0, 0.0]], np.float32)
    package = np.array([[-3e38, 0.0, 3e38], [0.0, 0.0, 3e38]], np.float32)
    got = compare_positions(reference, package, [0, 1])
    assert all(math.isfinite(value) for value in (*got.kl, *got.loss))
    assert min(got.kl) > 1e38
    assert math.isfinite(perplexity(got.loss)) and math.isfinite(perplexity_ratio(got))


def test_no_kl_against_itself() -> None:
    row = (np.random.default_rng(1).normal(size=(40, 500)) * 9).astype(np.float32)
    assert set(compare_positions(row, row.copy(), [0] * 40).kl) == {0.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite(bad: float) -> None:
    logits = np.zeros((3, 4), np.float32)
    require_finite(logits, "x")
    logits[1, 2] = bad
    with pytest.raises(FailedRunError, match="the package p: the logits at position 1 are not finite"):
        require_finite(logits, "the package p")


def test_positions_survive_the_way_between_processes() -> None:
    values = compare_positions(np.eye(3, dtype=np.float32), np.ones((3, 3), np.float32), [0, 1, 2])
    assert Positions.model_validate(json.loads(json.dumps(values.model_dump()))) == values


# --- texts ---


def test_the_built_in_texts() -> None:
    texts = builtin_texts()
    names = [text.name for text in texts]
    assert len(set(names)) == len(names) == 21
    assert {"english", "python", "javascript", "kotlin", "chat with tools", "long english"} <= set(names)
    for script in (
        "CJK",
        "HIRAGANA",
        "ARABIC",
        "DEVANAGARI",
        "HANGUL",
        "CYRILLIC",
        "THAI",
        "BENGALI",
        "GREEK",
        "HEBREW",
    ):
        most = max(sum(unicodedata.name(c, "").startswith(script) for c in text.plain) for text in texts)
        assert most > 60, script
    assert len(next(text for text in texts if text.name == "long english").plain.split()) > 1900
    chat = next(text for text in texts if text.messages)
    assert chat.plain.startswith("<start_of_turn>user\nYou can call these functions")
    assert "<start_of_turn>model\n```json\n" in chat.plain
    assert "assistant" not in chat.plain
    json.loads(chat.plain.split("```json\n")[1].split("```")[0])


def piece(name: str, tokens: int) -> Piece:
    return Piece(name=name, ids=tuple(range(tokens)))


def test_long_texts_are_cut_and_short_ones_are_not() -> None:
    texts = [piece("a", 4000), piece("b", 100), piece("c", 3000)]
    cut, notes = cut_texts(texts, context_tokens=10_000)
    assert [len(p.ids) for p in cut] == [2500, 100, 2500]
    assert sum(len(p.ids) for p in cut) == MOST_TOKENS
    assert notes == ["2 of 3 texts were cut to 2,500 tokens: 5,100 tokens are run"]
    cut, notes = cut_texts(texts, context_tokens=64)
    assert [p.positions for p in cut] == [63, 63, 63]
    assert notes == ["3 of 3 texts were cut to 64 tokens: the context has no more"]
    assert cut_texts([piece("b", 101)], 1000) == ([piece("b", 101)], [])


def test_the_last_positions_are_compared_and_the_others_are_their_context() -> None:
    (long, short), _ = cut_texts([piece("long", 2340), piece("short", 60)], context_tokens=4096)
    assert (long.positions, long.context) == (COMPARED_POSITIONS, 2239)
    assert long.targets == tuple(range(2240, 2340))
    assert (short.positions, short.context, short.targets) == (59, 0, tuple(range(1, 60)))


@pytest.mark.parametrize("bos", [7, None])
def test_a_file_in_pieces(bos: int | None) -> None:
    head = [] if bos is None else [bos]
    pieces, notes = cut_file(Piece(name="t", ids=(*head, *range(100, 1000))), bos, context_tokens=4096)
    assert notes == []
    assert pieces[0].ids == (*head, *range(100, 100 + PIECE_TOKENS - len(head)))
    assert all(len(p.ids) <= PIECE_TOKENS and list(p.ids[: len(head)]) == head for p in pieces)
    assert [i for p in pieces for i in p.ids[len(head) :]] == list(range(100, 1000))
    assert [p.name for p in pieces] == ["t 1/4", "t 2/4", "t 3/4", "t 4/4"]
    long, notes = cut_file(Piece(name="t", ids=(*head, *range(5000))), bos, context_tokens=4096)
    assert sum(len(p.ids) - len(head) for p in long) == FILE_TOKENS
    assert notes == ["the first 1,100 of 5,000 tokens of t were used"]
    assert max(len(p.ids) for p in cut_file(long[0], bos, context_tokens=32)[0]) == 32


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read: No such file"), (b"", "the text is empty"), (b"ab\xff", "not a text file in UTF-8")],
)
def test_files_that_are_no_text(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(EdgepackError, match=message):
        read_text(file)
