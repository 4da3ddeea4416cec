"""A tokenizer.json in the older, leaner spelling is the same tokenizer, or is left as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from tokenizers import Tokenizer

from edgepack_converters.litert.tokenizer.choice import TEXTS
from edgepack_converters.litert.tokenizer.tokenizer_json import respell
from tests.support.tokenizer_packages import CORPUS, HARD_TEXT, byte_level, gemma_like, llama_like

# Names that JSON escapes, or that look like the file's own marks.
HARD_PAIRS = [
    ('"', "\\"),
    ("\n", "\n"),
    ("[", "]"),
    ('"merges"', ":"),
    ("],", "["),
    ("\u00e9", "\u6771"),
    ("\U0001f469", "\u200d"),
]


def hard_tokenizer(**changed: Any) -> dict[str, Any]:
    """That of `gemma_like` with merges of such names, as a parsed file."""
    data: dict[str, Any] = json.loads(gemma_like().to_str())
    vocab, merges = data["model"]["vocab"], data["model"]["merges"]
    for left, right in HARD_PAIRS:
        for name in (left, right, left + right):
            vocab.setdefault(name, len(vocab))
        merges.append([left, right])
    data["model"].update(changed)
    return data


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("older", [True, False])
def test_the_respelled_file_is_the_same_tokenizer(ascii_only: bool, indent: int | None, older: bool) -> None:
    data = hard_tokenizer()
    pairs = data["model"]["merges"]
    if older:
        data["model"]["merges"] = [" ".join(pair) for pair in pairs]
    content = json.dumps(data, ensure_ascii=ascii_only, indent=indent).encode()
    file = respell(content)
    assert file.span is not None
    same, expected = Tokenizer.from_buffer(file.content), Tokenizer.from_buffer(content)
    assert same.to_str() == expected.to_str()
    for text in (*TEXTS, *CORPUS, HARD_TEXT):
        assert same.encode(text).ids == expected.encode(text).ids
    parsed = file.parsed()
    assert list(file.merged(parsed)) == ["".join(pair) for pair in pairs]
    assert parsed == {**data, "model": {**data["model"], "merges": []}}


@pytest.mark.parametrize("tokenizer", [gemma_like(), llama_like(), byte_level()])
def test_trained_tokenizers_are_respelled(tokenizer: Tokenizer) -> None:
    file = respell(tokenizer.to_str().encode())
    assert file.span is not None and Tokenizer.from_buffer(file.content).to_str() == tokenizer.to_str()


@pytest.mark.parametrize(
    "merges",
    [
        [["a b", "c"]],
        [["a", "b c"]],
        [["a", "b"], ["#version", "s"]],
        ["a b c"],
        ["ab"],
        [["a", "b", "c"]],
        [[1, 2]],
        [],
    ],
)
def test_what_the_older_spelling_cannot_say_stays_as_it_is(merges: list[Any]) -> None:
    content = json.dumps(hard_tokenizer(merges=merges)).encode()
    file = respell(content)
    assert (file.content, file.span) == (content, None)
    assert file.parsed() == json.loads(content)


@pytest.mark.parametrize("name", ["\\u0020", "\\u00e9\\u0020x"])
def test_a_space_that_is_escaped_is_a_space(name: str) -> None:
    content = b'{"model": {"merges": [["a", "%b"]]}}' % name.encode()
    assert respell(content).span is None


@pytest.mark.parametrize("content", [b"", b"[]", b'{"merges": [', b'{"merges": [["a", "b"]', b'{"merges": [["a", "b"'])
def test_files_that_are_none_stay_as_they_are(content: bytes) -> None:
    assert respell(content).content == content and respell(content).span is None


def test_two_lists_of_merges_are_left_alone() -> None:
    content = b'{"x": {"merges": [["a", "b"]]}, "model": {"merges": [["a", "b"]]}}'
    assert respell(content).span is None


def test_the_process_that_converts_loads_little() -> None:
    script = (
        "import sys, edgepack_converters.litert.tokenizer.process\n"
        "heavy = ('numpy', 'pydantic', 'ai_edge_litert', 'litert_lm', 'flatbuffers', 'litert_lm_builder')\n"
        "print(*(name for name in heavy if name in sys.modules))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
