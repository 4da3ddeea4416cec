"""How texts become sequences: start tokens, even distances, a share of every built-in text, chats in turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgepack.calibration.sequences
from edgepack.calibration.sequences import Sequences, read_sequences
from edgepack.calibration.texts import CalibrationText, builtin_texts
from edgepack.checkpoint.folder import open_checkpoint
from edgepack.model.read import read_model
from tests.calibration.small import SENTENCE, expected_ids, letters
from tests.support.tokenizer_packages import BOS, write_package


def sequences(
    checkpoint: Path, text: Any = "builtin", tokens: int | None = None, length: int | None = None
) -> Sequences:
    with open_checkpoint(checkpoint) as source:
        return read_sequences(source, read_model(source), text, tokens, length)


def spoken(ids: Any) -> str:
    return "".join(letters().id_to_token(i) for i in np.asarray(ids).tolist())


def test_a_long_text_is_read_at_even_distances(small: Path) -> None:
    found = sequences(small, small.parent / "text.txt", 99, 24)  # three tokens are no sequence
    np.testing.assert_array_equal(found.ids, expected_ids(4))
    assert found.text == "text.txt" and spoken(found.ids[-1]) == "<bos>" + (SENTENCE * 4)[-23:]


def test_all_of_a_short_text_is_read(small: Path) -> None:
    found = sequences(small, small.parent / "text.txt", 1_000_000, 24)
    assert len(found.ids) == len(SENTENCE * 4) // 23
    # Sequences of no more than the context of the model.
    assert sequences(small, small.parent / "text.txt").ids.shape == (1, 128)


def test_no_start_token_where_texts_have_none(small: Path) -> None:
    tokenizer = json.loads((small / "tokenizer.json").read_text("utf-8"))
    (small / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}), "utf-8")
    found = sequences(small, small.parent / "text.txt", 48, 24)
    assert BOS not in found.ids and spoken(found.ids[0]) == SENTENCE[:24]


def test_a_text_of_many_lines_is_cut_where_lines_end(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = "\n".join(f"{i} {SENTENCE}" for i in range(9)) + "x" * 300
    (small.parent / "text.txt").write_text(whole, "utf-8")
    monkeypatch.setattr(edgepack.calibration.sequences, "_ENCODED_CHARACTERS", 100)
    pieces = list(edgepack.calibration.sequences._pieces(whole))
    assert "".join(pieces) == whole and max(map(len, pieces)) == 100
    assert [piece[-1] for piece in pieces[:9]] == ["\n"] * 8 + ["x"]
    assert spoken(sequences(small, small.parent / "text.txt", 128, 128).ids[0]) == f"<bos>{whole[:127]}"


def of(name: str, kind: str = "prose", **content: Any) -> CalibrationText:
    return CalibrationText.model_validate({"name": name, "language": "en", "kind": kind, **content})


def built_in(monkeypatch: pytest.MonkeyPatch, *texts: CalibrationText) -> None:
    monkeypatch.setattr(edgepack.calibration.sequences, "builtin_texts", lambda: (texts, "sha"))


def test_every_text_has_a_share_of_few_tokens(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        of("a", text="a" * 100),
        of("b", text="b" * 3),
        of("c", text="c" * 100),
        of("d", "document", text="d" * 99),
    ]
    built_in(monkeypatch, *texts)
    said = "".join(spoken(row[1:]) for row in sequences(small, tokens=72, length=24).ids)
    # 69 letters: three of the short one, four shares of a document and one of each of the others, 11 letters a share.
    assert {letter: said.count(letter) for letter in "abcd"} == {"a": 11, "b": 3, "c": 11, "d": 44}
    everything = sequences(small, tokens=10_000, length=24).ids
    assert everything.size == 24 * (302 // 23)


TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_chats_are_rendered_as_the_checkpoint_knows_them(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built_in(monkeypatch, of("chat", "chat", messages=TURNS * 2))
    expected = "<bos>" + "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n" * 2
    assert spoken(sequences(small, tokens=40, length=40).ids[0]) in expected
    write_package(small, letters(), chat_template="{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert spoken(sequences(small, tokens=20, length=20).ids[0]) == "<bos>[Hi][Hello][Hi][Hello]"[:24]
    write_package(small, letters(), chat_template="{{ raise_exception('no chats') }}")
    assert spoken(sequences(small, tokens=40, length=40).ids[0]) in expected
    write_package(small, letters(), chat_template=None)
    assert spoken(sequences(small, tokens=40, length=40).ids[0]) in expected


def test_the_built_in_texts() -> None:
    texts, digest = builtin_texts()
    assert len(digest) == 64 and len({text.name for text in texts}) == len(texts)
    assert {text.kind for text in texts} >= {"prose", "chat"}
    with pytest.raises(ValueError, match="expected either text or messages"):
        of("both", text="a", messages=TURNS)
