"""Tiny checkpoints that have a tokenizer, and what their decoders multiply, computed in one go."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from edgepack.calibration.collecting import weight_of, weight_roots
from edgepack.calibration.run import CalibrationRun, calibrate
from edgepack.checkpoint.folder import open_checkpoint
from edgepack.model.numpy_ops import NumpyOps, WeightSource, logits
from edgepack.model.ops import Weight
from edgepack.model.read import read_model
from edgepack.model.spec import ModelSpec
from tests.support.tokenizer_packages import BOS, SPECIAL, write_package

FloatArray = npt.NDArray[np.float32]
SENTENCE = "Seven small boats left the harbour at noon; two came back. "
TOKENS, SEQUENCE = 96, 24


def letters() -> Tokenizer:
    """A token a letter: 102 ids, as the tiny models have 104."""
    characters = ["\n", *(chr(code) for code in range(32, 127))]
    vocab = {token: i for i, token in enumerate([*SPECIAL, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return tokenizer


def with_tokenizer(checkpoint: Path, folder: Path) -> Path:
    """A copy of `checkpoint` with a tokenizer, and a text `text.txt` beside it."""
    copy = Path(shutil.copytree(checkpoint, folder / "small"))
    write_package(copy, letters())
    (folder / "text.txt").write_text(SENTENCE * 4, "utf-8")
    return copy


def calibrated(checkpoint: Path, **changed: Any) -> CalibrationRun:
    """A calibration of four sequences of `text.txt` to `out.safetensors` beside the checkpoint."""
    given = {"out": checkpoint.parent / "out.safetensors", "text": checkpoint.parent / "text.txt"}
    return calibrate(checkpoint, **{**given, "tokens": TOKENS, "sequence": SEQUENCE, "threads": 1, **changed})


def expected_ids(count: int = TOKENS // SEQUENCE, length: int = SEQUENCE) -> npt.NDArray[np.int64]:
    """What `calibrated` runs, written out: a start token each, then the letters, evenly spread over the text."""
    text = [letters().token_to_id(letter) for letter in SENTENCE * 4]
    spare = len(text) - count * (length - 1)
    starts = [i * (length - 1) + i * spare // (count - 1) for i in range(count)]
    return np.array([[BOS, *text[start : start + length - 1]] for start in starts])


class Noting(NumpyOps):
    """Keeps what every matrix is multiplied with, [B, S, K] a use."""

    def __init__(self, spec: ModelSpec, weights: WeightSource) -> None:
        super().__init__(spec, weights)
        self.inputs: dict[str, list[FloatArray]] = {}

    def linear(self, x: FloatArray, matrix: Weight) -> FloatArray:
        self.inputs.setdefault(matrix.name, []).append(x)
        return super().linear(x, matrix)


def whole_run(checkpoint: Path, ids: npt.NDArray[np.int64]) -> dict[str, FloatArray]:
    """What every matrix is multiplied with, [positions, K], in a run of all layers; first positions left out."""
    with open_checkpoint(checkpoint) as source:
        ops = Noting(read_model(source), source)
        logits(ops, ids)
    return {name: counted(values) for name, values in ops.inputs.items()}


def counted(values: list[FloatArray]) -> FloatArray:
    """All of `values` [B, S, K] as [positions, K], so that means of squares are the weighted ones."""
    return np.concatenate([(x * share(x.shape[1])).reshape(-1, x.shape[-1]) for x in values])


def share(rows: int) -> FloatArray:
    """Of each position of a sequence the root of its weight, so that the mean weight is 1, [rows, 1]."""
    return weight_roots(rows) * np.float32((rows / weight_of(rows)) ** 0.5)
