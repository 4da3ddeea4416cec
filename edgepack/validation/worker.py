"""The process that is measured: loads a package, prefills, decodes, and reports its own times.

Run as ``python -m edgepack.validation.worker`` with a `Job` on stdin. It does no more than an application would, and
watches nothing: its memory is read from outside.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Sequence
from importlib import metadata
from time import perf_counter
from typing import IO, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

import edgepack
from edgepack.errors import EdgepackError
from edgepack.validation.job import TOKEN_SEED, Job, Phase

FloatArray = npt.NDArray[np.float32]
REPORTED_LIBRARIES = {
    "numpy": "numpy",
    "onnxruntime": "onnxruntime",
    "ai_edge_litert": "ai-edge-litert",
    "litert_lm": "litert-lm-api",
}


class Model(Protocol):
    """What a run asks of a runtime; `edgepack_runtimes.base.Runtime` has it all."""

    vocab_size: int

    def reset(self) -> None: ...
    def prefill(self, token_ids: Sequence[int]) -> FloatArray: ...
    def decode(self, token_id: int) -> FloatArray: ...


@runtime_checkable
class TextModel(Protocol):
    """A runtime that takes and gives nothing but text: LiteRT-LM."""

    def prompt_of(self, tokens: int) -> str:
        """A text of about so many tokens."""

    def generate_text(self, prompt: str, *, max_new_tokens: int) -> Any: ...


class Channel:
    """JSON lines to the supervisor, on what was stdout when the process began.

    File descriptor 1 then becomes stderr, so that nothing a library prints gets between the lines.
    """

    def __init__(self) -> None:
        self._out: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, **message: Any) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def begin(self, phase: Phase) -> None:
        self.send(begin=phase)

    def end(self, phase: Phase, **figures: Any) -> None:
        """Report `figures` and wait until the supervisor has looked; leave where it is gone."""
        self.send(end=phase, **figures)
        if not sys.stdin.readline():
            raise SystemExit(1)


def run(job: Job, channel: Channel) -> None:
    """Do `job` phase by phase."""
    channel.begin("load")
    start = perf_counter()
    with edgepack.load(job.package, runtime=job.runtime, threads=job.threads) as model:
        load_ms = 1e3 * (perf_counter() - start)
        versions = {
            name: metadata.version(name) for module, name in REPORTED_LIBRARIES.items() if module in sys.modules
        }
        channel.end("load", load_ms=load_ms, versions=versions)
        if job.load_only:
            return
        if isinstance(model, TextModel):
            _answer(model, job, channel)
        else:
            _decode(model, _prefill(model, job, channel), job, channel)


def _prefill(model: Model, job: Job, channel: Channel) -> int:
    """Prefill the prompt; return the id of the first new token."""
    tokens = random.Random(TOKEN_SEED)
    prompt = [tokens.randrange(model.vocab_size) for _ in range(job.prompt_tokens)]
    channel.begin("prefill")
    start = perf_counter()
    model.reset()
    logits = model.prefill(prompt)
    prefill_ms = 1e3 * (perf_counter() - start)
    token = int(logits.argmax())
    ttft_ms = 1e3 * (perf_counter() - start)
    _check(logits)
    channel.end("prefill", prefill_ms=prefill_ms, ttft_ms=ttft_ms)
    return token


def _decode(model: Model, token: int, job: Job, channel: Channel) -> None:
    """Greedy decode steps, stop tokens ignored: the length of the run is fixed."""
    channel.begin("decode")
    steps_ms = []
    for _ in range(job.new_tokens):
        start = perf_counter()
        logits = model.decode(token)
        token = int(logits.argmax())
        steps_ms.append(1e3 * (perf_counter() - start))
        _check(logits)
    channel.end("decode", steps_ms=steps_ms)


def _answer(model: TextModel, job: Job, channel: Channel) -> None:
    """Prompt and answer in one, as the engine does it; its own count of tokens is reported."""
    channel.begin("prefill")
    start = perf_counter()
    answer = model.generate_text(model.prompt_of(job.prompt_tokens), max_new_tokens=job.new_tokens)
    next(answer, None)
    seen = perf_counter()
    prefill_ms = 1e3 * answer.stats.prompt_tokens / answer.stats.prefill_tokens_per_s
    facts = {"prompt_tokens": answer.stats.prompt_tokens}
    channel.end("prefill", prefill_ms=prefill_ms, ttft_ms=1e3 * (seen - start), **facts)
    channel.begin("decode")
    for _ in answer:
        pass
    steps, rate = answer.stats.new_tokens - 1, answer.stats.decode_tokens_per_s
    # Pieces of text are no steps: the engine's own rate stands for each of them.
    channel.end("decode", steps_ms=[1e3 / rate] * steps if rate else [], new_tokens=answer.stats.new_tokens)


def _check(logits: FloatArray) -> None:
    if not np.isfinite(logits).all():
        raise FloatingPointError("the model gave logits that are not finite")


def main() -> int:
    """Run the job on stdin; return the exit code."""
    channel = Channel()
    try:
        run(Job.model_validate_json(sys.stdin.readline()), channel)
    except EdgepackError as error:
        channel.send(error=str(error), ours=True)
        return 1
    except Exception as error:  # noqa: BLE001 - whatever stops a run is its result
        channel.send(error=f"{type(error).__name__}: {error}", ours=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
