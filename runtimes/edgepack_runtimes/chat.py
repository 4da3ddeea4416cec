"""Chat templates: a conversation as the text that the model was trained to see, as Transformers renders it.

Needs `jinja2`, which is imported when first used, and no tokenizer: opening Gemma's takes 0.4 GB.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from edgepack.errors import EdgepackError
from edgepack_runtimes.text_files import import_library, one_line, read_json, read_text, special_tokens


class ChatTemplates:
    """The chat templates of one checkpoint or package folder.

    Attributes:
        folder: the folder.
        special_tokens: `bos_token`, `eos_token` and the like by name, as templates know them.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read tokenizer_config.json of `folder`; raise PackageError if it cannot be read."""
        self.folder = Path(folder)
        self._config = read_json(self.folder / "tokenizer_config.json")
        self.special_tokens = special_tokens(self._config)

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
            raise EdgepackError(
                f"{self.folder}: this package has no chat template (chat_template.jinja, or the key 'chat_template' in "
                "tokenizer_config.json): pass the whole prompt as text instead"
            )
        try:
            # A round trip leaves plain data only: a template comes with the checkpoint and is not to be trusted.
            data = json.loads(json.dumps({"messages": list(messages), "tools": tools}))
        except (TypeError, ValueError) as error:
            raise EdgepackError(f"chat messages and tools must be JSON data: {one_line(error)}") from None
        try:
            return template(**self.special_tokens, **data, documents=None, add_generation_prompt=add_generation_prompt)
        except Exception as error:  # a template is a program: it can fail in any way
            raise EdgepackError(f"{self.folder}: the chat template refused the messages: {one_line(error)}") from error

    @cached_property
    def _templates(self) -> dict[str, Callable[..., str]]:
        sources = template_sources(self.folder, self._config)
        return {name: compile_template(self.folder, source) for name, source in sources}


def template_sources(folder: Path, tokenizer_config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Named chat templates, from the first place that has any, in Transformers' order."""
    source = read_text(folder / "chat_template.jinja")
    if source is not None:
        return [("default", source)]
    for config in (tokenizer_config, read_json(folder / "chat_template.json")):
        value = config.get("chat_template")
        if isinstance(value, str):
            return [("default", value)]
        if isinstance(value, list):
            return [(str(entry.get("name")), str(entry.get("template"))) for entry in value if isinstance(entry, dict)]
    return []


def compile_template(folder: Path, source: str) -> Callable[..., str]:
    """What renders `source`, in the environment that Transformers gives to chat templates, with limits.

    Raises:
        EdgepackError: it is not valid, or `jinja2` is not installed.
    """
    import_library("jinja2")
    from edgepack_runtimes.chat_sandbox import ChatSandbox

    sandbox = ChatSandbox()
    try:
        return partial(sandbox.rendered, sandbox.from_string(source))
    except Exception as error:  # Jinja's own, and what Python says of code that nests too deeply
        raise EdgepackError(f"{folder}: the chat template is not valid Jinja: {one_line(error)}") from error
