"""The generation loop that every runtime has, over a scripted model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.errors import EdgepackError, PackageError
from edgepack_runtimes import SamplingParams, TextCodec, TokenRuntime
from tests.support.tokenizer_packages import END_OF_TURN, EOS, HARD_TEXT, write_package


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_package(tmp_path)


class Scripted(TokenRuntime):
    """Answers every step with the next token of a script, and notes what was asked of the cache."""

    def __init__(self, folder: Path, script: Sequence[int], context: int = 64, vocab_size: int = 600) -> None:
        self.folder = folder
        self.vocab_size = vocab_size
        self.max_context_tokens = context
        self.eos_token_ids = frozenset({EOS})
        self.script = list(script)
        self.cache: list[int] = []
        self.closed = False
        self.on_decode: Callable[[], None] = lambda: None

    def _logits(self) -> np.ndarray:
        logits = np.zeros(self.vocab_size, dtype=np.float32)
        logits[self.script[len(self.cache) - self.prompt_tokens]] = 9
        return logits

    def reset(self) -> None:
        self.cache = []
        self.past_tokens = 0

    def prefill(self, token_ids: Sequence[int]) -> np.ndarray:
        self.cache += token_ids
        self.prompt_tokens = self.past_tokens = len(self.cache)
        return self._logits()

    def decode(self, token_id: int) -> np.ndarray:
        self.on_decode()
        self.cache.append(token_id)
        self.past_tokens += 1
        return self._logits()

    def logits(self, token_ids: Sequence[int], last: int | None = None) -> np.ndarray:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


def test_generate_stops_at_eos_and_does_not_yield_it(tmp_path: Path) -> None:
    model = Scripted(tmp_path, [10, 11, EOS, 12])
    model.cache = [99]  # left over from something else
    tokens = model.generate([2, 3], max_new_tokens=9)
    assert tokens.finish_reason is None
    assert list(tokens) == [10, 11] and tokens.finish_reason == "stop"
    assert model.cache == [2, 3, 10, 11]
    assert list(model.generate([2], max_new_tokens=4, stop_token_ids=[11])) == [10]
    unstopped = model.generate([2], max_new_tokens=4, stop_token_ids=())
    assert list(unstopped) == [10, 11, EOS, 12] and unstopped.finish_reason == "length"
    assert model.cache == [2, 10, 11, EOS]  # the last token is not computed for nothing
    first = Scripted(tmp_path, [EOS]).generate([2], max_new_tokens=1)
    assert list(first) == [] and first.finish_reason == "stop" and first.stats.new_tokens == 0


@pytest.mark.parametrize(("prompt_tokens", "expected"), [(6, 3), (8, 1)])
def test_generate_ends_cleanly_where_the_context_ends(tmp_path: Path, prompt_tokens: int, expected: int) -> None:
    """The last token needs no place in the cache, so a full prompt still gets one."""
    model = Scripted(tmp_path, range(10, 40), context=8)
    tokens = model.generate([3] * prompt_tokens, max_new_tokens=20)
    assert list(tokens) == list(range(10, 10 + expected))
    assert tokens.finish_reason == "context" and len(model.cache) == 8


def test_statistics(tmp_path: Path) -> None:
    model = Scripted(tmp_path, [10, 11, 12, EOS])
    tokens = model.generate([2, 3, 4], max_new_tokens=9)
    with pytest.raises(EdgepackError, match="no statistics yet"):
        _ = tokens.stats
    next(tokens)
    assert tokens.stats.new_tokens == 1 and tokens.stats.decode_tokens_per_s is None
    list(tokens)
    stats = tokens.stats
    assert (stats.prompt_tokens, stats.new_tokens) == (3, 3)
    assert stats.ttft_ms >= 1e3 * 3 / stats.prefill_tokens_per_s > 0
    assert stats.decode_tokens_per_s is not None and stats.decode_tokens_per_s > 0


def test_repetition_penalty_sees_prompt_and_answer(tmp_path: Path) -> None:
    """Logits are 9 for the script's token and 0 elsewhere: a penalty of any size leaves 9 / penalty on top, ..."""
    model = Scripted(tmp_path, [10, 10, 10], vocab_size=12)
    assert list(model.generate([2], max_new_tokens=3, sampling=SamplingParams(repetition_penalty=2))) == [10, 10, 10]
    # ... and a prompt token with a positive logit falls behind one that was not seen.
    model._logits = lambda: np.array([0, 0, 5, 4, 3, 0], dtype=np.float32)  # type: ignore[method-assign]
    model.vocab_size = 6
    assert list(model.generate([2], max_new_tokens=3, sampling=SamplingParams(repetition_penalty=2))) == [3, 4, 2]


def test_interrupt_leaves_a_model_that_works(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    model = Scripted(tmp_path, [10, 11, 12, EOS])
    tokens = model.generate([2], max_new_tokens=9)
    assert [next(tokens), next(tokens)] == [10, 11]
    model.on_decode = interrupt
    with pytest.raises(KeyboardInterrupt):
        next(tokens)
    assert tokens.stats.new_tokens == 2 and tokens.finish_reason is None
    model.on_decode = lambda: None
    assert list(tokens) == []  # a broken generation does not go on with a doubtful cache
    assert list(model.generate([2], max_new_tokens=9)) == [10, 11, 12]


@pytest.mark.parametrize("step", [lambda m: m.reset(), lambda m: m.prefill([7]), lambda m: m.decode(7)])
def test_a_cache_changed_from_outside_ends_a_generation(step: Callable[[TokenRuntime], object], tmp_path: Path) -> None:
    model = Scripted(tmp_path, [10, 11, 12, 13, 14, EOS])
    tokens = model.generate([2, 3], max_new_tokens=9)
    assert [next(tokens), next(tokens)] == [10, 11]
    step(model)
    with pytest.raises(EdgepackError, match="the cache was changed during this generation"):
        next(tokens)


def test_a_second_generation_does_not_mix_with_the_first(tmp_path: Path) -> None:
    model = Scripted(tmp_path, [10, 11, 12, EOS])
    first, second = model.generate([2], max_new_tokens=9), model.generate([3], max_new_tokens=9)
    assert next(first) == 10
    assert list(second) == [10, 11, 12]
    with pytest.raises(EdgepackError, match="another generation has started"):
        next(first)


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        ([], "the prompt is empty"),
        ([2, 600], "token 1 is 600: expected an id from 0 to 599"),
        ([-1], "token 0 is -1: expected"),
        ([2.5], "token 0 is 2.5: expected a whole number"),
        ([2] * 65, "the prompt has 65 tokens and the context holds 64"),
    ],
)
def test_bad_prompts_are_refused_at_once(tmp_path: Path, token_ids: list[Any], message: str) -> None:
    with pytest.raises(EdgepackError, match=message):
        Scripted(tmp_path, []).generate(token_ids, max_new_tokens=1)


@pytest.mark.parametrize("count", [0, -1, 2.0, True])
def test_bad_max_new_tokens_is_refused_at_once(tmp_path: Path, count: Any) -> None:
    with pytest.raises(EdgepackError, match=r"max_new_tokens is .*: expected a whole number of at least 1"):
        Scripted(tmp_path, []).generate([2], max_new_tokens=count)


def test_generate_text_streams_the_answer(package: Path) -> None:
    answer = TextCodec(package).encode(HARD_TEXT, add_bos=False)
    with Scripted(package, [*answer, END_OF_TURN], context=500) as model:
        text = model.generate_text("the quick", max_new_tokens=400)
        pieces = list(text)
        assert "".join(pieces) == HARD_TEXT and "" not in pieces and len(pieces) > 20
        assert text.finish_reason == "stop" and text.stats.new_tokens == len(answer)
        assert model.cache == [*model.codec.encode("the quick"), *answer]
    assert model.closed


def test_generate_text_renders_the_chat(package: Path) -> None:
    model = Scripted(package, [EOS])
    model.max_context_tokens = 500
    assert list(model.generate_text("Hi", max_new_tokens=4, chat=True)) == []
    assert model.cache == model.codec.encode("<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n")


@pytest.mark.parametrize("max_new_tokens", [3, 400])
def test_generate_text_ends_at_a_stop_string(package: Path, max_new_tokens: int) -> None:
    answer = TextCodec(package).encode(HARD_TEXT, add_bos=False)
    model = Scripted(package, answer, context=500)
    text = model.generate_text("a", max_new_tokens=max_new_tokens, stop_strings=["naïve"])
    if max_new_tokens == 400:
        assert "".join(text) == HARD_TEXT[: HARD_TEXT.index("naïve")] and text.finish_reason == "stop"
        assert text.stats.new_tokens < len(answer)
    else:
        assert "".join(text) == model.codec.decode(answer[:3]) and text.finish_reason == "length"


def test_generate_text_without_tokenizer(tmp_path: Path) -> None:
    model = Scripted(tmp_path, [10, EOS])
    with pytest.raises(PackageError, match="no tokenizer"):
        model.generate_text("Hi", max_new_tokens=1)
    assert list(model.generate([2], max_new_tokens=3)) == [10]
