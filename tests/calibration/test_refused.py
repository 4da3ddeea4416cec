"""Input that `calibrate` cannot use, and calibration files that are none: one line, and a way out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.calibration.file import WAY_OUT, open_calibration
from edgepack.checkpoint.folder import open_checkpoint
from edgepack.errors import EdgepackError
from edgepack.model.read import read_model
from tests.calibration.small import calibrated, with_tokenizer
from tests.support import tiny
from tests.support.tiny import TinyPackages
from tests.support.tokenizer_packages import gemma_like


def refused(action: Callable[[], object], *needles: str) -> None:
    with pytest.raises(EdgepackError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message and all(needle in message for needle in needles), message


@pytest.mark.parametrize(
    ("changed", "needles"),
    [
        ({"tokens": 23}, ["tokens is 23: expected at least 24, the tokens of one sequence"]),
        ({"sequence": 1}, ["sequence is 1: expected 2 to 128, the context of the model"]),
        ({"sequence": 129}, ["sequence is 129: expected 2 to 128"]),
        ({"sequence": True}, ["sequence is True"]),
        ({"threads": 0}, ["threads is 0"]),
        ({"text": "no-such-file"}, ["text no-such-file cannot be read: No such file"]),
        ({"out": "/dev/null", "overwrite": True}, ["/dev/null is not a regular file: choose another"]),
    ],
)
def test_settings_that_are_refused(small: Path, changed: dict[str, Any], needles: list[str]) -> None:
    refused(lambda: calibrated(small, **changed), *needles)
    assert sorted(path.name for path in small.parent.iterdir()) == ["small", "text.txt"]


@pytest.mark.parametrize(
    ("content", "needles"),
    [
        (b"too short", ["text text.txt: 9 tokens are fewer than one sequence: expected at least 23; ", "--sequence"]),
        (b"", ["0 tokens"]),
        (b"caf\xe9", ["byte 3 is not UTF-8: save the file as UTF-8"]),
    ],
)
def test_texts_that_are_refused(small: Path, content: bytes, needles: list[str]) -> None:
    (small.parent / "text.txt").write_bytes(content)
    refused(lambda: calibrated(small), *needles)


def test_a_tokenizer_of_another_model_is_refused(small: Path) -> None:
    gemma_like().save(str(small / "tokenizer.json"))
    refused(lambda: calibrated(small), "the tokenizer gives the id", "vocab_size=104; does tokenizer.json belong to")


def test_a_checkpoint_without_tokenizer_is_refused(small: Path) -> None:
    (small / "tokenizer.json").unlink()
    refused(lambda: calibrated(small), "no tokenizer.json: expected the tokenizer of the checkpoint")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("tensor", "needle"),
    [
        ("model.layers.1.mlp.up_proj.weight", "layer 1: matrix 'mlp.down_proj' is multiplied with nan or infinity"),
        ("model.altup_projections.0.weight", "layer 0: matrix"),
    ],
)
def test_activations_that_are_not_finite_are_refused(
    tensor: str, needle: str, tiny_packages: TinyPackages, tmp_path: Path
) -> None:
    def large(tensors: dict[str, Any]) -> dict[str, Any]:
        return {**tensors, tensor: np.full_like(tensors[tensor], 3e38)}

    folder = tiny.edit_tensors(tiny_packages("untied").checkpoint, tmp_path / "large", large)
    refused(lambda: calibrated(with_tokenizer(folder, tmp_path)), needle, "expected finite activations")


@pytest.fixture
def file(small: Path) -> Path:
    return calibrated(small).path


def rewritten(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the header of a safetensors file by `edit`."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def inner(header: dict[str, Any], **changed: Any) -> None:
    metadata = header["__metadata__"]
    metadata["header"] = json.dumps(json.loads(metadata["header"]) | changed)


@pytest.mark.parametrize(
    ("edit", "needles"),
    [
        (lambda h: h.pop("__metadata__"), ["no calibration: expected the format edgepack-calibration", "got None"]),
        (lambda h: h["__metadata__"].update(version="2"), ["a calibration of version '2': expected version 1"]),
        (lambda h: h["__metadata__"].update(header="{"), ["the header of the calibration is damaged"]),
        (lambda h: inner(h, tokens="many"), ["the header of the calibration is damaged: tokens:"]),
        (
            lambda h: h.pop("lm_head.second"),
            ["tensor 'lm_head.second' of the calibration: expected F16 [1176], got nothing"],
        ),
        (lambda h: h["lm_head.second"].update(shape=[2, 588]), ["expected F16 [1176], got F16 [2, 588]"]),
        (lambda h: h["lm_head.rms"].update(shape=[49]), ["has 192 bytes, expected 196"]),
    ],
)
def test_files_whose_header_is_wrong(file: Path, edit: Callable[[dict[str, Any]], Any], needles: list[str]) -> None:
    rewritten(file, edit)
    refused(lambda: open_calibration(file), *needles, WAY_OUT)


@pytest.mark.parametrize("kept", [0, 7, 100, 5000, -1])
def test_truncated_files_are_refused(file: Path, kept: int) -> None:
    file.write_bytes(file.read_bytes()[:kept])
    refused(lambda: open_calibration(file), str(file), WAY_OUT)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refused(lambda: open_calibration(tmp_path / "none"), "none: cannot be read: No such file or directory", WAY_OUT)


@pytest.mark.parametrize(("statistic", "bits"), [("rms", b"\0\0\xc0\x7f"), ("second", b"\0\x7c")])
def test_statistics_that_are_not_finite_are_refused(file: Path, statistic: str, bits: bytes) -> None:
    with open_calibration(file) as opened:
        place = opened._file.tensors[f"lm_head.{statistic}"].offset_bytes
    content = bytearray(file.read_bytes())
    content[place : place + len(bits)] = bits
    file.write_bytes(content)
    with open_calibration(file) as opened:
        refused(lambda: opened.moments("lm_head.weight").second(), f"'lm_head.{statistic}' holds nan or inf", WAY_OUT)


def test_a_matrix_without_statistics_is_refused(file: Path) -> None:
    with open_calibration(file) as opened:
        refused(lambda: opened.moments("layers.9.mlp.up_proj.weight"), "no statistics of matrix 'layers.9.", WAY_OUT)


def test_another_checkpoint_spec_or_map_is_refused(file: Path, small: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(small, tmp_path / "other"))
    content = bytearray((other / "model.safetensors").read_bytes())
    content[8 + int.from_bytes(content[:8], "little") :] = bytes(
        len(content) - 8 - int.from_bytes(content[:8], "little")
    )
    (other / "model.safetensors").write_bytes(content)
    with open_checkpoint(small) as source, open_calibration(file) as opened:
        spec = read_model(source)
        opened.require_for(source, spec)
        changed = spec.model_copy(update={"rms_norm_eps": 1e-5})
        refused(lambda: opened.require_for(source, changed), "of this checkpoint as another spec", WAY_OUT)
        # Names of the checkpoint and token ids change no number.
        opened.require_for(source, spec.model_copy(update={"eos_token_ids": (7,)}))
        with open_checkpoint(other) as changed_weights:
            refused(lambda: opened.require_for(changed_weights, spec), "of another checkpoint: expected", WAY_OUT)
    kept = {"lm_head.weight": "lm_head"}
    rewritten(file, lambda header: inner(header, inputs=kept))
    with open_checkpoint(small) as source, open_calibration(file) as opened:
        refused(lambda: opened.require_for(source, spec), "of this checkpoint as another spec", WAY_OUT)
