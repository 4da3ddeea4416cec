"""Whether LiteRT-LM's own conversation reads what the chat template gives, start token included: by counting tokens.

Everything else that is measured hands the engine texts that were rendered here. Applications let the engine render, and
it puts the start token of its bundle before that: whether they see the same tokens only the engine itself can tell.
The process: ``python -m edgepack.validation.golden.conversation`` with a `ConversationJob` on stdin.
"""

from __future__ import annotations

import sys
from typing import Any

from edgepack.errors import EdgepackError
from edgepack.loading import load
from edgepack.package.folder import Package
from edgepack.validation.processes.helper import run_helper
from edgepack.validation.processes.protocol import Channel, FailedRunError, OnPhase, child_main
from edgepack.validation.result import Check
from edgepack.validation.settings import RunSettings
from edgepack.values import Frozen

RUNTIME = "litert-lm"
PHASE = "conversation"
NAME = "LiteRT-LM's own conversation"
WORKER = "edgepack.validation.golden.conversation"
MESSAGE = "Hi"


class ConversationJob(Frozen):
    """The package whose template and engine are compared."""

    package: str
    threads: int


def check_conversation(package: Package, asked: RunSettings, *, on_phase: OnPhase) -> Check | None:
    """Compare the tokens of a user's message in the engine's conversation with those of the package's chat template.

    Returns:
        None where the package has no chat template.

    Raises:
        EdgepackError: the package has no tokenizer.
    """
    job = ConversationJob(package=str(package.path.resolve()), threads=asked.used_threads)
    try:
        output = run_helper(WORKER, job, whose=f"{NAME} did not run", timeout_s=asked.timeout_s, on_phase=on_phase)
    except FailedRunError as error:
        return Check(kind="run", name=NAME, passed=False, text=str(error))
    return judge_tokens(**output.results[0]) if output.results else None


def judge_tokens(expected: int | None, got: int | None, why: str = "") -> Check:
    """The check of two counts of tokens; `why` says what kept them from being counted."""
    if expected is None or got is None:
        return Check(kind="run", name=NAME, passed=None, text=f"{NAME} was not looked at: {why}")
    if expected == got:
        text = f"{NAME} reads a user's message as the {got} tokens that the chat template gives"
        return Check(kind="run", name=NAME, passed=True, text=text)
    text = (
        f"{NAME} reads a user's message as {got} tokens, expected {expected}: those of the chat template with one "
        "start token; an application would get other answers than this package gives here: export it again"
    )
    return Check(kind="run", name=NAME, passed=False, text=text)


def run(line: str, channel: Channel) -> None:
    """Send both counts, or why there are none; nothing where there is no chat template."""
    job = ConversationJob.model_validate_json(line)
    channel.begin(PHASE)
    with load(job.package, runtime=RUNTIME, threads=job.threads) as model:
        compare(model, channel)


def compare(model: Any, channel: Channel) -> None:
    """Send both counts for `model`, a runtime of LiteRT-LM."""
    codec = model.codec
    if not codec.has_chat_template:
        return
    try:
        ids = codec.encode(codec.render_chat([{"role": "user", "content": MESSAGE}]))
        expected = len(model.check_room(ids, 1))
    except EdgepackError as error:  # a template that wants other messages, or a short context
        channel.give(expected=None, got=None, why=str(error))
        return
    channel.give(expected=expected, got=model.conversation_tokens(MESSAGE))


if __name__ == "__main__":
    sys.exit(child_main(run))
