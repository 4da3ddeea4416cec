"""The process that is measured: loads a package, prefills, decodes, and reports its own times.

Run as ``python -m edgepack.validation.processes.worker`` with a `WorkerJob` on stdin. It does no more than an
application would, and watches nothing: its memory is read from outside.
"""

from __future__ import annotations

import random
import sys
from importlib import metadata
from time import perf_counter
from typing import Any, Protocol, cast

import numpy as np

from edgepack.loading import RUNTIMES, load
from edgepack.planning.backends import runtime_named
from edgepack.validation.processes.job import START, TOKEN_SEED, WARM_UP_TOKENS, Step, WorkerJob
from edgepack.validation.processes.protocol import Channel, child_main
from edgepack.values import FloatArray
from edgepack_runtimes.base import TokenRuntime


class TextModel(Protocol):
    """A runtime that takes and gives nothing but text: LiteRT-LM."""

    def prompt_of(self, tokens: int) -> str:
        """A text of about so many tokens."""

    def generate_text(self, prompt: str, *, max_new_tokens: int) -> Any: ...


def run(job: WorkerJob, channel: Channel) -> None:
    """Do `job` phase by phase."""
    channel.end(START)
    channel.begin("load")
    start = perf_counter()
    with load(job.package, runtime=job.runtime, threads=job.threads, rebuild_cache=job.rebuild_cache) as model:
        load_ms = 1e3 * (perf_counter() - start)
        versions = {name: metadata.version(name) for name in ("numpy", RUNTIMES[runtime_named(job.runtime)].library)}
        channel.end("load", load_ms=load_ms, versions=versions)
        if not job.steps:
            return
        work = _Steps(model) if isinstance(model, TokenRuntime) else _Answers(cast(TextModel, model))
        channel.begin("warm-up")
        start = perf_counter()
        work.warm_up(job.context_tokens)
        channel.end("warm-up", warm_up_ms=1e3 * (perf_counter() - start))
        for step in job.steps:
            work.do(step, job.new_tokens, channel)


class _Steps:
    """Prompts and decode steps of a runtime that takes token ids."""

    def __init__(self, model: TokenRuntime) -> None:
        self._model = model

    def warm_up(self, context_tokens: int) -> None:
        model = self._model
        model.reset()
        logits = model.prefill(self._prompt(min(WARM_UP_TOKENS, context_tokens - 1)))
        model.decode(int(logits.argmax()))

    def do(self, step: Step, new_tokens: int, channel: Channel) -> None:
        """Prefill the prompt, and decode greedily; stop tokens are ignored: the length of the run is fixed."""
        model, prompt = self._model, self._prompt(step.prompt_tokens)
        model.reset()
        channel.begin(step.phase)
        start = perf_counter()
        logits = model.prefill(prompt)
        prefill_ms = 1e3 * (perf_counter() - start)
        token = int(logits.argmax())
        ttft_ms = 1e3 * (perf_counter() - start)
        _require_finite(logits)
        channel.end(step.phase, prompt_tokens=len(prompt), prefill_ms=prefill_ms, ttft_ms=ttft_ms)
        if step.decode is None:
            return
        channel.begin(step.decode)
        steps_ms = []
        for _ in range(new_tokens):
            start = perf_counter()
            logits = model.decode(token)
            token = int(logits.argmax())
            steps_ms.append(1e3 * (perf_counter() - start))
            _require_finite(logits)
        channel.end(step.decode, steps_ms=steps_ms)

    def _prompt(self, tokens: int) -> list[int]:
        chosen = random.Random(TOKEN_SEED)
        return [chosen.randrange(self._model.vocab_size) for _ in range(tokens)]


class _Answers:
    """Prompts and answers of an engine that takes text; it counts the tokens itself."""

    def __init__(self, model: TextModel) -> None:
        self._model = model

    def warm_up(self, context_tokens: int) -> None:
        for _ in self._model.generate_text(self._model.prompt_of(WARM_UP_TOKENS), max_new_tokens=2):
            pass

    def do(self, step: Step, new_tokens: int, channel: Channel) -> None:
        """One answer. What is left of it after the first piece is the decode phase, measured where one is wanted.

        The engine goes on by itself, so nobody waits between the two.
        """
        prompt = self._model.prompt_of(step.prompt_tokens)
        channel.begin(step.phase)
        start = perf_counter()
        answer = self._model.generate_text(prompt, max_new_tokens=new_tokens if step.decode else 1)
        next(answer, None)
        seen = perf_counter()
        ttft_ms = 1e3 * (seen - start)
        if step.decode is not None:
            channel.begin(step.decode)
        pieces_ms = []
        for _ in answer:
            now = perf_counter()
            pieces_ms.append(1e3 * (now - seen))
            seen = now
        stats = answer.stats
        prefill_ms = 1e3 * stats.prompt_tokens / stats.prefill_tokens_per_s
        figures = {"prompt_tokens": stats.prompt_tokens, "prefill_ms": prefill_ms, "ttft_ms": ttft_ms}
        if step.decode is None:
            channel.end(step.phase, **figures)
            return
        channel.note(step.phase, **figures)
        steps, rate = stats.new_tokens - 1, stats.decode_tokens_per_s
        # A piece of text is a step only where there are as many: the engine holds back what may be half a character.
        # Else its own rate stands for every step.
        told = len(pieces_ms) == steps
        channel.end(step.decode, steps_ms=pieces_ms if told else [1e3 / rate] * steps if rate else [], even=not told)


def _require_finite(logits: FloatArray) -> None:
    if not np.isfinite(logits).all():
        raise FloatingPointError("the model gave logits that are not finite")


if __name__ == "__main__":
    sys.exit(child_main(lambda line, channel: run(WorkerJob.model_validate_json(line), channel)))
