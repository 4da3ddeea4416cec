"""The generation loop over one cache: token ids or pieces of text as they come, statistics, and why it stopped."""

from __future__ import annotations

from collections.abc import Generator as PyGenerator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, Protocol

from edgepack.errors import EdgepackError
from edgepack.shown import shown
from edgepack.text.codec import StreamDecoder
from edgepack.values import FloatArray, Frozen
from edgepack_runtimes.sampling import Sampler, SamplingParams

FinishReason = Literal["stop", "length", "context"]
_CLOCK_TICK_S = 1e-7  # a step that the clock does not notice still took some time


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How the tokens of an answer are chosen, and what ends it.

    Attributes:
        max_new_tokens: 1 or more.
        stop_token_ids: in place of the model's own; None: these.
        stop_strings: texts that end the answer, for runtimes that look for them.
    """

    max_new_tokens: int
    sampling: SamplingParams
    stop_token_ids: frozenset[int] | None = None
    stop_strings: Sequence[str] = ()


class Decoding(Protocol):
    """What a generation asks of a `TokenRuntime`."""

    max_context_tokens: int
    past_tokens: int
    _cache_owner: object

    def reset(self) -> None: ...
    def prefill(self, token_ids: Sequence[int]) -> FloatArray: ...
    def decode(self, token_id: int) -> FloatArray: ...


class GenerationStats(Frozen):
    """Times of one generation, without the time that the caller spent between two tokens.

    Attributes:
        prompt_tokens: S of the prompt.
        new_tokens: tokens handed out; the stop token is not one of them.
        ttft_ms: prefill and the choice of the first token.
        prefill_tokens_per_s: `prompt_tokens` over the time of `prefill`.
        decode_tokens_per_s: decode steps, sampling included, over their time; None before the first one.
    """

    prompt_tokens: int
    new_tokens: int
    ttft_ms: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float | None


def check_count(name: str, value: object) -> int:
    """Return `value`; refuse what is no whole number of at least 1: callers without a type checker pass anything."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise EdgepackError(f"{name} is {shown(value)}: expected a whole number of at least 1")
    return value


class Generation(Iterator[int]):
    """Token ids as they come, and what can be said about them at any moment, also after an interruption.

    Attributes:
        finish_reason: None until the last token; then "stop" (a stop token came; it is not handed out), "length"
            (`max_new_tokens` reached) or "context" (the cache is full: the last token handed out has no place in it).
    """

    def __init__(
        self, runtime: Decoding, prompt: list[int], max_new_tokens: int, sampling: SamplingParams, stops: frozenset[int]
    ) -> None:
        check_count("max_new_tokens", max_new_tokens)
        self.finish_reason: FinishReason | None = None
        self._runtime = runtime
        self._prompt = prompt
        self._max_new_tokens = max_new_tokens
        self._sampler = Sampler(sampling)
        self._stops = stops
        self._ticket = object()
        self._new_tokens = 0
        self._prefill_s = 0.0
        self._first_token_s: float | None = None
        self._decode_steps = 0
        self._decode_s = 0.0
        # A Python generator inside: once an exception has left it, Ctrl-C included, it never touches the cache again.
        self._steps = self._run()

    def __next__(self) -> int:
        return next(self._steps)

    @property
    def stats(self) -> GenerationStats:
        """The times so far.

        Raises:
            EdgepackError: there is no first token yet.
        """
        if self._first_token_s is None:
            raise EdgepackError("this generation has no statistics yet: take its first token, then ask")
        return GenerationStats(
            prompt_tokens=len(self._prompt),
            new_tokens=self._new_tokens,
            ttft_ms=1e3 * self._first_token_s,
            prefill_tokens_per_s=len(self._prompt) / max(self._prefill_s, _CLOCK_TICK_S),
            decode_tokens_per_s=self._decode_steps / max(self._decode_s, _CLOCK_TICK_S) if self._decode_steps else None,
        )

    def finish(self, reason: FinishReason) -> None:
        """End the generation from outside, for a reason that its consumer has seen (a stop string)."""
        self.finish_reason = reason
        self._steps.close()

    def _run(self) -> PyGenerator[int, None, None]:
        runtime, seen = self._runtime, set(self._prompt)
        runtime._cache_owner = self._ticket
        start = perf_counter()
        runtime.reset()
        logits = runtime.prefill(self._prompt)
        self._prefill_s = perf_counter() - start
        token = self._sampler.sample(logits, seen)
        self._first_token_s = perf_counter() - start
        room = runtime.max_context_tokens - len(self._prompt)
        while token not in self._stops:
            seen.add(token)
            self._new_tokens += 1
            yield token
            if self._new_tokens == self._max_new_tokens:
                self.finish_reason = "length"
                return
            if self._decode_steps == room:
                self.finish_reason = "context"
                return
            token = self._step(token, seen)
        self.finish_reason = "stop"

    def _step(self, token: int, seen: set[int]) -> int:
        if self._runtime._cache_owner is not self._ticket:
            raise EdgepackError("another generation has started on this model: finish one before the next")
        if self._runtime.past_tokens != len(self._prompt) + self._decode_steps:
            raise EdgepackError("the cache was changed during this generation: finish it before the next step of yours")
        start = perf_counter()
        following = self._sampler.sample(self._runtime.decode(token), seen)
        self._decode_s += perf_counter() - start
        self._decode_steps += 1
        return following


class TextGeneration(Iterator[str]):
    """Pieces of text as they come, none of them empty.

    Attributes:
        tokens: the generation underneath.
    """

    def __init__(self, tokens: Generation, decoder: StreamDecoder) -> None:
        self.tokens = tokens
        self._decoder = decoder
        self._pieces = self._run()

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def finish_reason(self) -> FinishReason | None:
        """As in `Generation`; a stop string gives "stop" too."""
        return self.tokens.finish_reason

    @property
    def stats(self) -> GenerationStats:
        """As in `Generation`."""
        return self.tokens.stats

    def _run(self) -> Iterator[str]:
        for token in self.tokens:
            piece = self._decoder.push(token)
            if self._decoder.stopped:
                self.tokens.finish("stop")
            if piece:
                yield piece
        tail = self._decoder.flush()
        if self._decoder.stopped:
            self.tokens.finish("stop")
        if tail:
            yield tail
