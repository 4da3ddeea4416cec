"""The texts of the built-in calibration as files: their form, their breadth, and that no judging text is in them."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edgepack

ROOT = Path(edgepack.__file__).parent
KINDS = {"prose", "code", "chat", "document"}
# Their sentences are not split into words by spaces.
UNSPACED = {"ja", "th", "zh"}
WORDS, CHARACTERS = 8, 24


def read(folder: Path) -> list[Any]:
    return [entry for path in sorted(folder.glob("*.json")) for entry in json.loads(path.read_text("utf-8"))]


CALIBRATION = read(ROOT / "calibration" / "texts")
JUDGING = read(ROOT / "validation" / "quality" / "texts")


def passages(entry: dict[str, Any]) -> list[str]:
    """What a model reads of an entry."""
    return [entry["text"]] if "text" in entry else [message["content"] for message in entry["messages"]]


def words(text: str) -> list[str]:
    """Lower-case words without punctuation. Marks stay: the vowels of Indian scripts are marks."""
    kept = (" " if unicodedata.category(character)[0] in "CPSZ" else character for character in text.casefold())
    return "".join(kept).split()


def word_windows(text: str) -> Iterator[str]:
    found = words(text)
    return (" ".join(found[i : i + WORDS]) for i in range(len(found) - WORDS + 1))


def character_windows(text: str) -> Iterator[str]:
    joined = "".join(words(text))
    windows = (joined[i : i + CHARACTERS] for i in range(len(joined) - CHARACTERS + 1))
    # The keywords of a JSON schema stand in every description of a tool.
    return (window for window in windows if not window.isascii())


def shared(entry: dict[str, Any], judging: list[Any]) -> set[str]:
    """Runs of 8 words, or of 24 characters in a language without spaces, that an entry has in common with others."""
    windows = character_windows if entry["language"] in UNSPACED else word_windows
    theirs = {window for other in judging for passage in passages(other) for window in windows(passage)}
    return theirs & {window for passage in passages(entry) for window in windows(passage)}


def script(entry: dict[str, Any]) -> str:
    """The script that most letters of an entry are in, by the first word of their Unicode names."""
    letters = (character for passage in passages(entry) for character in passage if character.isalpha())
    return Counter(unicodedata.name(letter).split()[0] for letter in letters).most_common(1)[0][0]


@pytest.mark.parametrize("entry", CALIBRATION, ids=lambda entry: entry["name"])
def test_entry_has_the_form_that_the_loader_reads(entry: dict[str, Any]) -> None:
    content = {"messages"} if entry["kind"] == "chat" else {"text"}
    assert set(entry) == {"name", "language", "kind"} | content
    assert entry["kind"] in KINDS and len(entry["language"]) == 2
    for passage in passages(entry):
        assert passage == passage.strip() and len(passage) >= 2
        assert passage == unicodedata.normalize("NFC", passage)


@pytest.mark.parametrize(
    "entry", [entry for entry in CALIBRATION if entry["kind"] == "chat"], ids=lambda entry: entry["name"]
)
def test_turns_of_a_chat_alternate_as_templates_demand(entry: dict[str, Any]) -> None:
    assert all(set(message) == {"role", "content"} for message in entry["messages"])
    roles = [message["role"] for message in entry["messages"]]
    turns = roles[1:] if roles[0] == "system" else roles
    assert turns == ["user", "assistant"] * (len(turns) // 2) and turns


def test_names_are_unique_and_plain() -> None:
    names = [entry["name"] for entry in CALIBRATION]
    assert len(set(names)) == len(names)
    assert all(name.isascii() and name.isprintable() for name in names)


def test_texts_are_broad() -> None:
    languages = {entry["language"] for entry in CALIBRATION}
    scripts = {script(entry) for entry in CALIBRATION}
    long = [entry for entry in CALIBRATION if entry["kind"] == "document" and len(entry["text"]) >= 5000]
    assert {entry["kind"] for entry in CALIBRATION} == KINDS
    assert len(languages) >= 20 and len(scripts) >= 12 and len(long) >= 3


def test_no_paragraph_comes_twice() -> None:
    paragraphs = Counter(
        " ".join(paragraph.split())
        for entry in CALIBRATION
        for passage in passages(entry)
        for paragraph in passage.split("\n\n")
        if len(paragraph) >= CHARACTERS
    )
    assert [paragraph for paragraph, count in paragraphs.items() if count > 1] == []


@pytest.mark.parametrize("entry", CALIBRATION, ids=lambda entry: entry["name"])
def test_no_sentence_is_in_the_judging_texts(entry: dict[str, Any]) -> None:
    assert shared(entry, JUDGING) == set()


def test_a_copied_part_is_found_in_every_language() -> None:
    missed = []
    for entry in CALIBRATION:
        longest = max(passages(entry), key=len)
        part = longest[len(longest) // 4 : -len(longest) // 4]
        if not shared(entry, [{"text": f"Judge this: {part}"}]):
            missed.append(entry["name"])
    assert missed == []
