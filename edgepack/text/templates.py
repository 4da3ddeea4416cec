"""Chat templates: a conversation as the text that the model was trained to see, as Transformers renders it.

Needs `jinja2`, which is imported when first used, and no tokenizer: opening Gemma's takes 0.4 GB.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from edgepack.errors import EdgepackError, TextFileError
from edgepack.shown import one_line, printable, shown
from edgepack.system.libraries import import_library
from edgepack.text.files import TEMPLATE_FOLDER, read_json, read_text
from edgepack.text.special_tokens import read_special_tokens

TEMPLATE_NAMES = ("default", "tool_use")
# What messages call a model's reasoning; templates read the first.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplates:
    """The chat templates of one checkpoint or package folder.

    Attributes:
        folder: the folder.
        special_tokens: `bos_token`, `eos_token` and the like by name, as templates know them.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read the special tokens of `folder`; raise TextFileError if they cannot be read."""
        self.folder = Path(folder)
        self.special_tokens = read_special_tokens(self.folder)

    @property
    def exist(self) -> bool:
        """Whether there is a template at all. Raises TextFileError if one cannot be read."""
        return bool(template_sources(self.folder))

    def begins_with(self, text: str) -> bool:
        """Whether the text of a user's message, or of one with a tool declared, begins with `text`."""
        message, tool = {"role": "user", "content": "a"}, {"type": "function", "function": {"name": "f"}}
        for tools in (None, [tool]):
            with suppress(EdgepackError):
                if self.render([message], True, tools).startswith(text):
                    return True
        return False

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Return the text of a conversation as the model was trained to see it.

        Args:
            messages: `{"role": "user", "content": "..."}` and so on; JSON data only.
            add_generation_prompt: end with the start of the model's turn.
            tools: JSON schemas of functions, for templates that know tools.

        Raises:
            EdgepackError: there is no chat template, it refuses the messages, or `jinja2` is not installed.
        """
        name = "tool_use" if tools is not None and "tool_use" in self._templates else "default"
        template = self._templates.get(name)
        if template is None:
            others = f", only {', '.join(map(printable, self._templates))}" if self._templates else ""
            raise EdgepackError(
                f"{self.folder}: this package has no chat template (chat_template.jinja, or the key 'chat_template' in "
                f"tokenizer_config.json){others}: pass the whole prompt as text instead"
            )
        try:
            # A round trip leaves plain data only: a template comes with the checkpoint and is not to be trusted.
            data = json.loads(json.dumps({"messages": [_with_reasoning(m) for m in messages], "tools": tools}))
        except (TypeError, ValueError, AttributeError) as error:
            raise EdgepackError(f"chat messages and tools must be JSON data: {one_line(error)}") from None
        try:
            return template(**self.special_tokens, **data, documents=None, add_generation_prompt=add_generation_prompt)
        except Exception as error:  # a template is a program: it can fail in any way
            raise EdgepackError(f"{self.folder}: the chat template refused the messages: {one_line(error)}") from error

    @cached_property
    def _templates(self) -> dict[str, Callable[..., str]]:
        sources = template_sources(self.folder)
        return {name: compile_template(self.folder, source) for name, source in sources.items()}


def _with_reasoning(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """`message` with its reasoning under the names that templates read, as Transformers gives it to them."""
    reasoning = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def template_sources(folder: Path) -> dict[str, str]:
    """Chat templates by name, from the first place that has any, in Transformers' order.

    Raises:
        TextFileError: a file cannot be read, or what stands under `chat_template` is no template.
    """
    found = {file.name.removesuffix(".jinja"): file for file in (folder / TEMPLATE_FOLDER).glob("*.jinja")}
    files = {"default": folder / "chat_template.jinja", **dict(sorted(found.items()))}
    sources = {name: text for name, file in files.items() if (text := read_text(file)) is not None}
    for name in () if sources else ("tokenizer_config.json", "chat_template.json"):
        sources = _named_templates(folder / name, read_json(folder / name).get("chat_template"))
        if sources:
            break
    return sources


def _named_templates(path: Path, value: Any) -> dict[str, str]:
    """Templates in a config: one, an object of them, or a list of objects with `name` and `template`."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    try:
        sources = value if isinstance(value, dict) else {entry["name"]: entry["template"] for entry in value}
    except (TypeError, KeyError):
        sources = {}
    if not all(isinstance(text, str) for pair in sources.items() for text in pair) or (value and not sources):
        raise TextFileError(
            f"{path}: key 'chat_template' is {shown(value)}: expected a template, or a list of objects with 'name' and "
            "'template'"
        )
    return dict(sources)


def one_template(sources: Mapping[str, str]) -> str | None:
    """The default template, and `tool_use` in its place where tools are given, as one; None where there is neither.

    LiteRT-LM has room for one template. Nothing is left to how Jinja trims the surroundings of tags: a print of an
    empty text stands between them and the templates, which lose the last line break that Jinja drops.
    """
    default, tools = (_without_last_break(sources[name]) if name in sources else None for name in TEMPLATE_NAMES)
    if tools is None:
        return sources.get("default")
    if default is None:
        default = "{{ raise_exception('no default chat template') }}"
    return (
        f"{{% if not tools %}}{{{{ '' }}}}{default}{{{{ '' }}}}{{% else %}}{{{{ '' }}}}{tools}{{{{ '' }}}}{{% endif %}}"
    )


def _without_last_break(source: str) -> str:
    return re.sub(r"(?:\r\n|\r|\n)\Z", "", source)


def compile_template(folder: Path, source: str) -> Callable[..., str]:
    """What renders `source`, in the environment that Transformers gives to chat templates, with limits.

    Raises:
        EdgepackError: it is not valid, or `jinja2` is not installed.
    """
    import_library("jinja2")
    from edgepack.text.sandbox import ChatSandbox

    sandbox = ChatSandbox()
    try:
        return partial(sandbox.rendered, sandbox.from_string(source))
    except Exception as error:  # Jinja's own, and what Python says of code that nests too deeply
        raise EdgepackError(f"{folder}: the chat template is not valid Jinja: {one_line(error)}") from error
