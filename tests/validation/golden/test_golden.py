"""Golden answers: the file, the tool calls in an answer, and the judgement."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from edgepack.errors import EdgepackError
from edgepack.text.tool_calls import Call, find_calls
from edgepack.validation.golden.demands import json_equal, unmet_demands
from edgepack.validation.golden.file import Golden, WantedCall, read_goldens
from edgepack.validation.golden.worker import prompt_text
from tests.support.paths import ROOT

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now", "description": "The time."}}


def golden(**values: Any) -> Golden:
    return Golden.model_validate({"name": "g", "prompt": "p", **values})


# --- the file ---


def write(folder: Path, *lines: Any) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return file


def test_a_file_of_every_kind_of_line(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        {"prompt": "a", "must_contain": "x"},
        "",
        {"name": "n", "messages": [{"role": "user", "content": "b"}], "must_match": "(?i)y", "max_new_tokens": 5},
        {"prompt": "c", "tools": [WEATHER, NOW], "must_call": True, "must_not_contain": ["q", "r"], "chat": False},
        {"prompt": "d", "tools": [NOW], "must_call": {"name": "now"}},
    )
    first, second, third, fourth = read_goldens(file)
    assert (first.name, first.asked, first.must_contain, first.max_new_tokens) == ("line 1", "a", ("x",), 128)
    assert (second.name, second.asked, second.max_new_tokens) == ("n", "b", 5)
    assert third.tool_names == ["get_weather", "now"]
    assert (third.name, third.must_not_contain, third.chat) == ("line 4", ("q", "r"), False)
    assert fourth.must_call == WantedCall(name="now")


GOOD = {"prompt": "a", "must_contain": "x"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ('{"prompt": "a", "prompt": "b"}', "line 2: not valid JSON"),
        ("[1]", "line 2: expected a JSON object, got list"),
        ({"prompt": "a"}, "line 2: expected at least one of must_contain, must_not_contain, must_match, must_call"),
        ({"must_contain": "x"}, "line 2: expected either prompt or messages"),
        ({**GOOD, "messages": [{"role": "user"}]}, "line 2: expected either prompt or messages"),
        ({**GOOD, "must_contian": "x"}, "line 2: must_contian: no such key; expected one of name, prompt, "),
        ({**GOOD, "must_contain": ""}, 'line 2: must_contain: expected a text of at least 1 char.*"Rome", got ""$'),
        ({**GOOD, "must_contain": 3}, "line 2: must_contain: expected a text of at least 1 character .*, got 3$"),
        (
            {**GOOD, "must_contain": ["x", 3]},
            "line 2: must_contain: expected a text of at least 1 character .*, got 3$",
        ),
        ({**GOOD, "must_match": 3}, "line 2: must_match: expected a regular expression .*, got 3$"),
        ({**GOOD, "messages": ["x"]}, 'line 2: messages: expected a list such as .*, got "x"$'),
        (
            {**GOOD, "prompt": "x" * 9000, "name": ["x" * 9000]},
            r"line 2: name: expected a text .*, got .*x{58}\.\.\. \(9,004 characters\)$",
        ),
        ({**GOOD, "must_call": 1, "tools": [NOW]}, "line 2: must_call: expected true, false or a call .*, got 1$"),
        ({**GOOD, "tools": [NOW, {"name": 3}]}, 'line 2: tools.1.name: expected a text such as "now", got 3$'),
        ({**GOOD, "tools": [{}]}, 'line 2: tools.0.name: expected a text such as "now", got nothing$'),
        (
            {**GOOD, "tools": [{"name": "t", "schema": {}}]},
            "line 2: tools.0.schema: no such key; expected one of name, description, parameters$",
        ),
        ({**GOOD, "must_match": "("}, "line 2: must_match: not a regular expression: missing \\)"),
        (
            {**GOOD, "max_new_tokens": 0},
            "line 2: max_new_tokens: expected a whole number of 1 to 4096, such as 128, got 0$",
        ),
        (
            {**GOOD, "max_new_tokens": 10**6},
            "line 2: max_new_tokens: expected a whole number of 1 to 4096, .*, got 1000000$",
        ),
        ({**GOOD, "max_new_tokens": "5"}, 'line 2: max_new_tokens: expected a whole number of 1 to 4096, .*, got "5"$'),
        ({**GOOD, "chat": "no"}, 'line 2: chat: expected true or false, got "no"$'),
        ({**GOOD, "must_call": True}, "line 2: must_call needs tools"),
        ({**GOOD, "must_call": {"name": "x"}, "tools": [NOW]}, "line 2: must_call: 'x' is none of the tools"),
        (
            {**GOOD, "tools": [{"name": "t", "parameters": {"type": "objekt"}}]},
            "line 2: tools.0.parameters: not a JSON",
        ),
        ({"messages": [{"role": "user"}], "chat": False, "must_contain": "x"}, "line 2: messages need a chat template"),
        ({**GOOD, "name": "same"}, "two prompts are named 'same'"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: Any, message: str) -> None:
    file = write(tmp_path, {**GOOD, "name": "same"}, line)
    with pytest.raises(EdgepackError, match=message) as caught:
        read_goldens(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read: No such file"), (b"\n \n", "no golden prompts"), (b"\xff", "not a text file in UTF-8")],
)
def test_files_without_prompts(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "prompts.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(EdgepackError, match=message):
        read_goldens(file)


# --- calls ---

ROME = Call("get_weather", {"city": "Rome", "days": 3})


@pytest.mark.parametrize(
    "answer",
    [
        '{"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}',
        ' [{"name": "get_weather", "parameters": {"city": "Rome", "days": 3}}]\n',
        'Sure:\n```json\n{"name": "get_weather", "args": {"city": "Rome", "days": 3}}\n```\nDone.',
        '```tool_code\nget_weather(city="Rome", days=3)\n```',
        '```JSON\n{"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}\n```',
        '```\n{"function": {"name": "get_weather", "arguments": "{\\"city\\": \\"Rome\\", \\"days\\": 3}"}}```',
        '```json\n{"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}',
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}\n</tool_call>',
        '{"tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}}]}',
        '[get_weather(city="Rome", days=3)]',
        "get_weather(city='Rome', days=3)",
        "<start_function_call>call:get_weather{city:<escape>Rome<escape>,days:3}<end_function_call>",
        "call:get_weather{city:Rome,days:3}",
    ],
)
def test_a_call_in_every_format(answer: str) -> None:
    assert find_calls(answer) == ([ROME], [])
    assert unmet_demands(golden(tools=[WEATHER], must_call=True), answer) == []


def test_several_calls() -> None:
    both = [ROME, Call("now", {})]
    for answer in (
        '[get_weather(city="Rome", days=3), now()]',
        '```tool_code\nget_weather(city="Rome", days=3)\nnow()\n```',
        f'<tool_call>{call(city="Rome", days=3)}</tool_call> <tool_call>{{"name": "now"}}</tool_call>',
        '[{"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}, {"name": "now"}]',
    ):
        assert find_calls(answer) == (both, [])


def test_values_of_function_gemma() -> None:
    answer = "call:f{a:<escape>x, {y}<escape>,b:[1,<escape>two<escape>,true],c:{d:null,e:-1.5},g:plain words}"
    assert find_calls(answer) == (
        [Call("f", {"a": "x, {y}", "b": [1, "two", True], "c": {"d": None, "e": -1.5}, "g": "plain words"})],
        [],
    )


@pytest.mark.parametrize("answer", ["", "The weather is fine.", "I would call get_weather(city) now.", "call me {x}"])
def test_prose_is_no_call(answer: str) -> None:
    assert find_calls(answer) == ([], [])
    assert unmet_demands(golden(tools=[WEATHER], must_call=True), answer) == ["no tool call"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('{"name": "get_weather", "arguments": {"city": "Ro', "not valid JSON"),
        ('{"name": "get_weather", "arguments": {"days": NaN}}', "not valid JSON: NaN is no JSON"),
        ('{"name": "get_weather", "arguments": 3}', "the arguments of get_weather are not an object"),
        ('{"tool": "get_weather"}', 'expected an object with "name"'),
        ('{"name": "f", "arguments": "{"}', "a string that is not JSON"),
        ("get_weather('Rome')", "get_weather: an argument without a name"),
        ("get_weather(**x)", "get_weather: an argument without a name"),
        ("get_weather(city=open('/etc/passwd'))", "city is open\\('/etc/passwd'\\), which is no plain value"),
        ("get_weather(city={1, 2})", "no plain value"),
        ("```tool_code\nimport os\n```", "expected calls such as"),
        ("```tool_code\nif:\n```", "neither JSON nor a Python call"),
        ("call:f{a:<escape>x", "cut off"),
        ("call:f{a:[}", "without a value"),
        ("call:f{a:", "cut off"),
        ("call:f{a:" + "[" * 100 + "]" * 100 + "}", "nested too deeply"),
        ("[" * 100_000, "Python call|too deeply"),
        ("f(" * 100_000 + ")" * 100_000, "Python call|too deeply"),
    ],
)
def test_what_cannot_be_read_as_a_call(answer: str, reason: str) -> None:
    calls, wrong = find_calls(answer)
    assert calls == []
    assert len(wrong) == 1
    assert re.search(reason, wrong[0]), wrong


# --- the judgement ---


def call(**arguments: Any) -> str:
    return json.dumps({"name": "get_weather", "arguments": arguments})


def test_texts_that_must_and_must_not_be_there() -> None:
    wanted = golden(must_contain=["Rome", "sun"], must_not_contain="rain", must_match=r"\d+ degrees$")
    assert unmet_demands(wanted, "In Rome: sun, 30 degrees") == []
    assert unmet_demands(wanted, "In rome: rain") == [
        "does not contain 'Rome'",
        "does not contain 'sun'",
        "contains 'rain', which it must not",
        "does not match '\\\\d+ degrees$'",
    ]


@pytest.mark.parametrize("answer", ["", " \n"])
def test_silence_passes_only_where_it_is_allowed(answer: str) -> None:
    assert unmet_demands(golden(must_not_contain="rain"), answer) == ['is empty; "may_be_empty": true would allow it']
    assert unmet_demands(golden(must_match="(?s)^(?!.*rain)"), answer) == [
        'is empty; "may_be_empty": true would allow it'
    ]
    assert unmet_demands(golden(must_not_contain="rain", may_be_empty=True), answer) == []
    assert unmet_demands(golden(must_contain="sun"), answer) == ["does not contain 'sun'"]


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (call(), "call of get_weather: arguments: 'city' is a required property"),
        (call(city=3), "call of get_weather: city: 3 is not of type 'string'"),
        (call(city="Rome", days=0), "call of get_weather: days: 0 is less than the minimum of 1"),
        (call(city="Rome", hours=1), "call of get_weather: arguments: Additional properties are not allowed"),
        ('{"name": "get_rain"}', "calls 'get_rain', which is none of the tools (get_weather)"),
    ],
)
def test_a_call_against_its_schema(answer: str, failure: str) -> None:
    failures = unmet_demands(golden(tools=[WEATHER], must_call=True), answer)
    assert len(failures) == 1
    assert failures[0].startswith(failure)


def test_a_certain_call() -> None:
    wanted = golden(tools=[WEATHER, NOW], must_call={"name": "get_weather", "arguments": {"city": "Rome"}})
    assert unmet_demands(wanted, call(city="Rome")) == []
    assert unmet_demands(wanted, call(city="Rome", days=2)) == []  # days are free
    assert unmet_demands(wanted, '[now(), get_weather(city="Rome")]') == []
    assert unmet_demands(wanted, call(city="Oslo")) == [
        "no valid call of get_weather with {'city': 'Rome'}, only get_weather({'city': 'Oslo'})"
    ]
    assert unmet_demands(wanted, "now()") == ["no valid call of get_weather with {'city': 'Rome'}, only now({})"]
    assert len(unmet_demands(wanted, call(city="Rome", days="two"))) == 2


def test_a_schema_fetches_nothing() -> None:
    tool = {"name": "t", "parameters": {"$ref": "http://127.0.0.1:9/schema.json"}}
    assert unmet_demands(golden(tools=[tool], must_call=True), "t()") == [
        "call of t: its schema refers to 'http://127.0.0.1:9/schema.json', which is not in it"
    ]


def test_equality_of_json() -> None:
    assert json_equal({"a": [1, 2.0, None]}, {"a": [1.0, 2, None]})
    assert not json_equal(True, 1)
    assert not json_equal([0], [False])
    assert not json_equal({"a": 1}, {"a": 1, "b": 2})
    assert not json_equal([1], [1, 2])


# --- prompts ---


class Codec:
    def __init__(self, knows_tools: bool, has_chat_template: bool = True) -> None:
        self.knows_tools, self.has_chat_template = knows_tools, has_chat_template

    def render_chat(self, messages: Any, tools: Any = None) -> str:
        return f"<{messages[-1]['content']}>{json.dumps(tools) if self.knows_tools else ''}"


def test_how_a_prompt_is_put() -> None:
    bare = Codec(True, has_chat_template=False)
    assert prompt_text(bare, golden(must_contain="x")) == "p"  # no template: continued
    assert prompt_text(bare, golden(must_contain="x", chat=True)) == "<p>null"
    assert prompt_text(Codec(True), golden(must_contain="x")) == "<p>null"
    assert prompt_text(Codec(True), golden(must_contain="x", chat=False)) == "p"
    with_tool = golden(tools=[WEATHER], must_call=True)
    assert json.loads(prompt_text(Codec(True), with_tool).removeprefix("<p>"))[0]["function"]["name"] == "get_weather"
    with pytest.raises(EdgepackError, match="chat template leaves the tool 'get_weather' out"):
        prompt_text(Codec(False), with_tool)
    told = golden(tools=[WEATHER], must_call=True, prompt="use get_weather(city)")
    assert prompt_text(Codec(False), told) == "<use get_weather(city)>"


# --- around it ---


def test_without_jsonschema_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jsonschema", None)
    with pytest.raises(EdgepackError, match=r"jsonschema is not installed: pip install -c constraints.txt '\.\[run\]'"):
        read_goldens(write(tmp_path, {**GOOD, "tools": [WEATHER]}))


def test_the_example_of_the_documentation_is_valid(tmp_path: Path) -> None:
    page = ROOT / "docs" / "quality.md"
    lines = page.read_text("utf-8").split("```jsonl\n")[1].split("\n```\n")[0]
    assert len(read_goldens(write(tmp_path, lines))) >= 3
