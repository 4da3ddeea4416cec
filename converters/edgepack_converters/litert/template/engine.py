"""Renders conversations in LiteRT-LM: a program of its own, which keeps the engine's memory, messages and faults.

Run as ``python engine.py BUNDLE``. It reads a JSON list of cases from stdin, objects with ``messages``,
``tools`` and a ``template`` (null for the bundle's), and writes a list of objects with ``text`` and ``reason``.
It imports nothing of the project: a start takes a tenth of a second.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

import litert_lm

_REASON = re.compile(r"^E\d{4} [^\]]*\] (?:Failed to render message: )?(?:INTERNAL: )?(.*)$", re.MULTILINE)


class DeclaredTool(litert_lm.Tool):  # type: ignore[misc] # the library ships no types
    """A tool that is only ever declared."""

    def __init__(self, description: dict[str, Any]) -> None:
        self._description = description

    def get_tool_description(self) -> dict[str, Any]:
        """Return the JSON schema as it was given."""
        return self._description

    def execute(self, param: Any) -> Any:
        """No model is run, so nothing calls this."""
        raise NotImplementedError


def render(engine: litert_lm.Engine, case: dict[str, Any], log: IO[bytes]) -> dict[str, str]:
    """Render one case; where the engine fails the text is empty, and what it wrote to `log` tells the reason."""
    *history, last = case["messages"]
    start = os.fstat(log.fileno()).st_size
    text, reason = "", ""
    try:
        tools = [DeclaredTool(tool) for tool in case["tools"] or ()]
        conversation = engine.create_conversation(messages=history, tools=tools, chat_template=case["template"])
        text = conversation.render_message_to_string(last)
        conversation.close()
    except RuntimeError as error:
        reason = str(error)
    written = os.pread(log.fileno(), os.fstat(log.fileno()).st_size - start, start).decode("utf-8", "replace")
    reasons = _REASON.findall(written)
    return {"text": text, "reason": reasons[-1] if reasons else reason}


def main() -> None:
    """Answer the cases on stdin."""
    bundle = Path(sys.argv[1])
    cases = json.load(sys.stdin.buffer)  # UTF-8, whatever the encoding of the user's terminal
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    engine = litert_lm.Engine(str(bundle), backend=litert_lm.Backend.CPU(thread_count=1), cache_dir=str(bundle.parent))
    answers = os.dup(1)
    with tempfile.TemporaryFile() as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        results = [render(engine, case, log) for case in cases]
        with os.fdopen(answers, "w", encoding="utf-8") as out:
            json.dump(results, out)
        engine.close()
        # The libraries have things to say and to take apart at exit; nothing here needs either.
        os._exit(0)


if __name__ == "__main__":
    main()
