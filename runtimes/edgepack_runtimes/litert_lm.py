"""LiteRT-LM, Google's own engine, on the bundle of a package: the one that Android applications embed.

Its Python interface takes and gives text, never logits. Token ids are taken where they are the tokens of a text.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn

import litert_lm

from edgepack.errors import EdgepackError, PackageError
from edgepack.package import Package
from edgepack.planner import check_context
from edgepack_runtimes import litert_lm_prepack
from edgepack_runtimes.base import (
    FinishReason,
    FloatArray,
    Generation,
    GenerationStats,
    Runtime,
    TextGeneration,
    check_count,
    require_backend,
    require_threads,
)
from edgepack_runtimes.cache import CacheSpec, cached_entry
from edgepack_runtimes.chat import ChatTemplates
from edgepack_runtimes.litert_prepack import DECODER, usable
from edgepack_runtimes.native_log import captured_log, silence_exit
from edgepack_runtimes.sampling import GREEDY, SamplingParams
from edgepack_runtimes.text import read_eos_token_ids

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
    bundle = package.file(DECODER)
    # The engine names its file by the bundle's time and size: a copy of the package needs an entry of its own.
    version = f"{metadata.version('litert-lm-api')} {bundle.stat().st_mtime_ns}"
    command = ("-m", litert_lm_prepack.__name__, str(bundle))
    return CacheSpec(runtime="litert-lm", version=version, command=command)


def open_engine(bundle: Path, cache: Path, threads: int | None) -> litert_lm.Engine:
    """Load a bundle on the CPU.

    Raises:
        PackageError: the engine refuses it.
    """
    try:
        with captured_log() as log:
            backend = litert_lm.Backend.CPU(thread_count=usable(threads))
            return litert_lm.Engine(str(bundle), backend=backend, cache_dir=str(cache), enable_benchmark=True)
    except RuntimeError as error:
        raise PackageError(f"{bundle} cannot be loaded by LiteRT-LM: {log.reason() or error}") from error


class LitertLmRuntime(Runtime):
    """A package in LiteRT-LM.

    Args:
        package: an opened package.
        threads: CPU threads; None takes all cores.
    """

    def __init__(self, package: Package, *, threads: int | None = None) -> None:
        require_backend(package, "litert", "litert-lm")
        require_threads(threads)
        plan = package.manifest.plan
        check_context(plan.spec, plan.context_tokens)
        if not (package.path / "tokenizer.json").is_file():
            raise PackageError(
                f"{package.path} has no tokenizer, without which LiteRT-LM loads nothing: use --runtime litert, "
                "or export a checkpoint with a tokenizer.json"
            )
        silence_exit()
        litert_lm.set_min_log_severity(litert_lm.LogSeverity.SILENT)
        self.package, self.spec, self.folder = package, plan.spec, package.path
        self.vocab_size = plan.spec.vocab_size
        self.max_context_tokens = plan.context_tokens
        self.past_tokens = 0
        self.eos_token_ids = read_eos_token_ids(package.path) or frozenset(plan.spec.eos_token_ids)
        self._engine: litert_lm.Engine | None = open_engine(
            package.file(DECODER), cached_entry(package, cache_spec(package)), threads
        )

    @property
    def engine(self) -> litert_lm.Engine:
        """The engine itself. Raises EdgepackError once the model is closed."""
        if self._engine is None:
            raise EdgepackError("this model is closed: load the package again")
        return self._engine

    def session(self, max_new_tokens: int, sampling: SamplingParams) -> Any:
        """A session that answers raw text with at most `max_new_tokens`.

        Raises:
            EdgepackError: the engine cannot sample like this.
        """
        if sampling.repetition_penalty != 1.0:
            raise EdgepackError("LiteRT-LM has no repetition penalty for plain text: use --runtime litert")
        greedy = sampling.temperature == 0
        config = litert_lm.SamplerConfig(
            top_k=1 if greedy else sampling.top_k or self.vocab_size,
            top_p=1.0 if greedy else sampling.top_p,
            temperature=1.0 if greedy else sampling.temperature,
            seed=sampling.seed,
        )
        return self.engine.create_session(
            apply_prompt_template=False, sampler_config=config, max_output_tokens=max_new_tokens
        )

    def generate_text(
        self,
        prompt: str,
        *,
        max_new_tokens: int,
        sampling: SamplingParams = GREEDY,
        chat: bool = False,
        stop_strings: Sequence[str] = (),
    ) -> TextGeneration:
        if stop_strings:
            raise EdgepackError("LiteRT-LM knows no stop strings: use --runtime litert")
        # Only the template: a second tokenizer beside the engine's would cost 0.4 GB.
        text = ChatTemplates(self.folder).render([{"role": "user", "content": prompt}]) if chat else prompt
        bos = self.engine.bos_token_id
        # The engine puts the start token before every text by itself.
        spoken = text if bos is None else text.removeprefix(self.engine.detokenize([bos]))
        ids = self.check_token_ids(([] if bos is None else [bos]) + list(self.engine.tokenize(spoken)))
        return EngineText(self, spoken, len(ids), check_count("max_new_tokens", max_new_tokens), sampling)

    def generate(
        self,
        token_ids: Iterable[int],
        *,
        max_new_tokens: int,
        sampling: SamplingParams = GREEDY,
        stop_token_ids: Collection[int] | None = None,
    ) -> Generation:
        if stop_token_ids is not None and set(stop_token_ids) != self.eos_token_ids:
            raise EdgepackError("LiteRT-LM stops at the tokens in its bundle and at no others: use --runtime litert")
        ids = self.check_token_ids(token_ids)
        bos = self.engine.bos_token_id
        spoken = ids[1:] if ids[0] == bos else ids
        text = self.engine.detokenize(spoken)
        if ids[0] != bos or list(self.engine.tokenize(text)) != spoken:
            raise EdgepackError(
                f"LiteRT-LM takes text, and these {len(ids)} token ids are not the start token and the tokens of a "
                "text: use --runtime litert"
            )
        answer = EngineText(self, text, len(ids), check_count("max_new_tokens", max_new_tokens), sampling)
        return EngineTokens(self, answer)

    def prompt_of(self, tokens: int) -> str:
        """Pseudo-random words, a text of about `tokens` tokens with the start token."""
        chosen = random.Random(0)
        text = " ".join(chosen.choice(WORDS) for _ in range(tokens))
        return str(self.engine.detokenize(list(self.engine.tokenize(text))[: tokens - 1]))

    def _no_logits(self) -> NoReturn:
        raise EdgepackError("LiteRT-LM gives text and no logits: use --runtime litert")

    def reset(self) -> None:
        self.past_tokens = 0

    def prefill(self, token_ids: Sequence[int]) -> FloatArray:
        self._no_logits()

    def decode(self, token_id: int) -> FloatArray:
        self._no_logits()

    def logits(self, token_ids: Sequence[int]) -> FloatArray:
        self._no_logits()

    def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            with captured_log():
                engine.close()


class EngineText(TextGeneration):
    """Pieces of text as the engine gives them; its own figures are the statistics."""

    def __init__(
        self, runtime: LitertLmRuntime, text: str, prompt_tokens: int, max_new_tokens: int, sampling: SamplingParams
    ) -> None:
        self._runtime, self._text, self._max_new_tokens = runtime, text, max_new_tokens
        self._session = runtime.session(max_new_tokens, sampling)
        self._prompt_tokens = prompt_tokens
        self._prefill_s = 0.0
        self._first_s: float | None = None
        self._info: Any = None
        self._reason: FinishReason | None = None
        self._pieces = self._run()

    @property
    def finish_reason(self) -> FinishReason | None:
        """As in `Generation`."""
        return self._reason

    @property
    def stats(self) -> GenerationStats:
        """The engine's own count and decode speed, and the times that were seen from here."""
        if self._first_s is None:
            raise EdgepackError("this generation has no statistics yet: take its first token, then ask")
        tokens = self._info.last_decode_token_count if self._info else 1
        return GenerationStats(
            prompt_tokens=self._prompt_tokens,
            new_tokens=tokens,
            ttft_ms=1e3 * self._first_s,
            prefill_tokens_per_s=self._prompt_tokens / max(self._prefill_s, 1e-7),
            decode_tokens_per_s=self._info.last_decode_tokens_per_second if self._info else None,
        )

    def _run(self) -> Iterator[str]:
        start = perf_counter()
        try:
            with captured_log() as log:
                self._session.run_prefill([self._text])
            self._prefill_s = perf_counter() - start
            for response in self._session.run_decode_async():
                if self._first_s is None:
                    self._first_s = perf_counter() - start
                yield from (text for text in response.texts if text)
        except RuntimeError as error:
            raise PackageError(f"LiteRT-LM refused: {log.reason() or error}") from error
        finally:
            if self._first_s is None:
                self._first_s = perf_counter() - start
            self._info = self._session.get_benchmark_info() if self._prefill_s else None
            self._session.close()
        self._reason = self._why(self._info.last_decode_token_count)

    def _why(self, new_tokens: int) -> FinishReason:
        if new_tokens >= self._max_new_tokens:
            return "length"
        full = self._prompt_tokens + new_tokens >= self._runtime.max_context_tokens
        return "context" if full else "stop"


class EngineTokens(Generation):
    """The tokens of what the engine says, once it has said all of it: it tells no ids."""

    def __init__(self, runtime: LitertLmRuntime, answer: EngineText) -> None:
        self._engine_runtime, self._answer = runtime, answer
        self._steps = self._run_engine()

    @property
    def stats(self) -> GenerationStats:
        """As in `EngineText`."""
        return self._answer.stats

    def _run_engine(self) -> Any:
        text = "".join(self._answer)
        yield from self._engine_runtime.engine.tokenize(text)
        self.finish_reason = self._answer.finish_reason
