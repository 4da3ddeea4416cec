"""Quality of a package against a reference: the arithmetic, the texts, real comparisons, and all ways to be refused."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgepack
from edgepack.errors import EdgepackError
from edgepack.validation.quality import choose_dtype, compare_quality
from edgepack.validation.quality_job import Probe, ReferenceJob, require_ids
from edgepack.validation.quality_math import (
    NEAR_TIE_NATS,
    Positions,
    compare_positions,
    joined,
    p99,
    perplexity,
    perplexity_ratio,
    require_finite,
    share,
    text_quality,
)
from edgepack.validation.quality_process import ask
from edgepack.validation.quality_texts import (
    MOST_POSITIONS,
    PIECE_TOKENS,
    Piece,
    builtin_texts,
    cut_file,
    cut_texts,
    read_text,
)
from edgepack.validation.quality_worker import read_logits
from edgepack.validation.result import QualityReport
from tests import tiny
from tests.tiny import TinyPackages, edit_tensors

DEMO = Path(edgepack.__file__).parent / "assets" / "demo"
CONTEXT = 300


# --- arithmetic ---


def logs(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def test_figures_by_hand() -> None:
    reference = np.array([logs(0.5, 0.25, 0.25), logs(0.48, 0.5, 0.02), logs(0.25, 0.5, 0.25)], np.float32) + 7
    package = np.array([logs(0.25, 0.125, 0.625), logs(0.5, 0.48, 0.02), logs(0.25, 0.5, 0.25)], np.float32) - 3
    got = compare_positions(reference, package, [0, 2, 1])
    # 0.5 ln(0.5 / 0.25) + 0.25 ln(0.25 / 0.125) + 0.25 ln(0.25 / 0.625); then 0.48 ln(48/50) + 0.5 ln(50/48).
    assert got.kl == pytest.approx((0.75 * math.log(2) - 0.25 * math.log(2.5), 0.02 * math.log(50 / 48), 0.0), abs=1e-7)
    assert got.loss == pytest.approx((math.log(4), math.log(50), math.log(2)), abs=1e-6)
    assert got.reference_loss == pytest.approx((math.log(2), math.log(50), math.log(2)), abs=1e-6)
    assert got.same == (False, False, True)
    assert got.near_tie == (False, True, False)  # ln(50 / 48) = 0.04
    assert got.agreement == [False, True, True]
    row = text_quality("row", got)
    assert (row.tokens, row.top1_agreement) == (3, 2 / 3)
    assert row.perplexity == pytest.approx((4 * 50 * 2) ** (1 / 3))
    assert row.reference_perplexity == pytest.approx((2 * 50 * 2) ** (1 / 3))
    assert perplexity_ratio(got) == pytest.approx(2 ** (1 / 3))


def test_a_near_tie_is_no_excuse_for_a_third_token() -> None:
    reference = np.array([logs(0.4, 0.39, 0.21)] * 3, np.float32)
    package = np.array([logs(0.6, 0.2, 0.2), logs(0.2, 0.6, 0.2), logs(0.2, 0.2, 0.6)], np.float32)
    got = compare_positions(reference, package, [0, 0, 0])
    assert got.near_tie == (True, True, True)
    assert got.same == (True, False, False)
    assert got.agreement == [True, True, False]


@pytest.mark.parametrize(("gap", "tie"), [(0.99 * NEAR_TIE_NATS, True), (1.01 * NEAR_TIE_NATS, False)])
def test_where_a_near_tie_ends(gap: float, tie: bool) -> None:
    row = np.array([[0.0, gap, -5.0]], np.float32)
    assert compare_positions(row, row, [0]).near_tie == (tie,)


def test_many_positions_against_plain_numpy() -> None:
    random = np.random.default_rng(0)
    reference = (random.normal(size=(53, 1000)) * 4).astype(np.float32)
    package = (reference + random.normal(size=reference.shape)).astype(np.float32)
    targets = random.integers(0, 1000, 53)
    got = compare_positions(reference, package, targets.tolist())
    p, q = (
        np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(-1, keepdims=True) for x in (reference, package)
    )
    np.testing.assert_allclose(got.kl, (p * np.log(p / q)).sum(-1), rtol=1e-12)
    np.testing.assert_allclose(got.loss, -np.log(q[np.arange(53), targets]), rtol=1e-12)
    np.testing.assert_allclose(got.reference_loss, -np.log(p[np.arange(53), targets]), rtol=1e-12)
    assert list(got.same) == (p.argmax(-1) == q.argmax(-1)).tolist()
    best = np.sort(p, -1)
    assert list(got.near_tie) == (np.log(best[:, -1] / best[:, -2]) <= NEAR_TIE_NATS).tolist()
    assert 0 < share(got.same) < 1
    whole = joined([compare_positions(reference[:20], package[:20], targets[:20].tolist()), got])
    assert whole.kl == got.kl[:20] + got.kl
    assert p99(got.kl) == pytest.approx(sorted(got.kl)[-1] * 0.48 + sorted(got.kl)[-2] * 0.52)  # 0.99 * 52 = 51.48


def test_extreme_logits_give_finite_figures() -> None:
    reference = np.array([[3e38, 0.0, -3e38], [0.0, 0.0, 0.0]], np.float32)
    package = np.array([[-3e38, 0.0, 3e38], [0.0, 0.0, 3e38]], np.float32)
    got = compare_positions(reference, package, [0, 1])
    assert all(math.isfinite(value) for value in (*got.kl, *got.loss))
    assert min(got.kl) > 1e38
    assert math.isfinite(perplexity(got.loss)) and math.isfinite(perplexity_ratio(got))


def test_no_kl_against_itself() -> None:
    row = (np.random.default_rng(1).normal(size=(40, 500)) * 9).astype(np.float32)
    assert set(compare_positions(row, row.copy(), [0] * 40).kl) == {0.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite(bad: float) -> None:
    logits = np.zeros((3, 4), np.float32)
    require_finite(logits, "x")
    logits[1, 2] = bad
    with pytest.raises(EdgepackError, match="the package p: the logits at position 1 are not finite"):
        require_finite(logits, "the package p")


# --- texts ---


def test_the_built_in_texts() -> None:
    texts = builtin_texts()
    names = [text.name for text in texts]
    assert len(set(names)) == len(names) == 14
    assert {"english", "chinese", "arabic", "hindi", "python", "javascript", "kotlin", "chat with tools"} <= set(names)
    chat = next(text for text in texts if text.messages)
    assert chat.plain.startswith("<start_of_turn>user\nYou can call these functions")
    assert "<start_of_turn>model\n```json\n" in chat.plain
    assert "assistant" not in chat.plain
    json.loads(chat.plain.split("```json\n")[1].split("```")[0])


def piece(name: str, tokens: int) -> Piece:
    return Piece(name=name, ids=tuple(range(tokens)))


def test_long_texts_are_cut_and_short_ones_are_not() -> None:
    texts = [piece("a", 2000), piece("b", 101), piece("c", 3000)]
    cut, notes = cut_texts(texts, context_tokens=10_000)
    assert [p.positions for p in cut] == [500, 100, 500]
    assert sum(p.positions for p in cut) == MOST_POSITIONS
    assert cut[0].ids == tuple(range(501))
    assert notes == ["2 of 3 texts were cut to 501 tokens: 1,100 positions are compared"]
    cut, notes = cut_texts(texts, context_tokens=64)
    assert [p.positions for p in cut] == [63, 63, 63]
    assert notes == ["3 of 3 texts were cut to 64 tokens: the context has no more"]
    assert cut_texts([piece("b", 101)], 1000) == ([piece("b", 101)], [])


@pytest.mark.parametrize("bos", [7, None])
def test_a_file_in_pieces(bos: int | None) -> None:
    head = [] if bos is None else [bos]
    pieces, notes = cut_file(Piece(name="t", ids=(*head, *range(100, 1000))), bos, context_tokens=4096)
    assert notes == []
    assert pieces[0].ids == (*head, *range(100, 100 + PIECE_TOKENS - len(head)))
    assert all(len(p.ids) <= PIECE_TOKENS and list(p.ids[: len(head)]) == head for p in pieces)
    assert [i for p in pieces for i in p.ids[len(head) :]] == list(range(100, 1000))
    assert [p.name for p in pieces] == ["t 1/4", "t 2/4", "t 3/4", "t 4/4"]
    long, notes = cut_file(Piece(name="t", ids=(*head, *range(5000))), bos, context_tokens=4096)
    assert sum(len(p.ids) - len(head) for p in long) == MOST_POSITIONS
    assert notes == ["the first 1,100 of 5,000 tokens of t were used"]
    assert max(len(p.ids) for p in cut_file(long[0], bos, context_tokens=32)[0]) == 32


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read: No such file"), (b"", "the text is empty"), (b"ab\xff", "not a text file in UTF-8")],
)
def test_files_that_are_no_text(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(EdgepackError, match=message):
        read_text(file)


# --- the reference ---


def test_numbers_of_the_reference_follow_the_free_memory() -> None:
    assert choose_dtype("r", 1000, 500, free_bytes=4500) == ("float32", ())
    dtype, notes = choose_dtype("r", 1000, 500, free_bytes=4499)
    assert dtype == "bfloat16"
    assert "ran in bfloat16, since float32 needs" in notes[0]
    assert choose_dtype("r", 1000, 500, free_bytes=2500)[0] == "bfloat16"
    with pytest.raises(EdgepackError, match=r"the reference r needs .* give a package of it"):
        choose_dtype("r", 1000, 500, free_bytes=2499)


def reference_job(path: Path, **changes: Any) -> ReferenceJob:
    values: dict[str, Any] = {
        "path": str(path),
        "dtype": "float32",
        "threads": 1,
        "vocab_size": tiny.VOCAB,
        "pieces": (),
        "logits_fd": 0,
    }
    return ReferenceJob(**values | changes)


def test_a_multimodal_checkpoint_runs_as_its_text_model(tiny_packages: TinyPackages, tmp_path: Path) -> None:
    from edgepack.validation.quality_transformers import transformers_model

    made = tiny_packages("shared")
    folder = tiny.as_multimodal(made.checkpoint, tmp_path / "multimodal")
    ids = tiny.token_ids(20)
    got = transformers_model(reference_job(folder))(ids[0].tolist())
    np.testing.assert_allclose(got, tiny.reference(made.model, ids)[0], atol=1e-4)  # not eager attention


def test_a_checkpoint_without_some_weights_is_no_reference(tiny_packages: TinyPackages, tmp_path: Path) -> None:
    from edgepack.validation.quality_transformers import transformers_model

    lost = "model.layers.1.mlp.up_proj.weight"
    folder = edit_tensors(
        tiny_packages("gemma3").checkpoint,
        tmp_path / "lost",
        lambda tensors: {key: value for key, value in tensors.items() if key != lost},
    )
    with pytest.raises(EdgepackError, match=f"found no weights for 1 tensors, {lost}") as caught:
        transformers_model(reference_job(folder))
    assert "\n" not in str(caught.value)


def test_another_tokenizer_is_noticed() -> None:
    probe = Probe(text="a text", ids=(2, 5, 6))
    require_ids(reference_job(Path("r")), probe, [2, 5, 6])
    with pytest.raises(EdgepackError, match="the tokenizer of the reference r is not the package's: it reads the text"):
        require_ids(reference_job(Path("r")), probe, [2, 5, 7])


def test_the_file_of_logits(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    file = tmp_path / "logits"
    file.write_bytes(values.tobytes())
    fd = os.open(file, os.O_RDONLY)
    try:
        np.testing.assert_array_equal(read_logits(fd, 12, 2, 3), values[1:3])
        with pytest.raises(EdgepackError, match="shorter than what was written"):
            read_logits(fd, 36, 2, 3)
    finally:
        os.close(fd)


# --- whole comparisons ---


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages of the trained demo model: fp32, int8, int4, and one with two matrices of a layer exchanged."""
    root = tmp_path_factory.mktemp("quality")

    def exchange(tensors: dict[str, Any]) -> dict[str, Any]:
        first, second = (f"model.layers.{layer}.self_attn.o_proj.weight" for layer in (0, 1))
        return {**tensors, first: tensors[second], second: tensors[first]}

    for recipe in ("fp32", "int8", "int4"):
        edgepack.export(DEMO, out=root / recipe, recipe=recipe, context=CONTEXT, threads=1)
    _edited_demo(root / "edited", exchange)
    edgepack.export(root / "edited", out=root / "exchanged", recipe="fp32", context=CONTEXT, threads=1)
    return root


def _edited_demo(folder: Path, edit: Any) -> None:
    edit_tensors(DEMO, folder, edit)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        shutil.copyfile(DEMO / name, folder / name)


def compared(package: Path, reference: Path, **options: Any) -> QualityReport:
    return compare_quality(package, reference=reference, threads=1, **options)


def test_the_float32_package_is_the_checkpoint(demo: Path) -> None:
    phases: list[str] = []
    report = compared(demo / "fp32", DEMO, on_phase=phases.append)
    assert report.reference_kind == "transformers"
    assert report.reference == str(DEMO)
    assert 0 < report.kl_mean < 1e-6  # measured 2e-12; zero would mean that nothing was compared
    assert report.top1_agreement == 1.0
    assert report.perplexity_ratio == pytest.approx(1.0, abs=1e-5)
    assert report.text_set == "builtin-1"
    assert [text.name for text in report.texts] == [text.name for text in builtin_texts()]
    assert report.tokens == sum(text.tokens for text in report.texts) <= MOST_POSITIONS
    assert phases[:3] == ["tokenize", "reference load", "reference 1/14"]
    assert phases[-1] == "package 14/14"
    assert any(note.startswith("the reference took ") for note in report.notes)


def test_against_itself_nothing_is_lost(demo: Path, tmp_path: Path) -> None:
    file = tmp_path / "story.txt"
    file.write_text((DEMO / "validation.txt").read_text("utf-8")[:1500], "utf-8")
    report = compared(demo / "int4", demo / "int4", text=file)
    assert report.reference_kind == "package"
    assert (report.kl_mean, report.kl_p99) == (0.0, 0.0)
    assert (report.top1_agreement, report.strict_agreement, report.perplexity_ratio) == (1.0, 1.0, 1.0)
    assert report.text_set == str(file)
    assert report.texts[0].name.startswith("story.txt 1/")
    assert 1 < report.perplexity < 100  # a text of the kind that the model was trained on


def test_fewer_bits_lose_more_and_a_broken_model_loses_all(demo: Path, tmp_path: Path) -> None:
    file = tmp_path / "story.txt"
    file.write_text((DEMO / "validation.txt").read_text("utf-8")[:1500], "utf-8")
    int8, int4, broken = (compared(demo / name, demo / "fp32", text=file) for name in ("int8", "int4", "exchanged"))
    assert 0 < 10 * int8.kl_mean < int4.kl_mean
    assert int8.kl_p99 > int8.kl_mean
    assert int8.top1_agreement > int4.top1_agreement
    assert int8.strict_agreement <= int8.top1_agreement
    assert int8.near_ties == int4.near_ties > 0
    assert int8.reference_perplexity == pytest.approx(int4.reference_perplexity)
    assert broken.kl_mean > 3 * int4.kl_mean
    assert broken.perplexity_ratio > 1.5
    assert broken.top1_agreement < 0.7


def test_another_vocabulary_is_refused(demo: Path, tiny_packages: TinyPackages) -> None:
    with pytest.raises(EdgepackError, match=r"has a vocabulary of 104 tokens, the package of 2,176") as caught:
        compared(demo / "fp32", tiny_packages("gemma3").package.path)
    assert "\n" not in str(caught.value)


def test_a_package_without_tokenizer_is_refused(tiny_packages: TinyPackages) -> None:
    package = tiny_packages("gemma3").package.path
    with pytest.raises(EdgepackError, match=r"has no tokenizer \(tokenizer.json\), so it can read no text"):
        compared(package, package)


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_without_transformers_the_way_out_is_named(demo: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(EdgepackError, match=rf"{library} is not installed: pip install 'edgepack\[reference\]'"):
        compared(demo / "fp32", DEMO)


def test_wrong_arguments(demo: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"timeout_s": 0.0}, "timeout_s is 0"),
        ({"runtime": "abacus"}, "runtime 'abacus' is not known"),
        ({"text": tmp_path / "none.txt"}, "none.txt: cannot be read"),
    ):
        with pytest.raises(EdgepackError, match=message):
            compared(demo / "fp32", DEMO, **options)
    with pytest.raises(EdgepackError, match="no such folder; expected a checkpoint folder or a hub id"):
        compared(demo / "fp32", tmp_path / "nothing")


# --- processes ---


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("os.kill(os.getpid(), 9)", r"it did not run: killed by signal 9 \(SIGKILL\), which is how .* in phase work"),
        ("sys.exit('first\\nlast words')", "it did not run: exited with code 1 in phase work: last words"),
        ("raise RuntimeError('two\\nlines')", "it did not run: RuntimeError: two lines"),
        ("raise EdgepackError('no such thing')", "^no such thing$"),
        ("print('noise'); time.sleep(60)", "it did not run: no result within 3 s, stopped in phase work"),
    ],
)
def test_every_end_of_a_helper_is_one_line(
    code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stub_helper.py").write_text(
        "import os, sys, time\n"
        "from edgepack.errors import EdgepackError\n"
        "from edgepack.validation.quality_process import helper_main\n"
        f"def run(line, send):\n    send(begin='work')\n    {code}\n"
        "sys.exit(helper_main(run))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EdgepackError, match=message) as caught:
        ask("stub_helper", piece("p", 2), whose="it did not run", timeout_s=3.0, on_phase=lambda phase: None)
    assert "\n" not in str(caught.value)


def test_a_helper_gets_its_job_and_reports_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "echo_helper.py").write_text(
        "import json, sys\n"
        "from edgepack.validation.quality_process import helper_main\n"
        "def run(line, send):\n    print('noise')\n    send(got=json.loads(line)['ids'])\n"
        "sys.exit(helper_main(run))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    answer = ask("echo_helper", piece("p", 3), whose="x", timeout_s=30.0, on_phase=lambda phase: None)
    assert answer.messages == [{"got": [0, 1, 2]}]
    assert answer.peak_rss_bytes is None or 5e6 < answer.peak_rss_bytes < 500e6


def test_positions_survive_the_way_between_processes() -> None:
    values = compare_positions(np.eye(3, dtype=np.float32), np.ones((3, 3), np.float32), [0, 1, 2])
    assert Positions.model_validate(json.loads(json.dumps(values.model_dump()))) == values
