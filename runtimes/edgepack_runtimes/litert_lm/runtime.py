"""LiteRT-LM, Google's own engine, on the bundle of a package: the one that Android applications embed.

Its Python interface takes and gives text, never logits. Token ids are taken where they are the tokens of a text.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Generator as PyGenerator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from itertools import chain
from time import perf_counter
from typing import Any, NoReturn
from weakref import ref

import litert_lm

from edgepack.errors import EdgepackError, PackageError, broken_library
from edgepack.package.folder import Package
from edgepack.package.interface import DECODER
from edgepack.text.start_token import read_start_token
from edgepack.text.stop_tokens import read_stop_token_ids
from edgepack.text.templates import ChatTemplates
from edgepack_runtimes.base import TextRuntime
from edgepack_runtimes.cache import CacheSpec, cached_entry
from edgepack_runtimes.generation import (
    FinishReason,
    Generation,
    GenerationSettings,
    GenerationStats,
    TextGeneration,
    check_count,
)
from edgepack_runtimes.guards.litertlm import check_bundle
from edgepack_runtimes.litert_lm import prepack as litert_lm_prepack
from edgepack_runtimes.litert_lm.prepack import open_engine
from edgepack_runtimes.litert_lm.start import conversation_tokens, without_start
from edgepack_runtimes.native.log import captured_log, silence_exit
from edgepack_runtimes.sampling import SamplingParams

# Its interface takes a C int, and would cut a larger one without a word.
MOST_SEED = 2**31 - 1
# Words of the prompts that are measured.
WORDS = (
    "after",
    "book",
    "city",
    "door",
    "earth",
    "father",
    "garden",
    "hand",
    "idea",
    "light",
    "morning",
    "paper",
    "river",
)


def cache_spec(package: Package) -> CacheSpec:
    """How the cached entry of `package` is made: the decoder's packed weights, under the name that the engine uses."""
    # The engine names its file by the bundle's time and size: a copy of the package needs an entry of its own.
    version = f"{metadata.version('litert-lm-api')} {package.file(DECODER).stat().st_mtime_ns}"
    files, command = (package.listed(DECODER),), ("-m", litert_lm_prepack.__name__)
    return CacheSpec(runtime="litert-lm", version=version, files=files, command=command)


class LitertLmRuntime(TextRuntime):
    """A package in LiteRT-LM.

    Args:
        package: an opened package.
        threads: CPU threads; None takes all cores.
        rebuild_cache: pack the weights again.
    """

    no_logits = "LiteRT-LM gives text and no logits: use --runtime litert"

    def __init__(self, package: Package, *, threads: int | None = None, rebuild_cache: bool = False) -> None:
        self._begin(package, backend="litert", runtime="litert-lm", threads=threads)
        if not (package.path / "tokenizer.json").is_file():
            raise PackageError(
                f"{package.path} has no tokenizer, without which LiteRT-LM loads nothing: use --runtime litert, "
                "or export a checkpoint with a tokenizer.json"
            )
        check_bundle(package)  # at every load: the engine opens the bundle itself, which is too large to hash
        silence_exit()
        # Errors are captured where they can come, to be quoted.
        try:
            litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
        except (OSError, ImportError, RuntimeError) as error:  # its first call loads the native library
            raise broken_library(error, "litert_lm") from error
        self._answer: Callable[[], EngineText | None] = lambda: None
        self.eos_token_ids = read_stop_token_ids(package.path) or frozenset(self.spec.eos_token_ids)
        self._start = read_start_token(package.path)
        self._entry = cached_entry(package, cache_spec(package), rebuild=rebuild_cache)
        self._engine: litert_lm.Engine | None = open_engine(package.file(DECODER), self._entry.path, threads)

    @property
    def engine(self) -> litert_lm.Engine:
        """The engine itself. Raises EdgepackError once the model is closed."""
        if self._engine is None:
            raise EdgepackError("this model is closed: load the package again")
        return self._engine

    def sampler(self, sampling: SamplingParams) -> litert_lm.SamplerConfig:
        """`sampling` in the engine's words.

        Raises:
            EdgepackError: the engine cannot sample like this.
        """
        if sampling.repetition_penalty != 1.0:
            raise EdgepackError("LiteRT-LM has no repetition penalty for plain text: use --runtime litert")
        if sampling.seed is not None and sampling.seed > MOST_SEED:
            raise EdgepackError(
                f"LiteRT-LM takes seeds up to {MOST_SEED}, got {sampling.seed}: take a smaller one, or --runtime litert"
            )
        greedy = sampling.temperature == 0
        return litert_lm.SamplerConfig(
            top_k=1 if greedy else sampling.top_k or self.vocab_size,
            top_p=1.0 if greedy else sampling.top_p,
            temperature=1.0 if greedy else sampling.temperature,
            seed=sampling.seed,
        )

    def _render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        # Only the template: a second tokenizer beside the engine's would cost 0.4 GB.
        return ChatTemplates(self.folder).render(messages)

    def _answer_text(self, text: str, settings: GenerationSettings) -> TextGeneration:
        if settings.stop_strings:
            raise EdgepackError("LiteRT-LM knows no stop strings: use --runtime litert")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise EdgepackError(f"the text is not valid Unicode (character {error.start}): expected UTF-8") from None
        spoken = without_start(self.engine, self._start, text)
        ids = self.check_token_ids([*self._start_ids, *self.engine.tokenize(spoken)])
        return self._spoken(spoken, len(ids), settings)

    def _answer_ids(self, ids: list[int], settings: GenerationSettings) -> Generation:
        if settings.stop_token_ids is not None and settings.stop_token_ids != self.eos_token_ids:
            raise EdgepackError("LiteRT-LM stops at the tokens in its bundle and at no others: use --runtime litert")
        start = self._start_ids
        spoken = ids[len(start) :]
        text = self.engine.detokenize(spoken)
        if ids[: len(start)] != start or list(self.engine.tokenize(text)) != spoken:
            raise EdgepackError(
                f"LiteRT-LM takes text, and these {len(ids)} token ids are not the start token and the tokens of a "
                "text: use --runtime litert"
            )
        return EngineTokens(self, self._spoken(text, len(ids), settings))

    def _spoken(self, text: str, tokens: int, settings: GenerationSettings) -> EngineText:
        """The answer to a `text` of so many `tokens`, without the start token that the engine adds."""
        progress = EngineProgress(tokens, check_count("max_new_tokens", settings.max_new_tokens))
        return EngineText(self, text, progress, self.sampler(settings.sampling))

    @property
    def _start_ids(self) -> list[int]:
        """What the engine puts before every text by itself."""
        bos = self.engine.bos_token_id
        return [] if bos is None else [bos]

    def conversation_tokens(self, message: str) -> int:
        """How many tokens the engine's own conversation, as applications use it, reads of a user's first `message`."""
        return conversation_tokens(self.engine, message)

    def prompt_of(self, tokens: int) -> str:
        """Pseudo-random words, a text of about `tokens` tokens with the start token where the engine adds one."""
        chosen, start = random.Random(0), self._start_ids
        text = " ".join(chosen.choice(WORDS) for _ in range(tokens))
        words = list(self.engine.tokenize(text))[: max(tokens - len(start), 1)]
        return "".join(str(self.engine.detokenize(ids)) for ids in (start, words) if ids)

    def take_turn(self, answer: EngineText) -> None:
        """Note that `answer` is the one that runs; an earlier one that has not ended is stopped."""
        earlier = self._answer()
        if earlier is not None:
            earlier.end()
        self._answer = ref(answer)

    def close(self) -> None:
        running = self._answer()
        if running is not None:
            running.end()
        engine, self._engine = self._engine, None
        if engine is not None:
            with captured_log():
                engine.close()
        self._entry.close()


@dataclass(slots=True)
class EngineProgress:
    """How far an answer has come. The work itself is done by `_speak`, which holds this and not the answer.

    Attributes:
        prompt_tokens, max_new_tokens: what was asked for.
        prefill_s, first_s: seconds until the prompt was read, and until the first piece of text.
        new_tokens, tokens_per_s: the engine's own count and decode speed, known once it has ended.
        reason: why it ended.
        taken: another generation has ended it.
    """

    prompt_tokens: int
    max_new_tokens: int
    prefill_s: float = 0.0
    first_s: float | None = None
    new_tokens: int = 1
    tokens_per_s: float | None = None
    reason: FinishReason | None = None
    taken: bool = False


def _speak(
    runtime: LitertLmRuntime, text: str, progress: EngineProgress, sampler: litert_lm.SamplerConfig
) -> PyGenerator[str, None, None]:
    """Open a session, prefill `text`, and give pieces of the answer; whoever leaves early stops the engine."""
    try:
        with captured_log() as log:
            session = runtime.engine.create_session(
                apply_prompt_template=False, sampler_config=sampler, max_output_tokens=progress.max_new_tokens
            )
    except RuntimeError as error:
        raise PackageError(f"LiteRT-LM opens no session: {log.reason_of(error)}") from error
    stream: Any = ()
    start = perf_counter()
    try:
        with captured_log() as log:
            session.run_prefill([text])
        progress.prefill_s = perf_counter() - start
        stream = iter(session.run_decode_async())
        with captured_log() as log:  # a decoder that cannot run says so when it is first asked
            first = next(stream, None)
        for response in chain(() if first is None else (first,), stream):
            progress.first_s = progress.first_s or perf_counter() - start
            yield from filter(None, response.texts)
        progress.first_s = progress.first_s or perf_counter() - start
        _finish(runtime, session, progress)
    except RuntimeError as error:
        raise PackageError(f"LiteRT-LM refused: {log.reason_of(error)}") from error
    finally:
        # The engine's thread must have come to its end before its session goes.
        session.cancel_process()
        with suppress(RuntimeError):
            deque(stream, maxlen=0)
        session.close()


def _finish(runtime: LitertLmRuntime, session: Any, progress: EngineProgress) -> None:
    """Read the engine's figures. Its count has the stop token in it, which is not handed out."""
    info = session.get_benchmark_info()
    count = info.last_decode_token_count
    progress.tokens_per_s = info.last_decode_tokens_per_second
    full = progress.prompt_tokens + count >= runtime.max_context_tokens
    # Where it is the very last one that was asked for, it cannot be told from a word.
    stopped = count < progress.max_new_tokens and not full
    progress.new_tokens = count - stopped
    progress.reason = "stop" if stopped else "length" if count >= progress.max_new_tokens else "context"


class EngineText(TextGeneration):
    """Pieces of text as the engine gives them; its own figures are the statistics."""

    def __init__(
        self, runtime: LitertLmRuntime, text: str, progress: EngineProgress, sampler: litert_lm.SamplerConfig
    ) -> None:
        self.progress = progress
        self._runtime = runtime
        self._words = _speak(runtime, text, progress, sampler)
        self._begun = False

    def __next__(self) -> str:
        if self.progress.taken:
            raise EdgepackError("another generation has started on this model: finish one before the next")
        if not self._begun:
            self._begun = True
            self._runtime.take_turn(self)
        return next(self._words)

    def end(self) -> None:
        """Stop the engine, for another generation or because the model is closed."""
        self.progress.taken = self.progress.reason is None
        self._words.close()

    @property
    def tokens(self) -> NoReturn:  # type: ignore[override]  # an attribute of other runtimes' answers
        """There is none: LiteRT-LM tells no token ids."""
        raise EdgepackError("LiteRT-LM tells no token ids: use --runtime litert")

    @property
    def finish_reason(self) -> FinishReason | None:
        """As in `Generation`."""
        return self.progress.reason

    @property
    def stats(self) -> GenerationStats:
        """The engine's own count and decode speed, and the times that were seen from here."""
        progress = self.progress
        if progress.first_s is None:
            raise EdgepackError("this generation has no statistics yet: take its first token, then ask")
        return GenerationStats(
            prompt_tokens=progress.prompt_tokens,
            new_tokens=progress.new_tokens,
            ttft_ms=1e3 * progress.first_s,
            prefill_tokens_per_s=progress.prompt_tokens / max(progress.prefill_s, 1e-7),
            decode_tokens_per_s=progress.tokens_per_s,
        )


class EngineTokens(Generation):
    """The tokens of what the engine says, once it has said all of it: it tells no ids."""

    def __init__(self, runtime: LitertLmRuntime, answer: EngineText) -> None:
        self.finish_reason = None
        self._answer = answer
        self._steps = self._run_engine(runtime)

    @property
    def stats(self) -> GenerationStats:
        """As in `EngineText`."""
        return self._answer.stats

    def _run_engine(self, runtime: LitertLmRuntime) -> PyGenerator[int, None, None]:
        ids = [int(token_id) for token_id in runtime.engine.tokenize("".join(self._answer))]
        yield from ids
        self.finish_reason = self._answer.finish_reason
