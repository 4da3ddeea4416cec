"""T2 for LiteRT: a bundle's tokenizer is a SentencePiece model wherever that gives the ids of tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import litert_lm
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import AddedToken, Tokenizer

import edgepack
from edgepack.errors import CheckpointError
from edgepack_converters.litert.container import Kind
from edgepack_converters.litert.tokenizer import process as tokenizer_process
from edgepack_converters.litert.tokenizer.choice import TEXTS, Choice, choose, convert, difference
from edgepack_converters.litert.tokenizer.tokenizer_json import respell
from tests.runtimes.test_litert_lm import save, sections
from tests.support.tokenizer_packages import BOS, CORPUS, EOS, HARD_TEXT, byte_level, gemma_like, llama_like

Type = proto.ModelProto.SentencePiece
CHAT = "<start_of_turn>user\nGrüße, 東京 👩‍🚀<end_of_turn>\n<start_of_turn>model\n"


def as_bytes(tokenizer: Tokenizer) -> bytes:
    return str(tokenizer.to_str()).encode()


def converted(tokenizer: Tokenizer) -> bytes:
    model, reason = convert(respell(as_bytes(tokenizer)))
    assert model is not None and reason is None
    return model


def edited(model: bytes, edit: Callable[[Any], object]) -> bytes:
    result = proto.ModelProto.FromString(model)
    edit(result)
    return bytes(result.SerializeToString())


def patched(**parts: Any) -> bytes:
    """The tokenizer.json of `gemma_like` with other values; those of the model have a name with ``model_``."""
    data = json.loads(gemma_like().to_str())
    for name, value in parts.items():
        place = data["model"] if name.startswith("model_") else data
        place[name.removeprefix("model_")] = value
    return json.dumps(data).encode()


def test_a_converted_model_has_the_same_ids() -> None:
    tokenizer = gemma_like()
    processor = sentencepiece.SentencePieceProcessor(model_proto=converted(tokenizer))
    for text in (*TEXTS, *CORPUS, HARD_TEXT, CHAT):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert processor.encode(text) == ids
        if "▁" not in text:
            assert processor.decode(ids) == text
    assert processor.get_piece_size() == tokenizer.get_vocab_size()
    assert (processor.pad_id(), processor.eos_id(), processor.bos_id(), processor.unk_id()) == (0, EOS, BOS, 3)


def test_every_piece_has_its_type() -> None:
    tokenizer = gemma_like()
    tokenizer.add_special_tokens([AddedToken("<image>", normalized=False)])
    data = json.loads(tokenizer.to_str())
    size = len(data["model"]["vocab"]) + 1
    # As where a checkpoint keeps ids free.
    data["added_tokens"][-1]["id"] = data["model"]["vocab"]["<image>"] = size + 2
    data["model"]["vocab"]["zzz"] = size + 3  # no merge makes it, so no text has it
    model, _ = convert(respell(json.dumps(data).encode()))
    pieces = proto.ModelProto.FromString(model).pieces
    types = {piece.piece: piece.type for piece in pieces}
    assert [types[name] for name in ("<pad>", "<eos>", "<bos>")] == [Type.CONTROL] * 3
    assert types["<unk>"] == Type.UNKNOWN and types["<0x41>"] == Type.BYTE and types["▁the▁"] == Type.NORMAL
    assert types["<end_of_turn>"] == types["<image>"] == Type.USER_DEFINED
    assert pieces[size + 2].piece == "<image>" and len(pieces) == size + 4
    assert {piece.type for piece in pieces[size - 1 : size + 2]} == {types["zzz"]} == {Type.UNUSED}
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    expected = Tokenizer.from_str(json.dumps(data))
    assert processor.encode("a<image> zzz") == expected.encode("a<image> zzz", add_special_tokens=False).ids


def test_an_end_of_turn_that_is_the_end_token_is_still_found_in_chats() -> None:
    # What a tokenizer_config.json calls its eos_token decides nothing.
    processor = sentencepiece.SentencePieceProcessor(model_proto=converted(gemma_like()))
    assert processor.encode("<end_of_turn>") == [5]


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (as_bytes(byte_level()), "no BPE with byte_fallback"),
        (as_bytes(llama_like()), "decoder is not"),
        (patched(normalizer=None), "normalizer"),
        (patched(pre_tokenizer={"type": "Digits", "individual_digits": True}), "pre_tokenizer splits"),
        (patched(model_dropout=0.1), "dropout 0.1"),
        (patched(model_vocab={"a": 0}), "vocabulary has not all"),
        (patched(added_tokens=[{"id": 5, "content": "<a b>"}]), "'<a b>' contains a space"),
        (patched(added_tokens=[{"id": 5, "content": "<a>", "lstrip": True}]), "takes in its surroundings"),
        (patched(added_tokens=[{"id": 10**9, "content": "<a>"}]), "1000000001 ids for"),
        (b"[]", "not known"),
    ],
)
def test_others_are_kept_as_they_are(tokenizer: bytes, reason: str) -> None:
    choice = choose(respell(tokenizer))
    assert choice.model is None
    assert choice.reason is not None and reason in choice.reason


def test_a_conversion_with_other_ids_is_not_used() -> None:
    # From "us" and "er" no merge leads to "user", which SentencePiece makes of any two parts.
    model = json.loads(gemma_like().to_str())["model"]
    vocab = {**model["vocab"], "us": len(model["vocab"])}
    choice = choose(respell(patched(model_vocab=vocab, model_merges=[["u", "s"], *model["merges"]])))
    assert choice.model is None
    assert choice.reason is not None and "a SentencePiece model of it has" in choice.reason


def test_an_agreeing_model_is_used_as_it_is() -> None:
    tokenizer = as_bytes(gemma_like())
    model = edited(converted(gemma_like()), lambda m: setattr(m.trainer_spec, "model_prefix", "official"))
    assert choose(respell(tokenizer), model) == Choice(model)
    assert model != converted(gemma_like())


def swap(model: Any) -> None:
    """Exchange two tokens, as a checkpoint with the tokenizer.model of another one would."""
    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    first, second = model.pieces[ids["jump"]], model.pieces[ids["laz"]]
    first.piece, second.piece = second.piece, first.piece


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (swap, "tokenizer.model has "),
        (lambda model: model.pieces.pop(), "cannot be read"),  # the last byte
        (lambda model: setattr(model.normalizer_spec, "add_dummy_prefix", True), "tokenizer.model has "),
        (lambda model: setattr(model.normalizer_spec, "remove_extra_whitespaces", True), "tokenizer.model has "),
        (lambda model: setattr(model.pieces[5], "type", Type.CONTROL), "<end_of_turn>"),
    ],
)
def test_a_model_that_disagrees_is_not_used(edit: Callable[[Any], object], reason: str) -> None:
    model = edited(converted(gemma_like()), edit)
    found = difference(gemma_like(), model, "tokenizer.model")
    assert found is not None and reason in found and "\n" not in found
    assert choose(respell(as_bytes(gemma_like())), model) == Choice(converted(gemma_like()))
    kept = choose(respell(as_bytes(llama_like())), model)
    assert kept.model is None and kept.reason is not None and reason in kept.reason


def test_a_process_of_its_own_chooses_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_process, "_LARGE_BYTES", 0)
    tokenizer, model = as_bytes(gemma_like()), converted(gemma_like())
    for content, model_of_it in ((tokenizer, model), (tokenizer, None), (as_bytes(byte_level()), b"no model")):
        assert tokenizer_process.choose_apart(content, model_of_it) == choose(respell(content), model_of_it)


@pytest.mark.parametrize("limit", [0, 10**9])
def test_a_tokenizer_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(tokenizer_process, "_LARGE_BYTES", limit)
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        tokenizer_process.choose_apart(patched(model_merges=[["nowhere", "to be found"]]))
    assert "\n" not in str(caught.value)


def test_the_engine_reads_a_bundle_with_a_model(tmp_path: Path) -> None:
    save("gemma3", tmp_path / "checkpoint")
    tokenizer, options = gemma_like(), {"to": "litert", "recipe": "fp32", "context": 16, "prefill": (8,), "threads": 1}
    done = edgepack.export(tmp_path / "checkpoint", out=tmp_path / "package", **options)
    bundle = done.package.file("decoder")
    found = {kind: content for (kind, _), content in sections(bundle).items()}
    assert found[Kind.SP_Tokenizer] == converted(tokenizer) and Kind.HF_Tokenizer_Zlib not in found
    assert done.notes == ()
    backend = litert_lm.Backend.CPU(thread_count=1)
    with litert_lm.Engine(str(bundle), backend=backend, cache_dir=str(tmp_path)) as engine:
        for text in (HARD_TEXT, CHAT, " two  spaces ", "\n\n\t<b>"):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            assert list(engine.tokenize(text)) == ids
            assert engine.detokenize(ids) == text
        # By these the engine knows that a text has a start token already.
        assert (engine.detokenize([BOS]), engine.detokenize([EOS])) == ("<bos>", "<eos>")


def test_the_export_says_why_a_bundle_has_no_model(tmp_path: Path) -> None:
    save("gemma3", tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "tokenizer.json").write_bytes(as_bytes(llama_like()))
    (tmp_path / "checkpoint" / "tokenizer.model").write_bytes(b"no model")
    options = {"to": "litert", "recipe": "fp32", "context": 16, "prefill": (8,), "threads": 1}
    done = edgepack.export(tmp_path / "checkpoint", out=tmp_path / "package", **options)
    assert Kind.HF_Tokenizer_Zlib in {kind for kind, _ in sections(done.package.file("decoder"))}
    (note,) = done.notes
    assert "tokenizer.model cannot be read" in note
