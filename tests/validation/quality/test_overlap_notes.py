"""A validation says where the text that judges is the text that a package was calibrated on."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgepack
from edgepack.calibration.texts import builtin_texts as calibration_texts
from edgepack.package.folder import CalibrationSource, Manifest
from edgepack.text.overlap import sketch_of
from edgepack.validation.quality.compare import compare_quality
from edgepack.validation.quality.overlap import overlap_notes
from edgepack.validation.quality.texts import Text, builtin_texts
from edgepack.validation.run import subject_of
from edgepack.validation.settings import QualityRequest
from tests.calibration.recipes import decoder_recipe
from tests.support.paths import DEMO
from tests.support.tiny import TinyPackages

SOURCE = CalibrationSource(sha256="a" * 64, text="mine.txt", text_sha256="b" * 64, tokens=96, sequence_tokens=24)
LINES = (DEMO / "validation.txt").read_text("utf-8").splitlines()


@pytest.fixture(scope="module")
def manifest(tiny_packages: TinyPackages) -> Manifest:
    return tiny_packages("untied").package.manifest


def calibrated_on(manifest: Manifest, *texts: str) -> Manifest:
    return manifest.model_copy(update={"calibration": SOURCE, "calibration_sketch": sketch_of(texts)})


def test_the_builtin_texts_do_not_overlap(manifest: Manifest) -> None:
    """Every n-gram of the one set against every one of the other, not only those that a sketch keeps."""
    judging = builtin_texts()
    assert overlap_notes(calibrated_on(manifest, *(text.said for text in calibration_texts()[0])), judging) == []
    for text in calibration_texts()[0]:
        shares = [sketch_of([text.said]).share_of(other.said) for other in judging]
        assert max(shares) < 0.05, text.name


def test_what_overlaps_is_named_with_its_share(manifest: Manifest) -> None:
    judging = [Text(name="same", text=LINES[0]), Text(name="other", text=LINES[1])]
    said = overlap_notes(calibrated_on(manifest, LINES[0], LINES[5]), judging)
    assert said == [
        "of the judging text, about 100 % of same are in the calibration text mine.txt: its figures flatter the package"
    ]


def test_conversations_and_many_texts(manifest: Manifest) -> None:
    judging = builtin_texts()
    said = overlap_notes(calibrated_on(manifest, *(text.said for text in judging)), judging)
    assert len(said) == 1 and f"and {len(judging) - 5} more are in" in said[0]
    assert said[0].startswith(f"of the judging text, about 100 % of {judging[0].name}, about")


def test_names_of_strangers_are_cut_and_printable(manifest: Manifest) -> None:
    source = SOURCE.model_copy(update={"text": "\x1b[31m" + "x" * 5000})
    hostile = calibrated_on(manifest, LINES[0]).model_copy(update={"calibration": source})
    (said,) = overlap_notes(hostile, [Text(name="\x1b[31mname" * 900, text=LINES[0])])
    assert said.isprintable() and len(said) < 700


def test_without_calibration_there_is_nothing_to_say(manifest: Manifest) -> None:
    assert overlap_notes(manifest, builtin_texts()) == []


def test_a_comparison_tells_it_of_the_part_that_judges(tmp_path: Path) -> None:
    """The demo calibrated on the beginning of a file whose beginning is judged, and whose rest is something else."""
    known, judging = tmp_path / "known.txt", tmp_path / "judging.txt"
    known.write_text("\n".join(LINES[:60]), "utf-8")
    rest = (f"{i} times {i} is {i * i}, as everybody knows." for i in range(9000))
    judging.write_text("\n".join([*LINES[:60], *rest]), "utf-8")
    recipe = decoder_recipe("onnx", "gptq")
    package = edgepack.export(DEMO, out=tmp_path / "package", recipe=recipe, calibrate=known, context=256).package
    quality = compare_quality(package, QualityRequest(reference=str(package.path), text=judging))
    (note,) = (note for note in quality.notes if "calibration text" in note)
    assert note.startswith("of the judging text, about ") and "of judging.txt are in the calibration text know" in note
    assert int(note.split()[5]) > 80, note
    assert subject_of(package).calibration == package.manifest.calibration
