"""The contract of a backend, and what every backend gets for it: generation of token ids and of text.

A backend implements `reset`, `prefill`, `decode`, `logits` and `close` over one KV cache, batch size 1.
Letters: S tokens given, V vocabulary.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from collections.abc import Generator as PyGenerator
from functools import cached_property
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from edgepack.errors import EdgepackError, PackageError
from edgepack.package.folder import Package
from edgepack.shown import shown
from edgepack.text.codec import StreamDecoder, TextCodec
from edgepack.values import Frozen
from edgepack_runtimes.sampling import GREEDY, Sampler, SamplingParams

FloatArray = npt.NDArray[np.float32]
FinishReason = Literal["stop", "length", "context"]
_CLOCK_TICK_S = 1e-7  # a step that the clock does not notice still took some time


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


class Runtime(ABC):
    """A loaded package: one model, one KV cache. Use it as a context manager, from one thread.

    Attributes, set by the backend:
        folder: the package folder, where tokenizer and chat template are found.
        vocab_size: V of the logits.
        max_context_tokens: capacity of the cache.
        past_tokens: how many tokens are in it.
        eos_token_ids: ids that end an answer; `edgepack.text.codec.read_eos_token_ids` reads them.
    """

    folder: Path
    vocab_size: int
    max_context_tokens: int
    past_tokens: int
    eos_token_ids: frozenset[int]
    _cache_owner: object = None  # the ticket of the generation that filled the cache

    @abstractmethod
    def reset(self) -> None:
        """Empty the cache."""

    @abstractmethod
    def prefill(self, token_ids: Sequence[int]) -> FloatArray:
        """Append `token_ids` to the cache, in chunks; return the logits of the last one, float32 [V]."""

    @abstractmethod
    def decode(self, token_id: int) -> FloatArray:
        """Append one token to the cache; return its logits, float32 [V]."""

    @abstractmethod
    def logits(self, token_ids: Sequence[int]) -> FloatArray:
        """Return the logits of every position over a fresh cache, float32 [S, V]; a running generation is lost."""

    @abstractmethod
    def close(self) -> None:
        """Give the model's memory back; calling it twice is fine."""

    def __repr__(self) -> str:
        place = f"{self.past_tokens} of {self.max_context_tokens} tokens"
        return f"<{type(self).__name__} of {shown(str(self.folder))}, {place}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def codec(self) -> TextCodec:
        """Tokenizer and chat template of the package, opened when first used. Raises PackageError where it has none."""
        return TextCodec(self.folder)

    def check_token_ids(self, token_ids: Iterable[int]) -> list[int]:
        """Return `token_ids` as plain ints.

        Raises:
            EdgepackError: there are none or more than the context holds, or one is no id of the vocabulary.
        """
        ids: list[int] = []
        for position, token_id in enumerate(token_ids):
            try:
                ids.append(operator.index(token_id))
            except TypeError:
                raise EdgepackError(f"token {position} is {shown(token_id)}: expected a whole number") from None
            if not 0 <= ids[-1] < self.vocab_size:
                raise EdgepackError(
                    f"token {position} is {shown(ids[-1])}: expected an id from 0 to {self.vocab_size - 1}"
                )
        if not ids:
            raise EdgepackError("the prompt is empty: expected at least one token")
        if len(ids) > self.max_context_tokens:
            raise EdgepackError(
                f"the prompt has {len(ids)} tokens and the context holds {self.max_context_tokens}: "
                "shorten it, or export with a larger --context"
            )
        return ids

    def check_room(self, token_ids: Iterable[int], past_tokens: int) -> list[int]:
        """Return `token_ids` as plain ints, if the context has room for all of them behind `past_tokens`.

        Raises:
            EdgepackError: it has not, or as `check_token_ids`.
        """
        ids = self.check_token_ids(token_ids)
        total = past_tokens + len(ids)
        if total > self.max_context_tokens:
            raise EdgepackError(
                f"the context is full: it holds {self.max_context_tokens} tokens, {total} are asked for"
            )
        return ids

    def generate(
        self,
        token_ids: Iterable[int],
        *,
        max_new_tokens: int,
        sampling: SamplingParams = GREEDY,
        stop_token_ids: Collection[int] | None = None,
    ) -> Generation:
        """Return an iterator of the token ids that follow `token_ids`, over a fresh cache.

        Work starts with the first `next()`; leaving early needs no clean-up. A later generation on the same runtime
        takes the cache over.

        Args:
            token_ids: the prompt, start token included.
            max_new_tokens: 1 or more.
            stop_token_ids: ids that end the answer in place of `eos_token_ids`; empty: nothing does.

        Raises:
            EdgepackError: at once, where the prompt or `max_new_tokens` is not usable.
        """
        stops = self.eos_token_ids if stop_token_ids is None else frozenset(stop_token_ids)
        return Generation(self, self.check_token_ids(token_ids), max_new_tokens, sampling, stops)

    def generate_text(
        self,
        prompt: str,
        *,
        max_new_tokens: int,
        sampling: SamplingParams = GREEDY,
        chat: bool = False,
        stop_strings: Sequence[str] = (),
    ) -> TextGeneration:
        """Return an iterator of pieces of text that follow `prompt`; joined, they are the answer.

        Args:
            prompt: continued as it is, or answered as a user's message with `chat`.
            stop_strings: texts that end the answer; they are not part of it.

        Raises:
            EdgepackError: at once, where there is no tokenizer or, with `chat`, no chat template, or an argument is
                not usable.
        """
        text = self.codec.render_chat([{"role": "user", "content": prompt}]) if chat else prompt
        ids = self.codec.encode(text)
        stops = self.eos_token_ids | self.codec.eos_token_ids
        decoder = self.codec.stream(ids, stop_strings)
        tokens = self.generate(ids, max_new_tokens=max_new_tokens, sampling=sampling, stop_token_ids=stops)
        return TextGeneration(tokens, decoder)


def require_backend(package: Package, backend: str, runtime: str) -> None:
    """Raise `PackageError` unless `package` was exported for `backend`, which is what `runtime` runs."""
    found = package.manifest.plan.backend
    if found != backend:
        raise PackageError(
            f"{package.path} is a package for {found}, which the runtime {runtime} cannot run: "
            f"choose another --runtime, or export with --to {backend}"
        )


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
        self, runtime: Runtime, prompt: list[int], max_new_tokens: int, sampling: SamplingParams, stops: frozenset[int]
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
