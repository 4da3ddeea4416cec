"""The process of a golden run: ``python -m edgepack.validation.golden.worker`` with a `GoldenJob` on stdin."""

from __future__ import annotations

import sys
from typing import Any

from edgepack.errors import EdgepackError, PackageError
from edgepack.loading import load
from edgepack.shown import shown
from edgepack.validation.golden.demands import unmet_demands
from edgepack.validation.golden.file import Golden, GoldenJob
from edgepack.validation.processes.protocol import Channel, child_main


def run(line: str, channel: Channel) -> None:
    """Send a `GoldenAnswer` for each prompt of the job in `line`."""
    job = GoldenJob.model_validate_json(line)
    goldens = job.goldens
    channel.begin("golden load")
    with load(job.package, runtime=job.runtime, threads=job.threads) as model:
        for number, golden in enumerate(goldens, 1):
            channel.begin(f"golden {number}/{len(goldens)}")
            try:
                text = prompt_text(model.codec, golden)
                answer = model.generate_text(text, max_new_tokens=golden.max_new_tokens)
                said = "".join(answer)
            except EdgepackError as error:
                kind = PackageError if isinstance(error, PackageError) else EdgepackError
                raise kind(f"golden prompt {shown(golden.name)}: {error}") from error
            channel.begin(f"judging golden {number}/{len(goldens)}")  # a regular expression may take for ever
            failures = unmet_demands(golden, said)
            if failures and answer.finish_reason == "length":
                failures.append(f"the answer was cut after max_new_tokens, {golden.max_new_tokens}")
            channel.give(name=golden.name, prompt=golden.asked, answer=said, passed=not failures, failures=failures)


def prompt_text(codec: Any, golden: Golden) -> str:
    """The text that the model continues: a rendered conversation, or the prompt as it is.

    Raises:
        EdgepackError: messages, or ``"chat": true``, without a chat template; a template that leaves the tools out.
    """
    chat = golden.chat if golden.chat is not None else golden.messages is not None or codec.has_chat_template
    if not chat:
        return str(golden.prompt)
    messages = golden.messages or ({"role": "user", "content": golden.prompt},)
    tools = [{"type": "function", "function": tool.model_dump()} for tool in golden.tools]
    text = str(codec.render_chat(messages, tools=tools or None))
    unseen = [tool.name for tool in golden.tools if tool.name not in text]
    if unseen:
        raise EdgepackError(
            f"the package's chat template leaves the tool {shown(unseen[0])} out, so the model would not know it: "
            "describe the tools in the prompt, as Gemma 3 is used; a name that the prompt mentions is enough"
        )
    return text


if __name__ == "__main__":
    sys.exit(child_main(run))
