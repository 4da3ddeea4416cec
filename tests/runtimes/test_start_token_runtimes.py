"""Start tokens counted in all three runtimes, in LiteRT-LM's own conversation, and by `validate`."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import edgepack
from edgepack.errors import EdgepackError
from edgepack.package.folder import open_package
from edgepack.validation.answers import run_quality
from edgepack.validation.golden.conversation import check_conversation, judge_tokens
from edgepack.validation.result import Check
from edgepack.validation.settings import QualityRequest
from edgepack.validation.verdict.judge import judge
from edgepack.validation.verdict.quality import quality_checks
from edgepack_converters.litert import emit
from edgepack_runtimes.litert_lm.runtime import LitertLmRuntime
from tests.runtimes.test_litert_lm import save
from tests.support import tiny
from tests.support.tokenizer_packages import BOS, END_OF_TURN, EOS, GEMMA_TEMPLATE
from tests.text.test_start_token import with_post_processor, write

TURN = 4  # <start_of_turn>
BARE = GEMMA_TEMPLATE.replace("{{ bos_token }}", "{{ '' }}")
MESSAGE, NEW = "the lazy dog", 6


@dataclass(frozen=True)
class Case:
    """What the files of a checkpoint say, and the start tokens of a chat and of a plain text."""

    chat: list[int]
    plain: list[int]
    model: str = "shared"
    template: str = GEMMA_TEMPLATE
    post_processor: bool = True
    tokenizer: tuple[tuple[str, Any], ...] = ()
    config: tuple[tuple[str, Any], ...] = ()


CASES = {
    "config and generation config are silent": Case([BOS], [BOS], "gemma3", config=(("bos_token_id", "absent"),)),
    "null, and add_bos_token false": Case(
        [BOS], [BOS], tokenizer=(("add_bos_token", False),), config=(("bos_token_id", None),)
    ),
    # The first is the start token, the second begins the turn.
    "another token than the config's": Case([TURN, TURN], [TURN], tokenizer=(("bos_token", "<start_of_turn>"),)),
    "of chats alone": Case([BOS], [], "gemma3", post_processor=False, config=(("eos_token_id", 1),)),
    "of plain texts, and left out by the template": Case([BOS], [BOS], template=BARE),
    "nowhere": Case([], [], template=BARE, post_processor=False, tokenizer=(("bos_token", None),)),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in ("shared", "gemma3")}
    for name, folder in folders.items():
        save(name, folder)
    return folders


def checkpoint_of(case: Case, models: dict[str, Path], folder: Path) -> Path:
    shutil.copytree(models[case.model], folder)
    if not case.post_processor:
        with_post_processor(None).save(str(folder / "tokenizer.json"))
    for name, changes in (
        ("tokenizer_config", (("chat_template", case.template), *case.tokenizer)),
        ("config", case.config),
        ("generation_config", case.config),
    ):
        values = json.loads((folder / f"{name}.json").read_text()) | dict(changes)
        write(folder, **{name: {key: value for key, value in values.items() if value != "absent"}})
    return folder


def exported(checkpoint: Path, to: str) -> Path:
    out = checkpoint.with_name(f"{checkpoint.name}-{to}")
    prefill = (16,) if to == "litert" else None
    return edgepack.export(
        checkpoint, to=to, out=out, recipe="fp32", context=tiny.CONTEXT, prefill=prefill, threads=1
    ).package.path


def transformers_ids(checkpoint: Path) -> tuple[list[int], list[int]]:
    """A chat and a plain text as Transformers has them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    messages = [{"role": "user", "content": MESSAGE}]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return list(chat), list(tokenizer(MESSAGE).input_ids)


@pytest.mark.parametrize("name", CASES)
def test_every_runtime_starts_texts_as_the_checkpoint_says(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    case = CASES[name]
    checkpoint = checkpoint_of(case, models, tmp_path / "checkpoint")
    chat, plain = transformers_ids(checkpoint)
    if case.template == BARE and case.chat:
        chat = [*case.chat, *chat]  # Transformers leaves it out, and the model was never trained without it
    assert chat[: len(case.chat) + 1] == [*case.chat, chat[len(case.chat)]] and len(plain) == len(case.plain) + 3
    packages = {to: exported(checkpoint, to) for to in ("onnx", "litert")}
    said: dict[bool, set[str]] = {True: set(), False: set()}
    for runtime in ("onnx", "litert", "litert-lm"):
        with edgepack.load(packages[runtime.split("-")[0]], runtime=runtime, threads=1) as model:
            assert model.spec.bos_token_id == (case.chat or [BOS])[0]
            assert model.codec.encode(MESSAGE)[: len(case.plain)] == case.plain
            for is_chat, expected in ((True, chat), (False, plain)):
                if runtime == "litert-lm" and not is_chat and case.chat and not case.plain:
                    with pytest.raises(EdgepackError, match="LiteRT-LM puts <bos> before every text of this package"):
                        model.generate_text(MESSAGE, max_new_tokens=NEW)
                    continue
                answer = model.generate_text(MESSAGE, max_new_tokens=NEW, chat=is_chat)
                said[is_chat].add("".join(answer))
                assert answer.stats.prompt_tokens == len(expected), (runtime, is_chat)
            assert model.codec.eos_token_ids == {EOS, END_OF_TURN}
            if isinstance(model, LitertLmRuntime):
                assert sorted(model.engine.eos_token_ids) == [[EOS], [END_OF_TURN]]
                assert model.conversation_tokens(MESSAGE) == len(chat)
                assert len(list(model.generate(chat, max_new_tokens=NEW))) > 0
                measured = model.generate_text(model.prompt_of(20), max_new_tokens=2)
                next(measured)
                assert abs(measured.stats.prompt_tokens - 20) <= 2
    assert [len(texts) for texts in said.values()] == [1, 1]  # the same answers everywhere


def test_a_plain_text_may_write_the_token_itself(models: dict[str, Path], tmp_path: Path) -> None:
    """Of chats alone: LiteRT-LM then reads what the other runtimes read."""
    checkpoint = checkpoint_of(CASES["of chats alone"], models, tmp_path / "checkpoint")
    package, answers = exported(checkpoint, "litert"), []
    for runtime in ("litert", "litert-lm"):
        with edgepack.load(package, runtime=runtime, threads=1) as model:
            answer = model.generate_text(f"<bos>{MESSAGE}", max_new_tokens=NEW)
            answers.append(("".join(answer), answer.stats.prompt_tokens))
    assert answers[0] == answers[1] and answers[0][1] == 4


def test_letters_of_a_start_token_are_refused_where_no_text_has_one(models: dict[str, Path], tmp_path: Path) -> None:
    case = replace(CASES["nowhere"], tokenizer=())
    package = exported(checkpoint_of(case, models, tmp_path / "checkpoint"), "litert")
    with (
        edgepack.load(package, runtime="litert-lm", threads=1) as model,
        pytest.raises(EdgepackError, match="begins with <bos>, which LiteRT-LM reads letter by letter"),
    ):
        model.generate_text(f"<bos>{MESSAGE}", max_new_tokens=NEW)


def test_a_tokenizer_that_contradicts_itself_is_told(models: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = checkpoint_of(CASES["another token than the config's"], models, tmp_path / "checkpoint")
    note = edgepack.export(checkpoint, out=tmp_path / "out", threads=1).notes[0]
    assert "puts '<bos>' before a text, and the start token is '<start_of_turn>'" in note and "\n" not in note
    checkpoint = checkpoint_of(CASES["null, and add_bos_token false"], models, tmp_path / "flag")
    note = edgepack.export(checkpoint, out=tmp_path / "other", threads=1).notes[0]
    assert "says add_bos_token false, and the post-processor of tokenizer.json puts '<bos>' before a text" in note


# --- validate


def test_validate_counts_in_the_engines_own_conversation(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_of(CASES["of chats alone"], models, tmp_path / "checkpoint")
    facts = emit.checked_by_engine
    monkeypatch.setattr(emit, "checked_by_engine", lambda *given: replace(facts(*given), start_token_id=None))
    verdict, _, reasons = judge(checks_of(exported(checkpoint, "litert")))
    assert not verdict
    assert "own conversation reads a user's message as 11 tokens, expected 12: those of the" in reasons[0]
    monkeypatch.undo()
    shutil.rmtree(checkpoint.with_name(f"{checkpoint.name}-litert"))
    (right,) = checks_of(exported(checkpoint, "litert"))
    assert right.passed and "as the 12 tokens" in right.text


SPOKEN = QualityRequest(runtime="litert-lm", threads=1, timeout_s=60)


def checks_of(package: Path) -> list[Check]:
    """What `validate` judges beside its measurements."""
    result = run_quality(open_package(package), SPOKEN, on_phase=lambda phase: None)
    return quality_checks(result, ())


def test_what_cannot_be_counted_does_not_spoil_the_verdict(models: dict[str, Path], tmp_path: Path) -> None:
    assert judge_tokens(None, None, "no room").passed is None
    case = replace(CASES["nowhere"], template="absent")
    package = exported(checkpoint_of(case, models, tmp_path / "checkpoint"), "litert")
    assert check_conversation(open_package(package), SPOKEN, on_phase=lambda phase: None) is None
