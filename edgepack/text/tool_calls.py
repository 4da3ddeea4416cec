"""Tool calls in an answer, in the formats that Gemma and its fine-tunes use. Nothing of an answer is ever run.

- JSON in a ```json, ```tool_code, ```tool_call or plain fence, in ``<tool_call>``, or as the whole answer: one object
  or a list, ``{"name": ..., "arguments": {...}}``. ``parameters`` or ``args`` stand for ``arguments`` (Gemma's guide
  says parameters), and ``{"function": {...}}`` and ``{"tool_calls": [...]}`` are opened.
- Python calls in the same places: ``[get_weather(city="Rome"), now()]``, with or without brackets (Gemma 3's guide).
- ``<start_function_call>call:get_weather{city:<escape>Rome<escape>}<end_function_call>`` (FunctionGemma). A tokenizer
  may have taken the markers away, as it does with special tokens.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgepack.shown import printable

# A model that stops before the closing mark has still said what it wants to call.
_FENCE = re.compile(r"```[ \t]*(\w*)\s(.*?)(?:```|\Z)", re.DOTALL)
_TAG = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_LANGUAGES = ("", "json", "tool_code", "tool_call", "python")
_GEMMA_CALL = re.compile(r"call:\s*([\w.-]+)\s*\{")
_ESCAPE = "<escape>"
# Deeper is no arguments of a tool, and every parser here calls itself.
_MOST_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Call:
    """One call that was understood."""

    name: str
    arguments: dict[str, Any]


class NoCallError(ValueError):
    """What looks like a call and cannot be read as one."""


def find_calls(answer: str) -> tuple[list[Call], list[str]]:
    """The calls in `answer`, and what is wrong with places that should hold one."""
    calls: list[Call] = []
    wrong: list[str] = []
    for place, text in _places(answer):
        try:
            calls += _read(text)
        except NoCallError as error:
            wrong.append(f"{place}: {error}")
        except (RecursionError, MemoryError):
            wrong.append(f"{place}: nested too deeply")
    return calls, wrong


def _places(answer: str) -> Iterator[tuple[str, str]]:
    """Texts that should be calls, with a name for messages. The whole answer is one where nothing is marked."""
    tagged = _TAG.findall(answer)
    fenced = [(language, text) for language, text in _FENCE.findall(answer) if language.lower() in _LANGUAGES]
    if tagged:
        yield from (("<tool_call>", text) for text in tagged)
    elif fenced:
        yield from ((f"```{language}", text) for language, text in fenced)
    elif _GEMMA_CALL.search(answer):
        yield "function call", answer
    else:
        text = answer.strip()
        if text.startswith(("{", "[")) or re.match(r"[A-Za-z_][\w.]*\(.*\)$", text, re.DOTALL):
            yield "the answer", text


def _read(text: str) -> list[Call]:
    text = text.strip()
    if _GEMMA_CALL.search(text) and not text.startswith(("{", "[")):
        return _gemma_calls(text)
    try:
        value = _loads(text)
    except ValueError as error:
        if text.startswith(("{", "[{")):
            raise NoCallError(f"not valid JSON: {error}") from None
        return _python_calls(text)
    return _json_calls(value)


def _loads(text: str) -> Any:
    """JSON without the NaN and Infinity that Python takes for it."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def _json_calls(value: Any) -> list[Call]:
    if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
        value = value["tool_calls"]
    if isinstance(value, list) and value:
        return [_json_call(entry) for entry in value]
    return [_json_call(value)]


def _json_call(value: Any) -> Call:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise NoCallError('expected an object with "name" and "arguments"')
    key = next((key for key in ("arguments", "parameters", "args") if key in value), None)
    arguments = value[key] if key is not None else {}
    if isinstance(arguments, str):  # OpenAI's interface has JSON in a string here
        try:
            arguments = _loads(arguments)
        except ValueError:
            raise NoCallError(f"the arguments of {printable(value['name'])} are a string that is not JSON") from None
    if not isinstance(arguments, dict):
        raise NoCallError(f"the arguments of {printable(value['name'])} are not an object")
    return Call(value["name"], arguments)


def _python_calls(text: str) -> list[Call]:
    """Calls as expressions, one or more statements or a list. They are parsed, never run."""
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError):
        raise NoCallError("neither JSON nor a Python call") from None
    nodes: list[ast.AST] = []
    for statement in statements:
        node = statement.value if isinstance(statement, ast.Expr) else statement
        nodes += node.elts if isinstance(node, ast.List) else [node]
    return [_python_call(node) for node in nodes]


def _python_call(node: ast.AST) -> Call:
    if not isinstance(node, ast.Call):
        raise NoCallError("expected calls such as get_weather(city='Rome')")
    name = ast.unparse(node.func)
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise NoCallError(f"{printable(name)}: an argument without a name")
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        try:
            value = ast.literal_eval(keyword.value)
            arguments[str(keyword.arg)] = json.loads(json.dumps(value, allow_nan=False))
        except (ValueError, TypeError):
            raise NoCallError(
                f"{printable(name)}: {keyword.arg} is {printable(ast.unparse(keyword.value))}, which is no plain value"
            ) from None
    return Call(name, arguments)


def _gemma_calls(text: str) -> list[Call]:
    calls, position = [], 0
    while (found := _GEMMA_CALL.search(text, position)) is not None:
        arguments, position = _gemma_object(text, found.end(), 0)
        calls.append(Call(found.group(1), arguments))
    return calls


def _gemma_object(text: str, position: int, depth: int) -> tuple[dict[str, Any], int]:
    """``key:value,...}`` from behind the opening brace; the position behind the closing one."""
    values: dict[str, Any] = {}
    while True:
        position = _skip(text, position, ", \n\t")
        if text.startswith("}", position):
            return values, position + 1
        colon = text.find(":", position)
        if colon < 0:
            raise NoCallError("a function call that is cut off")
        key = text[position:colon].strip().removeprefix(_ESCAPE).removesuffix(_ESCAPE)
        values[key], position = _gemma_value(text, colon + 1, depth)


def _gemma_list(text: str, position: int, depth: int) -> tuple[list[Any], int]:
    values: list[Any] = []
    while True:
        position = _skip(text, position, ", \n\t")
        if text.startswith("]", position):
            return values, position + 1
        value, position = _gemma_value(text, position, depth)
        values.append(value)


def _gemma_value(text: str, position: int, depth: int) -> tuple[Any, int]:
    position = _skip(text, position, " \n\t")
    if depth >= _MOST_DEPTH or position >= len(text):
        raise NoCallError("a function call that is cut off" if position >= len(text) else "nested too deeply")
    if text.startswith(_ESCAPE, position):
        start = position + len(_ESCAPE)
        end = text.find(_ESCAPE, start)
        if end < 0:
            raise NoCallError("a function call that is cut off")
        return text[start:end], end + len(_ESCAPE)
    if text[position] == "{":
        return _gemma_object(text, position + 1, depth + 1)
    if text[position] == "[":
        return _gemma_list(text, position + 1, depth + 1)
    end = min((at for at in (text.find(mark, position) for mark in ",}]") if at >= 0), default=-1)
    if end < 0:
        raise NoCallError("a function call that is cut off")
    if end == position:
        raise NoCallError("an argument without a value")
    word = text[position:end].strip()
    try:
        return _loads(word), end
    except ValueError:
        return word, end


def _skip(text: str, position: int, marks: str) -> int:
    while position < len(text) and text[position] in marks:
        position += 1
    return position
