"""Golden prompts: one JSON object a line, with what the answer must be. What is wrong is told with file and line."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from edgepack.errors import EdgepackError, not_installed
from edgepack.reading import dotted, loads_object, read_user_file, wrong_value
from edgepack.shown import one_line, printable, shown
from edgepack.values import Frozen

DEFAULT_NEW_TOKENS = 128
# An answer has a length that a regular expression can be tried on, and a run an end.
MOST_NEW_TOKENS = 4096
MOST_LINES = 10_000
_TEXTS = 'a text of at least 1 character or a list of such texts, such as "Rome"'
_EXPECTED = {
    "name": 'a text of at least 1 character, such as "capital"',
    "prompt": 'a text of at least 1 character, such as "Name the capital of Italy."',
    "messages": 'a list such as [{"role": "user", "content": "Hello"}]',
    "chat": "true or false",
    "tools": 'a list of functions such as [{"name": "now", "parameters": {"type": "object"}}]',
    "tools.name": 'a text such as "now"',
    "tools.description": 'a text such as "The time of day."',
    "tools.parameters": 'a JSON schema such as {"type": "object"}',
    "max_new_tokens": f"a whole number of 1 to {MOST_NEW_TOKENS}, such as {DEFAULT_NEW_TOKENS}",
    "must_contain": _TEXTS,
    "must_not_contain": _TEXTS,
    "must_match": 'a regular expression such as "(?i)rome"',
    "may_be_empty": "true or false",
    "must_call": 'true, false or a call such as {"name": "now", "arguments": {}}',
}


def _some(value: object) -> object:
    """One text is a list of one."""
    return [value] if isinstance(value, str) else value


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression: {printable(str(error))}") from None
    return value


Part = Annotated[str, Field(min_length=1)]
Parts = Annotated[tuple[Part, ...], BeforeValidator(_some)]
Pattern = Annotated[str, Field(min_length=1), AfterValidator(_pattern)]


class WantedCall(Frozen):
    """A call that must be among those of the answer.

    Attributes:
        arguments: these must have these values; others are free as far as the tool's schema allows.
    """

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class Tool(Frozen):
    """A function that the model may call.

    Attributes:
        parameters: JSON schema of the object of its arguments.
    """

    name: str
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object"})

    @field_validator("parameters")
    @classmethod
    def _is_schema(cls, schema: dict[str, Any]) -> dict[str, Any]:
        if importlib.util.find_spec("jsonschema") is None:
            raise EdgepackError(not_installed("jsonschema", "run"))
        from jsonschema import SchemaError
        from jsonschema.validators import validator_for

        try:
            validator_for(schema).check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"not a JSON schema: {printable(error.message)}") from None
        return schema


def _unwrapped(value: object) -> object:
    """A tool in its OpenAI wrapping, ``{"type": "function", "function": {...}}``, or bare."""
    if isinstance(value, dict) and value.get("type") == "function" and set(value) == {"type", "function"}:
        return value["function"]
    return value


class Golden(Frozen):
    """One line: a prompt and the demands on its answer. At least one demand, and either a prompt or messages.

    Attributes:
        prompt: the user's message where the package has a chat template and `chat` is not off; else the text that
            is continued.
        tools: given to the chat template as they stand in the line, and what a call is checked against.
        must_contain, must_not_contain: case counts.
        must_match: found anywhere in the answer; ``^`` and ``(?i)`` as in Python's `re`.
        may_be_empty: an answer of nothing but blanks is no failure.
        must_call: true: at least one call and all of them valid; or a call that must be among the valid ones.
    """

    name: str = Field(min_length=1)
    prompt: str | None = Field(None, min_length=1)
    messages: tuple[dict[str, Any], ...] | None = Field(None, min_length=1)
    chat: StrictBool | None = None
    tools: tuple[Annotated[Tool, BeforeValidator(_unwrapped)], ...] = ()
    max_new_tokens: int = Field(DEFAULT_NEW_TOKENS, ge=1, le=MOST_NEW_TOKENS, strict=True)
    must_contain: Parts = ()
    must_not_contain: Parts = ()
    must_match: Pattern | None = None
    may_be_empty: StrictBool = False
    must_call: Annotated[bool, Field(strict=True)] | WantedCall = False

    @model_validator(mode="after")
    def _complete(self) -> Golden:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("expected either prompt or messages")
        if self.messages is not None and self.chat is False:
            raise ValueError("messages need a chat template: chat cannot be false")
        if not (self.must_contain or self.must_not_contain or self.must_match or self.must_call):
            raise ValueError("expected at least one of must_contain, must_not_contain, must_match, must_call")
        if self.must_call and not self.tools:
            raise ValueError("must_call needs tools, which say what a valid call is")
        if isinstance(self.must_call, WantedCall) and self.must_call.name not in self.tool_names:
            raise ValueError(f"must_call: {shown(self.must_call.name)} is none of the tools")
        return self

    @property
    def tool_names(self) -> list[str]:
        """Names of the tools, in order."""
        return [tool.name for tool in self.tools]

    @property
    def asked(self) -> str:
        """What was asked, for a report: the prompt, or the last message."""
        return self.prompt if self.prompt is not None else str((self.messages or ({},))[-1].get("content", ""))


class GoldenJob(Frozen):
    """What the process of a golden run is told."""

    package: str
    runtime: str | None
    threads: int | None
    goldens: tuple[Golden, ...]


def read_goldens(file: Path) -> tuple[Golden, ...]:
    """The prompts of `file`, in order; empty lines are left out.

    Raises:
        EdgepackError: the file cannot be read, holds no prompt, or a line is broken: file, line and what was expected.
    """
    try:
        lines = read_user_file(file, "golden prompts").decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise EdgepackError(f"{file}: not a text file in UTF-8: {error.reason} at byte {error.start}") from None
    goldens = [_golden(file, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not goldens:
        raise EdgepackError(f"{file}: no golden prompts: expected one JSON object a line")
    if len(goldens) > MOST_LINES:
        raise EdgepackError(f"{file}: {len(goldens):,} prompts: expected at most {MOST_LINES:,}")
    names = [golden.name for golden in goldens]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise EdgepackError(f"{file}: two prompts are named {shown(twice)}: expected a name of its own for each")
    return tuple(goldens)


def _golden(file: Path, number: int, line: str) -> Golden:
    where = f"{file}, line {number}"
    try:
        value = loads_object(line)
    except ValueError as error:
        raise EdgepackError(f"{where}: {one_line(error)}") from None
    try:
        return Golden.model_validate({"name": f"line {number}", **value})
    except ValidationError as error:
        raise EdgepackError(f"{where}: {_reason(error.errors()[0])}") from None


def _reason(error: ErrorDetails) -> str:
    place = error["loc"]
    if error["type"] == "extra_forbidden":
        known = Golden if len(place) == 1 else Tool
        return f"{dotted(place)}: no such key; expected one of {', '.join(known.model_fields)}"
    if error["type"] != "value_error":
        return wrong_value(error, _EXPECTED)
    reason = error["msg"].removeprefix("Value error, ")
    return f"{dotted(place)}: {reason}" if place else reason
