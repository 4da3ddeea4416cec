"""The start token: one answer from all the files that speak about it, the one of Transformers, in every runtime."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import edgepack
from edgepack.checkpoint.folder import open_checkpoint
from edgepack.errors import CheckpointError, PackageError
from edgepack.model.families import read_spec
from edgepack.model.read import with_start_token
from edgepack.text import tokenizer_file
from edgepack.text.start_token import StartToken, read_start_token
from edgepack.text.templates import ChatTemplates
from edgepack.text.tokenizer_file import read_tokenizer_file
from edgepack_runtimes import TextCodec
from tests.support import tiny
from tests.support.paths import DEMO
from tests.support.tokenizer_packages import BOS, USER, gemma_like, write_package

TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
}
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
AT_END = {**TEMPLATE, "single": TEMPLATE["single"][::-1]}


def with_post_processor(processor: Any) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(json.loads(gemma_like().to_str()) | {"post_processor": processor}))


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


# --- tokenizer.json


@pytest.mark.parametrize(
    "processor",
    [
        None,
        TEMPLATE,
        AT_END,
        BYTES,
        {"type": "Sequence", "processors": [BYTES, TEMPLATE]},
        {"type": "Sequence", "processors": [TEMPLATE, AT_END]},
        {"type": "RobertaProcessing", "sep": ["<eos>", 1], "cls": ["<bos>", 2], "trim_offsets": True,
         "add_prefix_space": False},
        {"type": "BertProcessing", "sep": ["<eos>", 1], "cls": ["<bos>", 2]},
    ],
)  # fmt: skip
def test_what_stands_before_a_text_is_what_the_library_puts_there(tmp_path: Path, processor: Any) -> None:
    tokenizer = with_post_processor(processor)
    write_package(tmp_path, tokenizer)
    with_tokens, without = (tokenizer.encode("fox", add_special_tokens=added).ids for added in (True, False))
    found = read_tokenizer_file(tmp_path / "tokenizer.json")
    assert found is not None and list(found.prefix) == with_tokens[: with_tokens.index(without[0])]
    assert found.token_id("<bos>") == BOS and found.text_of(BOS) == "<bos>"


@pytest.mark.parametrize("head_bytes", [7, 300, 1900, 10**6])
@pytest.mark.parametrize("order", [1, -1])
def test_tokens_are_found_wherever_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head_bytes: int, order: int
) -> None:
    monkeypatch.setattr(tokenizer_file, "HEAD_BYTES", head_bytes)
    data = json.loads(gemma_like().to_str())
    data["model"]["vocab"]['"post_processor": {"'] = 999  # a token that looks like what is looked for
    text = json.dumps(dict(list(data.items())[::order]), indent=1, ensure_ascii=False)
    (tmp_path / "tokenizer.json").write_text(text)
    found = read_tokenizer_file(tmp_path / "tokenizer.json")
    assert found is not None and found.prefix == (BOS,) and found.added["<end_of_turn>"] == 5
    assert found.token_id("the") == gemma_like().token_to_id("the")
    assert found.token_id("never") is None
    assert read_tokenizer_file(tmp_path / "none.json") is None


def test_a_list_of_pieces_is_a_vocabulary_too(tmp_path: Path) -> None:
    write(tmp_path, tokenizer={"added_tokens": [], "model": {"type": "Unigram", "vocab": [["<a>", 0.0], ["<s>", -1]]}})
    write(tmp_path, tokenizer_config={"bos_token": "<s>"})
    assert read_start_token(tmp_path) == StartToken(1, "<s>", before_texts=False)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"added_tokens": [', '{"added_tokens": [{"id": 1}]}', '{"post_processor": [1]}', "{" * 9000]
)
def test_a_tokenizer_that_cannot_be_read_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(PackageError, match=r"tokenizer\.json: .*fetch it again") as caught:
        read_start_token(tmp_path)
    assert "\n" not in str(caught.value)


# --- all files together


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "GemmaTokenizer", "GemmaTokenizerFast", None])
@pytest.mark.parametrize("processor", [TEMPLATE, None])
@pytest.mark.parametrize("bos", ["<bos>", "<start_of_turn>", None, "absent"])
def test_the_tokenizer_says_what_it_says_in_transformers(
    tmp_path: Path, name: str | None, processor: Any, bos: str | None
) -> None:
    from transformers import AutoTokenizer

    write_package(tmp_path, with_post_processor(processor), bos_token=None, tokenizer_class=name)
    for number, flag in enumerate((True, False, "absent")):
        stated = {"bos_token": bos, "add_bos_token": flag}
        written = json.loads((tmp_path / "tokenizer_config.json").read_text())
        written = {k: v for k, v in written.items() if k not in stated}
        write(tmp_path, tokenizer_config=written | {k: v for k, v in stated.items() if v != "absent"})
        write(tmp_path, config={"model_type": ("gemma3n_text", "gemma3", "gemma3_text")[number], "bos_token_id": 3})
        theirs, ours = AutoTokenizer.from_pretrained(tmp_path), read_start_token(tmp_path)
        assert ours.token_id == (theirs.bos_token_id if theirs.bos_token is not None else 3)
        assert ours.before_texts == (len(theirs("the").input_ids) > len(theirs.tokenize("the")))
        other = ours.before_texts and ours.token_id != BOS
        assert (ours.doubt is None) == (not other and flag in ("absent", ours.before_texts))
        plain = theirs.convert_tokens_to_ids(theirs.tokenize("the fox"))
        assert TextCodec(tmp_path).encode("the fox") == with_one_start(plain, ours)
        if ours.token_id == BOS:
            assert with_one_start(plain, ours) == theirs("the fox").input_ids
        chat = theirs.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
        assert TextCodec(tmp_path).encode(ChatTemplates(tmp_path).render([USER])) == with_one_start(chat, ours)


def with_one_start(ids: list[int], start: StartToken) -> list[int]:
    """Transformers' `ids`, and before them the start token where texts have one and they do not begin with it."""
    absent = start.before_texts and start.token_id is not None and ids[:1] != [start.token_id]
    return [start.token_id, *ids] if absent and start.token_id is not None else ids


MISSING: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("generation", "outer", "inner", "expected"),
    [
        (MISSING, MISSING, None, 2),
        (MISSING, {"bos_token_id": 7}, None, 7),
        (MISSING, {"bos_token_id": None}, None, None),
        (MISSING, {"bos_token_id": [9, 7]}, None, 9),
        ({"bos_token_id": 6}, {"bos_token_id": 7}, None, 6),
        ({"bos_token_id": None}, {"bos_token_id": 7}, None, 7),
        (MISSING, MISSING, MISSING, 2),
        (MISSING, MISSING, {"bos_token_id": 5}, 5),
        (MISSING, {"bos_token_id": None}, {"bos_token_id": 5}, 5),
        (MISSING, {"bos_token_id": 8}, {"bos_token_id": 5}, 8),
        (MISSING, {"bos_token_id": None}, MISSING, 2),
        (MISSING, MISSING, {"bos_token_id": None}, None),
    ],
)
def test_configs_count_where_the_tokenizer_says_nothing(
    tmp_path: Path, generation: Any, outer: Any, inner: Any, expected: int | None
) -> None:
    config = outer if inner is None else {**outer, "text_config": inner}
    write(tmp_path, generation_config=generation, config=config)
    assert read_start_token(tmp_path) == read_start_token(tmp_path, config) == StartToken(expected)
    write_package(tmp_path, with_post_processor(None), bos_token=None, tokenizer_class="PreTrainedTokenizerFast")
    found = read_start_token(tmp_path)
    assert (found.token_id, found.before_texts) == (expected, False)
    assert found.text == {2: "<bos>", 5: "<end_of_turn>"}.get(expected or 0, "")


@pytest.mark.parametrize("value", ["2", True, -1, [2, None], {"id": 2}])
def test_an_id_that_is_none_is_refused(tmp_path: Path, value: Any) -> None:
    write(tmp_path, generation_config={"bos_token_id": value})
    with pytest.raises(PackageError, match=r"generation_config\.json: bos_token_id is .*: expected a token id"):
        read_start_token(tmp_path)


def test_a_start_token_that_tokenizer_or_model_do_not_have_is_refused(tmp_path: Path) -> None:
    tiny.save("gemma3", tmp_path)
    write_package(tmp_path, bos_token="<start>")
    with pytest.raises(PackageError, match=r"tokenizer\.json has no token '<start>', which tokenizer_config\.json"):
        edgepack.export(tmp_path, out=tmp_path / "out")
    config = json.loads((tmp_path / "config.json").read_text())
    write(tmp_path, config=config | {"bos_token_id": config["vocab_size"]}, tokenizer_config={"bos_token": None})
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    with open_checkpoint(tmp_path) as checkpoint:
        spec = read_spec(checkpoint)
        for generation in (False, True):
            (tmp_path / "tokenizer.json").unlink(missing_ok=True)
            if generation:
                write(tmp_path, generation_config={"bos_token_id": 10**9})
            key = r"1000000000 \(generation_config" if generation else rf"{spec.vocab_size} \(config"
            expected = rf"token is {key}\.json: bos_token_id\): expected less than vocab_size={spec.vocab_size};"
            with pytest.raises(CheckpointError, match=expected):
                with_start_token(spec, checkpoint)
        write_package(tmp_path, bos_token="<end_of_turn>")
        small = spec.model_copy(update={"vocab_size": 3})
        with pytest.raises(
            CheckpointError, match=r"\(tokenizer\.json: '<end_of_turn>'\): expected less than vocab_size=3;"
        ):
            with_start_token(small, checkpoint)


@pytest.mark.parametrize("token_id", [2176, 2**31, 2**32 - 1, 2**40])
@pytest.mark.parametrize("to", ["onnx", "litert"])
def test_a_stop_token_beyond_the_vocabulary_is_refused(token_id: int, to: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO, tmp_path / "checkpoint"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, token_id]}))
    with pytest.raises(CheckpointError, match=rf"the stop token .* has the id {token_id}: expected less than vocab"):
        edgepack.export(folder, to=to, out=tmp_path / "out", context=64, threads=1)
    assert not (tmp_path / "out").exists()
