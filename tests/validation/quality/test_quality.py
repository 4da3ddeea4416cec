"""Quality of a package against a reference: the reference, real comparisons, and all ways to be refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgepack
from edgepack.errors import EdgepackError
from edgepack.package.folder import open_package
from edgepack.validation.processes.protocol import OnPhase
from edgepack.validation.quality.compare import choose_dtype, compare_quality
from edgepack.validation.quality.jobs import Probe, ReferenceJob, require_ids
from edgepack.validation.quality.texts import COMPARED_POSITIONS, builtin_texts
from edgepack.validation.quality.worker import read_logits
from edgepack.validation.result import QualityReport
from edgepack.validation.settings import QualityRequest
from tests.support import tiny
from tests.support.paths import DEMO
from tests.support.tiny import TinyPackages, edit_tensors

CONTEXT = 300


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
    from edgepack.validation.quality.transformers_reference import transformers_model

    made = tiny_packages("shared")
    folder = tiny.as_multimodal(made.checkpoint, tmp_path / "multimodal")
    ids = tiny.token_ids(20)
    got = transformers_model(reference_job(folder))(ids[0].tolist(), 12)
    np.testing.assert_allclose(got, tiny.reference(made.model, ids)[0, -12:], atol=1e-4)  # not eager attention


def test_a_checkpoint_without_some_weights_is_no_reference(tiny_packages: TinyPackages, tmp_path: Path) -> None:
    from edgepack.validation.quality.transformers_reference import transformers_model

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


def compared(package: Path, reference: Path, on_phase: OnPhase = lambda phase: None, **asked: Any) -> QualityReport:
    request = QualityRequest(reference=str(reference), threads=1, **asked)
    return compare_quality(open_package(package), request, on_phase=on_phase)


def test_the_float32_package_is_the_checkpoint(demo: Path) -> None:
    phases: list[str] = []
    report = compared(demo / "fp32", DEMO, on_phase=phases.append)
    assert report.reference_kind == "transformers"
    assert report.reference == str(DEMO)
    assert 0 < report.kl_mean < 1e-6  # measured 2e-12; zero would mean that nothing was compared
    assert report.top1_agreement == 1.0
    assert report.perplexity_ratio == pytest.approx(1.0, abs=1e-5)
    assert report.text_set == "builtin-2"
    assert [text.name for text in report.texts] == [text.name for text in builtin_texts()]
    assert all(text.tokens == COMPARED_POSITIONS for text in report.texts)  # of the demo's tokens there are enough
    assert report.tokens == len(report.texts) * COMPARED_POSITIONS
    assert phases[:3] == ["tokenize", "reference load", "reference 1/21"]
    assert phases[-1] == "package 21/21"
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


def test_a_reference_without_tokenizer_is_compared_with_a_note(demo: Path, tmp_path: Path) -> None:
    bare, file = tmp_path / "bare", tmp_path / "story.txt"
    shutil.copytree(DEMO, bare, ignore=shutil.ignore_patterns("tokenizer.json"))
    file.write_text((DEMO / "validation.txt").read_text("utf-8")[:200], "utf-8")
    without, full = (compared(demo / "fp32", reference, text=file) for reference in (bare, DEMO))
    assert without.kl_mean == full.kl_mean
    note = "the reference has no tokenizer.json: only the size of its vocabulary could be compared"
    assert note in without.notes and note not in full.notes


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_without_transformers_the_way_out_is_named(demo: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(
        EdgepackError, match=rf"{library} is not installed: pip install -c constraints.txt '\.\[reference\]'"
    ):
        compared(demo / "fp32", DEMO)


def test_wrong_arguments(demo: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"runtime": "abacus"}, "runtime 'abacus' is not known"),
        ({"text": tmp_path / "none.txt"}, "none.txt: cannot be read"),
    ):
        with pytest.raises(EdgepackError, match=message):
            compared(demo / "fp32", DEMO, **options)
    with pytest.raises(EdgepackError, match="no such folder; expected a checkpoint folder or a hub id"):
        compared(demo / "fp32", tmp_path / "nothing")
