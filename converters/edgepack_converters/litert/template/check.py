"""Chat templates at export: LiteRT-LM must render what Transformers renders, or the export says what stands in the way.

The engine renders only with a model loaded, so it gets a stand-in: a bundle of a few kilobytes from the same emitter,
with the checkpoint's metadata and template, and a tokenizer of a few words. Rendering uses no tokenizer, and Gemma's
would cost the export 5 s and 0.5 GB. What the engine does that Transformers does not:

* `bos_token` and `eos_token` are empty; it puts the start token before every text by itself;
* the content of a message is always a list of parts, whoever wrote it as a text;
* a conversation goes on by what its rendering has more than the one before, which must be its beginning.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from edgepack.errors import EdgepackError, UnsupportedError
from edgepack.model.spec import ModelSpec, PleSpec
from edgepack.planning.planner import make_plan
from edgepack.shown import printable, shown
from edgepack.system.child import run_python
from edgepack_converters.litert.bundle import build
from edgepack_converters.litert.metadata import TextFacts, uses_tools
from edgepack_converters.litert.template.constructs import Construct, constructs_of, variables_of

Messages = Sequence[Mapping[str, Any]]
# Messages, whether the model's turn starts, and tools: the text, or EdgepackError where the template refuses.
Render = Callable[[Messages, bool, Messages | None], str]

WAY_OUT = "put a chat_template.jinja without it into the checkpoint, or export with --to onnx"
WIDTH, CONTEXT, PREFILL = 8, 16, 8
SHOWN_CHARS = 40
# All conversations of a template take the engine a second or two.
ENGINE_SECONDS = 120

USER = {"role": "user", "content": '  Größe <b> of & "東京"\n'}
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": " Hello. "}
CALL = {
    "role": "assistant",
    "tool_calls": [
        {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}}
    ],
}
RESULT = {"role": "tool", "name": "get_weather", "content": '{"degrees": 21}'}
CITY = {"type": "string", "description": "Name of a city"}
TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of <a> city & 'its' surroundings",
            "parameters": {"type": "object", "properties": {"city": CITY}, "required": ["city"]},
        },
    },
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation to compare, and what a message calls it."""

    name: str
    messages: Messages
    tools: Messages | None = None

    @property
    def case(self) -> dict[str, Any]:
        """What `engine` takes."""
        return {"template": None, "messages": list(self.messages), "tools": self.tools}


CHATS = (
    Conversation("a user's message", (USER,)),
    Conversation("a system and a user's message", (SYSTEM, USER)),
    Conversation("a second turn", (USER, ANSWER, USER)),
    Conversation("a second turn after a system message", (SYSTEM, USER, ANSWER, USER)),
    Conversation("a declared tool", (USER,), TOOLS),
    Conversation("a declared tool with a system message", (SYSTEM, USER), TOOLS),
)
TOOL_CHATS = (
    Conversation("a tool call and its result", (USER, CALL, RESULT), TOOLS),
    Conversation("a tool call with a text and its result", (USER, {**CALL, "content": "Let me see."}, RESULT), TOOLS),
    Conversation("a turn after a tool's result", (USER, CALL, RESULT, ANSWER, USER), TOOLS),
)


@dataclass(frozen=True, slots=True)
class Rendering:
    """What LiteRT-LM made of a conversation; `reason` where it failed, and then `text` is empty."""

    text: str
    reason: str

    @property
    def line(self) -> int | None:
        """Line of the template that the engine blames."""
        found = re.search(r"\(in [^)]*:(\d+)\)", self.reason)
        return int(found[1]) if found else None

    @property
    def why(self) -> str:
        """The reason without where it came from."""
        return re.sub(r"^(?:Failed to apply template: |Template creation failed: )*| \(in [^)]*\)$", "", self.reason)


def check_template(
    spec: ModelSpec,
    template: str,
    render: Render,
    *,
    bos_token: str,
    always: bool = True,
    names: Iterable[str] = (),
    where: Path,
) -> None:
    """Compare LiteRT-LM's rendering of `template` with `render`, which gives what Transformers gives.

    A conversation that `render` refuses is none that the model was trained to see, and does not count.

    Args:
        spec: the model that the template is exported with.
        bos_token: text of the token that the engine puts before every text; empty where it puts none.
        always: whether a conversation starts with that token even where the template does not write it.
        names: of the special tokens that Transformers gives to templates.
        where: the checkpoint, for messages.

    Raises:
        UnsupportedError: LiteRT-LM cannot render the template or renders it differently; the construct is named.
        ModuleNotFoundError: `litert_lm` is not installed.
    """
    chats = CHATS + (TOOL_CHATS if uses_tools(template) else ())
    constructs = constructs_of(template)
    probes = [probe for construct in constructs for probe in construct.probes]
    cases = [chat.case for chat in chats] + [{**CHATS[0].case, "template": probe} for probe in probes]
    renderings = _run_engine(spec, template, bos_token, cases)
    check = _Check(template, render, bos_token, always, frozenset(names), f"{where}: chat template")
    check.syntax(renderings[0])
    check.constructs(constructs, dict(zip(probes, renderings[len(chats) :], strict=True)))
    for chat, rendering in zip(chats, renderings, strict=False):
        check.conversation(chat, rendering)


@dataclass(frozen=True, slots=True)
class _Check:
    """What one template is held against; every method raises UnsupportedError or returns."""

    template: str
    render: Render
    bos: str
    always: bool
    names: Set[str]
    where: str

    def syntax(self, rendering: Rendering) -> None:
        if "Template creation failed" in rendering.reason:
            raise UnsupportedError(f"{self._at(rendering.line)}: LiteRT-LM cannot read it: {rendering.why}; {WAY_OUT}")

    def constructs(self, constructs: Sequence[Construct], probed: Mapping[str, Rendering]) -> None:
        for construct in constructs:
            if all(construct.blamed(probed[probe].reason) for probe in construct.probes):
                raise UnsupportedError(
                    f"{self.where}, line {construct.line}: {construct.name} is not known to LiteRT-LM "
                    f"({probed[construct.probes[0]].why}); {WAY_OUT}"
                )

    def conversation(self, chat: Conversation, rendering: Rendering) -> None:
        expected = self._expected(chat.messages, chat.tools)
        if expected is None:
            return
        if not self.always and not (self._rendered(chat.messages, chat.tools) or "").startswith(self.bos):
            raise UnsupportedError(
                f"{self.where}: it does not write the start token {self.bos} before {chat.name} as it does elsewhere, "
                f"and LiteRT-LM puts it before every conversation; {WAY_OUT}"
            )
        if rendering.text != expected:
            hint = self._hint(chat, rendering)
            if rendering.reason:
                raise UnsupportedError(
                    f"{self._at(rendering.line)}: LiteRT-LM cannot render {chat.name}: {rendering.why}{hint}; {WAY_OUT}"
                )
            raise UnsupportedError(
                f"{self.where}: LiteRT-LM renders {chat.name} differently from Transformers, "
                f"{_difference(expected, rendering.text)}{hint}; {WAY_OUT}"
            )
        self._goes_on(chat, expected)

    def _goes_on(self, chat: Conversation, expected: str) -> None:
        """Refuse a template that takes back what it wrote: the engine would fail at the second turn."""
        history = chat.messages[:-1]
        if all(message is SYSTEM for message in history):
            return
        before = self._expected(history, chat.tools, add_generation_prompt=False)
        if before is None or not expected.startswith(before):
            what = "is refused" if before is None else f"changes, {_difference(before, expected)}"
            raise UnsupportedError(
                f"{self.where}: the text of the messages before the last one of {chat.name} {what}; LiteRT-LM only "
                f"adds to what it has rendered before, so nothing may depend on what follows (`loop.last`, "
                f"`messages[-1]`) or stand behind the last message but the start of the model's turn; {WAY_OUT}"
            )

    def _expected(
        self, messages: Messages, tools: Messages | None, *, add_generation_prompt: bool = True
    ) -> str | None:
        """What the engine has to render: it puts the start token before that."""
        text = self._rendered(messages, tools, add_generation_prompt=add_generation_prompt)
        return None if text is None else text.removeprefix(self.bos)

    def _rendered(
        self, messages: Messages, tools: Messages | None, *, add_generation_prompt: bool = True
    ) -> str | None:
        try:
            return self.render(messages, add_generation_prompt, tools)
        except EdgepackError:
            return None

    def _hint(self, chat: Conversation, rendering: Rendering) -> str:
        """What LiteRT-LM does in its own way that makes the difference, as far as that can be told."""
        if self._expected(_in_parts(chat.messages), chat.tools) != self._expected(chat.messages, chat.tools):
            return (
                " (`message['content']` is always a list of parts in LiteRT-LM, [{'type': 'text', 'text': ...}], "
                "and this template renders it differently from a text)"
            )
        if self.bos and rendering.text.startswith(self.bos):
            return f" (LiteRT-LM puts {self.bos} before the text by itself: write {{{{ bos_token }}}}, which is empty)"
        empty = sorted(variables_of(self.template) & self.names - {"bos_token"})
        return f" ({', '.join(empty)}: empty in LiteRT-LM, write the token itself)" if empty else ""

    def _at(self, line: int | None) -> str:
        lines = self.template.splitlines()
        if line is None or not 1 <= line <= len(lines):
            return self.where
        return f"{self.where}, line {line} ({printable(lines[line - 1].strip(), SHOWN_CHARS)})"


def _in_parts(messages: Messages) -> Messages:
    """The same messages as LiteRT-LM gives them to a template."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]} if "content" in message else message
        for message in messages
    ]


def _difference(expected: str, got: str) -> str:
    at = next(i for i, pair in enumerate(zip_longest(expected, got)) if pair[0] != pair[1])
    wanted, found = expected[at : at + SHOWN_CHARS], got[at : at + SHOWN_CHARS]
    return f"from character {at} on: expected {shown(wanted)}, got {shown(found)}"


def _run_engine(spec: ModelSpec, template: str, bos_token: str, cases: list[dict[str, Any]]) -> list[Rendering]:
    if importlib.util.find_spec("litert_lm") is None:
        raise ModuleNotFoundError("No module named 'litert_lm'", name="litert_lm")
    with tempfile.TemporaryDirectory(prefix="edgepack-template-") as folder:
        bundle = Path(folder) / "model.litertlm"
        _write_stand_in(bundle, spec, template, bos_token)
        engine = str(Path(__file__).with_name("engine.py"))  # by its path: it needs nothing of ours
        try:
            ended = run_python(engine, str(bundle), said=[json.dumps(cases).encode()], timeout_s=ENGINE_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise UnsupportedError(
                f"LiteRT-LM did not render the chat template within {ENGINE_SECONDS} s: does it count to a very large "
                f"number? {WAY_OUT}"
            ) from error
    if ended.problem is not None:
        raise UnsupportedError(f"LiteRT-LM failed while it rendered the chat template: {ended.problem}; {WAY_OUT}")
    return [Rendering(**result) for result in json.loads(ended.output)]


def _write_stand_in(path: Path, spec: ModelSpec, template: str, bos_token: str) -> None:
    """A bundle with the metadata of `spec` and `template`, and a decoder of one narrow layer whose weights are zero."""
    # The start token has its text, in case that a release of the engine looks at it.
    vocab = {bos_token or "<0>": 0} | {f"<{token_id}>": token_id for token_id in range(1, WIDTH)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": next(iter(vocab))}
    parts = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    tokenizer: dict[str, Any] = {"version": "1.0", "added_tokens": [], **dict.fromkeys(parts), "model": model}
    text = TextFacts(json.dumps(tokenizer).encode(), [1], template, start_token_id=0 if bos_token else None)
    plan = make_plan(
        _narrow(spec, len(vocab)), backend="litert", recipe="fp32", context_tokens=CONTEXT, prefill_tokens=[PREFILL]
    )
    container = build(plan, text).container
    with path.open("wb") as file:
        file.truncate(container.size_bytes)
        for placement in container.placements:
            if placement.content is not None:
                file.seek(placement.offset)
                file.write(placement.content.tobytes())


def _narrow(spec: ModelSpec, vocab_size: int) -> ModelSpec:
    layer = spec.layers[0].model_copy(update={"kv_owner": 0, "ffn_width": WIDTH})
    narrow = {"num_heads": 1, "num_kv_heads": 1, "head_dim": WIDTH}
    return spec.model_copy(
        update={
            "vocab_size": vocab_size,
            "hidden_size": WIDTH,
            "attention": {layer.kind: spec.attention_of(0).model_copy(update=narrow)},
            "max_context_tokens": CONTEXT,
            "layers": (layer,),
            "ple": PleSpec(vocab_size=vocab_size, dim=WIDTH) if spec.ple else None,
            "laurel_rank": WIDTH if spec.laurel_rank else None,
        }
    )
