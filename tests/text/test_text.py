"""Tokenizer, chat template, and streaming, over tokenizers trained here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.errors import EdgepackError, PackageError
from edgepack.text.stop_tokens import read_eos_token_ids
from edgepack_runtimes import TextCodec
from tests.support.paths import ROOT
from tests.support.tokenizer_packages import (
    BOS,
    CHATS,
    END_OF_TURN,
    EOS,
    GEMMA_TEMPLATE,
    HARD_TEXT,
    USER,
    byte_level,
    gemma_like,
    llama_like,
    write_package,
)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_package(tmp_path)


@pytest.fixture(params=[gemma_like, llama_like, byte_level])
def codec(request: pytest.FixtureRequest, tmp_path: Path) -> TextCodec:
    return TextCodec(write_package(tmp_path, request.param()))


# --- encode and decode


def test_encode_adds_exactly_one_bos(package: Path) -> None:
    codec = TextCodec(package)
    plain = codec.encode("the fox", add_bos=False)
    assert BOS not in plain
    assert plain == gemma_like().encode("the fox", add_special_tokens=False).ids
    assert codec.encode("the fox") == gemma_like().encode("the fox").ids == [BOS, *plain]
    assert codec.encode("<bos>the fox") == [BOS, *plain]
    assert codec.encode("<bos><bos>the fox") == [BOS, BOS, *plain]  # nobody's but the writer's
    assert codec.encode("") == [BOS]
    chat = codec.encode(codec.render_chat([USER]))
    assert chat.count(BOS) == 1 and chat[0] == BOS


def test_saved_padding_and_truncation_are_switched_off(tmp_path: Path) -> None:
    tokenizer = gemma_like()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    ids = TextCodec(write_package(tmp_path, tokenizer)).encode(HARD_TEXT)
    assert ids == gemma_like().encode(HARD_TEXT).ids


def test_decode_leaves_out_special_and_unknown_ids(codec: TextCodec) -> None:
    ids = codec.encode(HARD_TEXT)
    assert codec.decode([*ids, END_OF_TURN, codec.vocab_size + 70, EOS]) == HARD_TEXT
    assert codec.decode(np.array(ids)) == HARD_TEXT


def test_text_that_is_no_unicode_is_refused(package: Path) -> None:
    with pytest.raises(EdgepackError, match=r"not valid Unicode \(character 3\)"):
        TextCodec(package).encode("abc\udcff")


# --- streaming


def token_bytes(codec: TextCodec, token_id: int) -> int:
    """How many bytes of text a token stands for, from its spelling in the vocabulary."""
    vocab = json.loads((codec.folder / "tokenizer.json").read_text())["model"]["vocab"]
    token = next(name for name, number in vocab.items() if number == token_id)
    if token.startswith("<0x"):
        return 1
    return len(token.replace("▁", " ").encode()) if "<0x00>" in vocab else len(token)


def test_streamed_pieces_join_to_the_text_and_come_early(codec: TextCodec) -> None:
    ids = codec.encode(HARD_TEXT, add_bos=False)
    stream = codec.stream()
    pieces = [stream.push(token_id) for token_id in ids]
    assert stream.flush() == ""
    assert "".join(pieces) == codec.decode(ids) == HARD_TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    # Nothing is kept longer than a character needs: after every token, all whole characters have been shown.
    data, position = HARD_TEXT.encode(), 0
    for count, token_id in enumerate(ids, 1):
        position += token_bytes(codec, token_id)
        assert "".join(pieces[:count]) == data[:position].decode(errors="ignore")
    assert position == len(data)


def test_stream_keeps_the_space_between_prompt_and_answer(tmp_path: Path) -> None:
    codec = TextCodec(write_package(tmp_path, llama_like()))
    prompt, answer = codec.encode("the quick"), codec.encode("▁brown fox", add_bos=False)
    assert codec.decode(answer) == "brown fox"  # as the start of a text
    assert "".join(map(codec.stream(prompt).push, answer)) == " brown fox"
    assert "".join(map(codec.stream([BOS]).push, answer)) == "brown fox"
    after_emoji = codec.stream(codec.encode("the 👩‍🚀"))
    assert "".join(map(after_emoji.push, answer)) == " brown fox"


def test_stream_survives_stray_and_unfinished_bytes(codec: TextCodec) -> None:
    """Stray bytes, then a character that may be cut: the pieces join to what the whole decodes to."""
    rng = np.random.default_rng(4)
    emoji = codec.encode("👩", add_bos=False)
    for _ in range(40):
        noise = [codec.encode("é", add_bos=False)[-1]] * int(rng.integers(1, 6))
        ids = [*noise, *emoji[: int(rng.integers(1, len(emoji) + 1))], *codec.encode("the", add_bos=False)]
        stream = codec.stream()
        text = "".join(stream.push(token_id) for token_id in ids) + stream.flush()
        assert text == codec.decode(ids)
    stream = codec.stream()
    text = "".join(stream.push(token_id) for token_id in emoji[:-1])
    assert text == "" and stream.flush() == codec.decode(emoji[:-1]) != ""


def test_a_stray_byte_after_a_shown_character_does_not_show_it_again(package: Path) -> None:
    """Byte fallback takes back the whole run of bytes; what was shown stays and only the stray byte is added."""
    codec = TextCodec(package)
    euro = codec.encode("€", add_bos=False)
    stream = codec.stream()
    text = "".join(stream.push(token_id) for token_id in [*euro, euro[-1], *codec.encode("the", add_bos=False)])
    assert text + stream.flush() == "€\ufffdthe"


def test_endless_noise_is_shown_and_stays_cheap(codec: TextCodec) -> None:
    stray = codec.encode("é", add_bos=False)[-1]
    stream = codec.stream()
    shown = "".join(stream.push(stray) for _ in range(2000))
    assert len(shown) >= 1990 and set(shown) == {"\ufffd"}


@pytest.mark.parametrize("stop", ["fox", "x\n\tj", "n f", "🚀"])
def test_stop_string_across_tokens_is_cut_off_and_never_shown(codec: TextCodec, stop: str) -> None:
    text = "the brown fox\n\tjumps 👩‍🚀 the"
    stream = codec.stream(stop_strings=[stop, "never"])
    shown = "".join(stream.push(token_id) for token_id in codec.encode(text, add_bos=False)) + stream.flush()
    assert stream.stopped and shown == text[: text.index(stop)]


def test_beginning_of_a_stop_string_is_shown_in_the_end(codec: TextCodec) -> None:
    stream = codec.stream(stop_strings=["fox!"])
    pieces = [stream.push(token_id) for token_id in codec.encode("the fox fox", add_bos=False)]
    assert "".join(pieces) == "the fox " and stream.flush() == "fox" and not stream.stopped
    with pytest.raises(EdgepackError, match="expected texts that are not empty"):
        codec.stream(stop_strings=[""])


# --- chat


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("chat", CHATS)
def test_gemma_template_renders_as_in_transformers(package: Path, chat: list[Any], add_generation_prompt: bool) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast.from_pretrained(str(package))
    expected = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=add_generation_prompt)
    codec = TextCodec(package)
    assert codec.render_chat(chat, add_generation_prompt) == expected
    assert expected.startswith("<bos><start_of_turn>user\n")
    ids = theirs.apply_chat_template(chat, add_generation_prompt=add_generation_prompt, return_dict=False)
    assert codec.encode(expected) == ids


def test_gemma_template_folds_the_system_message_into_the_first_turn(package: Path) -> None:
    assert TextCodec(package).render_chat(CHATS[1]) == (
        '<bos><start_of_turn>user\nBe brief.\n\nHi <b> & "you"<end_of_turn>\n<start_of_turn>model\n'
    )


TOOL_TEMPLATE = """
{% for tool in tools %}
    {{ tool | tojson(indent=2) }}
    {% if loop.index == 2 %}{% break %}{% endif %}
{% endfor %}
{% set ns = namespace(n=0) %}
{% for message in messages %}
    {% set ns.n = ns.n + 1 %}
    {% generation %}{{ message | tojson }}{{ ns.n }}{% endgeneration %}
{% endfor %}
{{ strftime_now('%Y') | length }}{{ eos_token }}{{ documents is none }}
"""


def test_tools_and_extensions_render_as_in_transformers(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    templates = [{"name": "default", "template": GEMMA_TEMPLATE}, {"name": "tool_use", "template": TOOL_TEMPLATE}]
    codec = TextCodec(
        write_package(tmp_path, chat_template=templates, eos_token={"__type": "AddedToken", "content": "<eos>"})
    )
    tools: list[Any] = [{"type": "function", "function": {"name": f"größe<{i}>"}} for i in range(4)]
    theirs = PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    expected = theirs.apply_chat_template([USER], chat_template=TOOL_TEMPLATE, tools=tools, tokenize=False)
    assert codec.render_chat([USER], tools=tools) == expected
    assert "größe<1>" in expected and "größe<2>" not in expected
    assert codec.render_chat([USER]).startswith("<bos><start_of_turn>user")


def test_template_files_come_before_the_config(package: Path) -> None:
    (package / "chat_template.json").write_text('{"chat_template": "from json"}')
    assert TextCodec(package).render_chat([USER]).startswith("<bos>")
    write_package(package, chat_template=None)
    assert TextCodec(package).render_chat([USER]) == "from json"
    (package / "chat_template.jinja").write_text("{{ messages[0].content | trim }} ü", encoding="utf-8")
    assert TextCodec(package).render_chat([USER]) == 'Hi <b> & "you" ü'


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (GEMMA_TEMPLATE, "refused the messages: Conversation roles must alternate user/assistant/user/assistant/..."),
        ("{% if %}", "not valid Jinja"),
        ("{{ messages[0].content + 1 }}", "refused the messages"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refused the messages: access to attribute"),
        ("{{ messages.append(1) }}", "refused the messages"),
        (None, "no chat template"),
    ],
)
def test_template_trouble_is_one_line(tmp_path: Path, template: str | None, message: str) -> None:
    codec = TextCodec(write_package(tmp_path, chat_template=template))
    with pytest.raises(EdgepackError) as caught:
        codec.render_chat([USER, USER])
    assert message in str(caught.value) and str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_messages_must_be_plain_data(package: Path) -> None:
    with pytest.raises(EdgepackError, match="must be JSON data"):
        TextCodec(package).render_chat([{"role": "user", "content": object()}])


# --- stop tokens, broken and missing files


def test_eos_ids_come_from_every_place(package: Path) -> None:
    assert read_eos_token_ids(package) == frozenset()
    assert TextCodec(package).eos_token_ids == {EOS, END_OF_TURN}
    (package / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    (package / "config.json").write_text('{"eos_token_id": null, "text_config": {"eos_token_id": 9}}')
    assert read_eos_token_ids(package) == {7, 8, 9}
    assert TextCodec(package).eos_token_ids == {EOS, END_OF_TURN, 7, 8, 9}
    (package / "generation_config.json").write_text('{"eos_token_id": "1"}')
    with pytest.raises(PackageError, match=r"generation_config.json: eos_token_id is '1'"):
        read_eos_token_ids(package)


def test_missing_tokenizer_says_what_still_works(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"this package has no tokenizer .* pass token ids instead"):
        TextCodec(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_broken_files_are_named(package: Path, name: str, content: str) -> None:
    (package / name).write_text(content)
    with pytest.raises(PackageError, match=name) as caught:
        TextCodec(package)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("library", ["tokenizers", "jinja2"])
def test_missing_library_says_what_to_install(package: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(EdgepackError, match=rf"{library} is not installed: pip install -c constraints.txt '\.\[run\]'"):
        TextCodec(package).render_chat([USER])


def test_import_loads_no_tokenizer_and_no_framework() -> None:
    heavy = ("tokenizers", "jinja2", "torch", "transformers", "onnxruntime", "onnx")
    code = f"import sys, edgepack_runtimes; print([m for m in {heavy!r} if m in sys.modules])"
    roots = [str(ROOT / folder) for folder in (".", "runtimes")]
    code = f"import sys; sys.path[:0] = {roots!r}; {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
