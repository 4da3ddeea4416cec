"""The contracts of a runtime: `TextRuntime` answers, `TokenRuntime` also takes tokens step by step and gives logits.

Letters: S tokens given, V vocabulary.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self

from edgepack.errors import EdgepackError, PackageError
from edgepack.model.spec import ModelSpec
from edgepack.package.folder import Package
from edgepack.planning.plan import Plan
from edgepack.planning.planner import check_context
from edgepack.shown import shown
from edgepack.system.threads import require_threads
from edgepack.text.codec import TextCodec
from edgepack.text.stop_tokens import read_eos_token_ids
from edgepack.values import FloatArray
from edgepack_runtimes.generation import Generation, GenerationSettings, TextGeneration
from edgepack_runtimes.sampling import GREEDY, SamplingParams

# A text, or the messages of a conversation, as chat templates take them.
Prompt = str | Sequence[Mapping[str, Any]]


class NoTokensError(EdgepackError, AttributeError):
    """A runtime of texts alone was asked for what only a `TokenRuntime` has."""


class TextRuntime(ABC):
    """A loaded package that answers, one generation at a time. Use it as a context manager, from one thread.

    Attributes:
        package, plan, spec: what is run.
        folder: the package folder, where tokenizer and chat template are found.
        threads: CPU threads; None takes all cores.
        vocab_size: V of the logits.
        max_context_tokens: most tokens of a prompt and its answer.
        past_tokens: how many tokens are in the cache.
        eos_token_ids: ids that end an answer; `edgepack.text.stop_tokens` reads them.
        no_logits: what is told whoever asks a runtime of texts alone for logits.
    """

    no_logits: ClassVar[str] = "this runtime gives text and no logits: use another --runtime"

    package: Package
    plan: Plan
    spec: ModelSpec
    folder: Path
    threads: int | None
    vocab_size: int
    max_context_tokens: int
    past_tokens: int
    eos_token_ids: frozenset[int]

    def _begin(self, package: Package, *, backend: str, runtime: str, threads: int | None) -> None:
        """What every runtime does with an opened package first: refuse what it cannot run, and note what it is.

        Raises:
            EdgepackError: the package is for another backend, its lengths are impossible, or `threads` is.
        """
        require_backend(package, backend, runtime)
        require_threads(threads)
        plan = package.manifest.plan
        check_context(plan.spec, plan.context_tokens)
        self.package, self.plan, self.spec, self.threads = package, plan, plan.spec, threads
        self.folder, self.vocab_size, self.max_context_tokens = package.path, plan.spec.vocab_size, plan.context_tokens
        self.past_tokens = 0
        self.eos_token_ids = read_eos_token_ids(package.path) or frozenset(plan.spec.eos_token_ids)

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
        stops = None if stop_token_ids is None else frozenset(stop_token_ids)
        return self._answer_ids(self.check_token_ids(token_ids), GenerationSettings(max_new_tokens, sampling, stops))

    def generate_text(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int,
        sampling: SamplingParams = GREEDY,
        chat: bool = False,
        stop_strings: Sequence[str] = (),
    ) -> TextGeneration:
        """Return an iterator of pieces of text that follow `prompt`; joined, they are the answer.

        Args:
            prompt: a text, continued as it is or answered as a user's message with `chat`; or messages, answered.
            stop_strings: texts that end the answer; they are not part of it.

        Raises:
            EdgepackError: at once, where there is no tokenizer or, with `chat`, no chat template, or an argument is
                not usable.
        """
        if isinstance(prompt, str):
            text = self._render([{"role": "user", "content": prompt}]) if chat else prompt
        else:
            text = self._render(prompt)
        return self._answer_text(text, GenerationSettings(max_new_tokens, sampling, stop_strings=stop_strings))

    @abstractmethod
    def _answer_ids(self, ids: list[int], settings: GenerationSettings) -> Generation:
        """What follows checked `ids`."""

    @abstractmethod
    def _answer_text(self, text: str, settings: GenerationSettings) -> TextGeneration:
        """What follows `text`."""

    def _render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        return self.codec.render_chat(messages)

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

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            # Asked only for what is not there: a runtime of texts alone says what to take in its place.
            if name in TokenRuntime.__abstractmethods__:
                raise NoTokensError(self.no_logits)
            raise AttributeError(f"'{type(self).__name__}' object has no attribute {shown(name)}")

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


class TokenRuntime(TextRuntime):
    """A runtime that takes token ids step by step and gives logits, over one KV cache of batch size 1."""

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
    def logits(self, token_ids: Sequence[int], last: int | None = None) -> FloatArray:
        """Return logits of the last positions over a fresh cache, float32 [`last`, V]; a running generation is lost.

        Args:
            last: 1 to S; None takes all positions. Those before are cheaper: only their keys and values are computed.

        Raises:
            EdgepackError: the tokens or `last` are not usable.
        """

    @staticmethod
    def _first_of(ids: Sequence[int], last: int | None) -> int:
        """The first of the `last` positions of `ids`."""
        if last is None:
            return 0
        if not 1 <= last <= len(ids):
            raise EdgepackError(f"last is {last}: expected 1 to {len(ids)}, the number of tokens")
        return len(ids) - last

    def _answer_ids(self, ids: list[int], settings: GenerationSettings) -> Generation:
        stops = self.eos_token_ids if settings.stop_token_ids is None else settings.stop_token_ids
        return Generation(self, ids, settings.max_new_tokens, settings.sampling, stops)

    def _answer_text(self, text: str, settings: GenerationSettings) -> TextGeneration:
        ids = self.codec.encode(text)
        decoder = self.codec.stream(ids, settings.stop_strings)
        stops = self.eos_token_ids | self.codec.eos_token_ids
        return TextGeneration(
            self._answer_ids(self.check_token_ids(ids), replace(settings, stop_token_ids=stops)), decoder
        )


def require_backend(package: Package, backend: str, runtime: str) -> None:
    """Raise `PackageError` unless `package` was exported for `backend`, which is what `runtime` runs."""
    found = package.manifest.plan.backend
    if found != backend:
        raise PackageError(
            f"{package.path} is a package for {found}, which the runtime {runtime} cannot run: "
            f"choose another --runtime, or export with --to {backend}"
        )


def require_tokens(runtime: TextRuntime) -> TokenRuntime:
    """`runtime`, where it takes tokens step by step.

    Raises:
        NoTokensError: it gives text and no logits.
    """
    if not isinstance(runtime, TokenRuntime):
        raise NoTokensError(runtime.no_logits)
    return runtime
