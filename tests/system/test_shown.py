"""What is shown of other people's values: little of it, on one line, in characters that every terminal has."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgepack.cli.synth import _config
from edgepack.config import read_config
from edgepack.errors import CheckpointError, EdgepackError
from edgepack.planning.plan import load_plan
from edgepack.planning.targets import read_profile
from edgepack.quant.recipes import load_recipe
from edgepack.reading import loads_object, loads_strict
from edgepack.shown import MOST_MESSAGE_CHARACTERS, one_line, printable, shown
from edgepack.validation.golden.file import read_goldens
from edgepack.validation.verdict.baseline import load_report
from tests.support.paths import ROOT

SOURCES = [path for name in ("edgepack", "converters", "runtimes") for path in sorted((ROOT / name).rglob("*.py"))]
LONG = "wide-" * 1000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a\nb", r"'a\nb'"),
        ({"k": [1, None]}, "{'k': [1, None]}"),
        ("\x1b[31m", r"'\x1b[31m'"),
        (os.fsdecode(b"\xff"), r"'\udcff'"),
    ],
)
def test_values_as_python_writes_them(value: object, expected: str) -> None:
    assert shown(value) == expected


def test_long_values_are_cut_with_their_length() -> None:
    assert shown(LONG) == f"'{LONG[:79]}... (5,002 characters)"
    assert shown(list(range(9000)), 10) == "[0, 1, 2, ... (52,890 characters)"
    assert printable(LONG, 5) == "wide-... (5,000 characters)"
    assert shown(10**5000) == "a int that cannot be shown (ValueError)"


def test_bytes_of_a_name_that_is_no_utf8_are_shown_as_bytes() -> None:
    assert printable(os.fsdecode(b"caf\xe9\r\x80")) == r"caf\xe9\x0d\x80"
    assert printable("grün 東 👩") == "grün 東 👩"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (ValueError("a\n  b\x1b"), r"a b\x1b"),
        (KeyError(), "KeyError"),
        (OSError(" \n "), "OSError"),
        ("two\nlines", "two lines"),
        ("", ""),
        (RuntimeError(LONG), f"{LONG[:1000]}... (5,000 characters)"),
    ],
)
def test_what_libraries_say_is_one_line(said: BaseException | str, expected: str) -> None:
    assert one_line(said) == expected


def test_what_is_no_json_object_is_said() -> None:
    for text, message in (
        ('{"a": 1, "a": 2}', "not valid JSON: key 'a' stands there twice"),
        ("[1]", "expected a JSON object, got list"),
        (r'{"a": "\ud800"}', "not valid JSON: a text in it has half of a surrogate pair"),
        ('{"a":' * 10**5, "not valid JSON: nested too deep"),
    ):
        for written in (text, text.encode()):
            with pytest.raises(ValueError, match=f"^{message}"):
                loads_object(written)
    # Transformers takes the last one.
    assert loads_object('{"a": 1, "a": 2}', unique_keys=False) == {"a": 2}


def test_an_error_is_one_line_of_a_bounded_length() -> None:
    error = CheckpointError(f"first\nsecond {LONG}: the way out")
    assert str(error).endswith("wide-: the way out")
    assert str(error).startswith(r"first\x0asecond wide-")
    assert len(str(error)) < MOST_MESSAGE_CHARACTERS + 100


def formatted_as_repr(tree: ast.AST) -> Iterator[int]:
    """Lines with ``{value!r}``, and with `repr` inside an f-string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FormattedValue):
            calls = [call.func for call in ast.walk(node.value) if isinstance(call, ast.Call)]
            if node.conversion == ord("r") or any(isinstance(f, ast.Name) and f.id == "repr" for f in calls):
                yield node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_message_holds_a_value_that_is_not_cut(path: Path) -> None:
    # {value!r} writes out all of it: a config or a header can hold megabytes. shown(value) is for that.
    assert not list(formatted_as_repr(ast.parse(path.read_text("utf-8"))))


def test_that_the_check_above_can_fail() -> None:
    for text in ('f"{value!r}"', 'raise ValueError(f"got {repr(value)}")'):
        assert list(formatted_as_repr(ast.parse(text))) == [1]


def recipe(name: object) -> str:
    return json.dumps({"name": name, "description": "", "components": {}})


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (json.dumps({LONG: 1}), read_profile),
        (json.dumps({"name": [LONG]}), read_profile),
        (json.dumps({LONG: 1}), load_plan),
        (json.dumps({"backend": LONG, "recipe": {LONG: LONG}}), load_plan),
        (json.dumps({"metrics": [{LONG: 1}]}), load_report),
        (recipe({LONG: [LONG]}), load_recipe),
        (json.dumps({"name": "a", "description": "b", "components": {LONG: {"kind": LONG}}}), load_recipe),
        (f'{{"{LONG}": 1, "{LONG}": 2}}', load_recipe),
        (f'"{LONG}" = 1', read_config),
        (f'[thresholds]\n"{LONG}" = 1', read_config),
        (f'[validate]\nrepeat = "{LONG}"', read_config),
        (f"[export]\n{LONG} = [[{LONG}", read_config),
        (json.dumps({"prompt": "a", LONG: 1}), read_goldens),
        (json.dumps({"prompt": [LONG]}), read_goldens),
        (json.dumps({"prompt": "a", "must_match": f"({LONG}"}), read_goldens),
        (json.dumps({"prompt": "a", "tools": [{"name": "f", "parameters": {"type": LONG}}]}), read_goldens),
        (json.dumps([LONG]), lambda path: _config(None, path)),
        (LONG, lambda path: _config(None, path)),
    ],
)
def test_long_values_in_any_file_of_the_user(text: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_text(text)
    with pytest.raises(EdgepackError) as caught:
        read(file)
    said = str(caught.value).replace(str(file), "FILE")
    assert len(said) < 900, said
    assert "\n" not in said


def test_half_a_character_written_as_an_escape_is_refused_where_it_is_read(tmp_path: Path) -> None:
    # Python's JSON takes it, and nothing that writes JSON gives it back.
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        loads_strict(rb'{"name": "\uD83d"}')
    assert loads_strict(rb'{"name": "\ud83d\ude00 \\ud83d"}') == {"name": "😀 \\ud83d"}
    file = tmp_path / "recipe.json"
    file.write_text(recipe("x").replace('"x"', r'"\udc00"'))
    with pytest.raises(EdgepackError, match=r"recipe\.json: not valid JSON: a text in it has half of a surrogate pair"):
        load_recipe(file)
    file.write_text(r'{"messages": [{"role": "user", "content": "\ud800"}]}')
    with pytest.raises(EdgepackError, match=r"line 1: not valid JSON: a text in it has half"):
        read_goldens(file)
