"""Whether an answer is what its golden prompt demands: the list of what is wrong with it, empty when it passes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from edgepack.shown import MOST_TEXT_CHARACTERS, shown
from edgepack.text.tool_calls import Call, find_calls
from edgepack.validation.golden.file import Golden, Tool, WantedCall

_SHOWN = 60


def unmet_demands(golden: Golden, answer: str) -> list[str]:
    """What is wrong with `answer`, a line each."""
    failures = [
        f"does not contain {shown(part, MOST_TEXT_CHARACTERS)}" for part in golden.must_contain if part not in answer
    ]
    failures += [
        f"contains {shown(part, MOST_TEXT_CHARACTERS)}, which it must not"
        for part in golden.must_not_contain
        if part in answer
    ]
    if golden.must_match is not None and re.search(golden.must_match, answer) is None:
        failures.append(f"does not match {shown(golden.must_match, MOST_TEXT_CHARACTERS)}")
    if golden.must_call:
        failures += unmet_calls(golden.tools, golden.must_call, answer)
    if not failures and not answer.strip() and not golden.may_be_empty:
        # A model that says nothing keeps every "must not": a broken package would pass.
        failures.append('is empty; "may_be_empty": true would allow it')
    return failures


def unmet_calls(tools: Sequence[Tool], wanted: bool | WantedCall, answer: str) -> list[str]:
    """What is wrong with the tool calls in `answer`."""
    calls, wrong = find_calls(answer)
    by_name = {tool.name: tool for tool in tools}
    failures = [f"no tool call that can be read: {reason}" for reason in wrong]
    valid = []
    for call in calls:
        problems = _problems(by_name, call)
        failures += problems
        if not problems:
            valid.append(call)
    if isinstance(wanted, WantedCall):
        if any(_is_wanted(call, wanted) for call in valid):
            return []
        arguments = f" with {wanted.arguments}" if wanted.arguments else ""
        got = ", ".join(f"{call.name}({_short(call.arguments)})" for call in valid)
        failures.append(f"no valid call of {wanted.name}{arguments}" + (f", only {got}" if got else ""))
    elif not calls and not wrong:
        failures.append("no tool call")
    return failures


def _problems(tools: dict[str, Tool], call: Call) -> list[str]:
    tool = tools.get(call.name)
    if tool is None:
        return [f"calls {shown(call.name)}, which is none of the tools ({', '.join(tools)})"]
    return [f"call of {call.name}: {reason}" for reason in schema_errors(tool.parameters, call.arguments)]


def schema_errors(schema: dict[str, Any], arguments: dict[str, Any]) -> list[str]:
    """How `arguments` break `schema`. References to other documents are never fetched."""
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    kind = validator_for(schema)
    empty: Registry[Any] = Registry()
    try:
        errors = sorted(kind(schema, registry=empty).iter_errors(arguments), key=lambda error: error.json_path)
    except Unresolvable as error:
        return [f"its schema refers to {shown(error.ref)}, which is not in it"]
    except RecursionError:
        return ["the arguments are nested too deeply"]
    return [f"{'.'.join(map(str, error.absolute_path)) or 'arguments'}: {_short(error.message)}" for error in errors]


def _is_wanted(call: Call, wanted: WantedCall) -> bool:
    return call.name == wanted.name and all(
        key in call.arguments and json_equal(call.arguments[key], value) for key, value in wanted.arguments.items()
    )


def json_equal(a: Any, b: Any) -> bool:
    """Equality of JSON values: 3 is 3.0, true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(json_equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(json_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]}...{text[-_SHOWN:]}"
