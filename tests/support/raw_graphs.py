"""The two graphs of a package in plain ONNX Runtime sessions: growing caches, any batch, nothing of our runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgepack.model.spec import ModelSpec
from edgepack.package.folder import Package

FloatArray = npt.NDArray[np.float32]


def session(path: Path) -> Any:
    """A session with ONNX Runtime's default optimizations."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class RawGraphs:
    """Runs embed and decoder as transformers.js does: present of one step is past of the next."""

    def __init__(self, package: Package, decoder: Path | None = None) -> None:
        self.spec: ModelSpec = package.manifest.plan.spec
        self.embed = session(package.file("embed"))
        self.decoder = session(decoder or package.file("decoder"))
        self.inputs = [value.name for value in self.decoder.get_inputs()]
        self.outputs = [value.name for value in self.decoder.get_outputs()]

    def embedded(self, ids: npt.NDArray[np.int64]) -> dict[str, FloatArray]:
        """Outputs of the embedding graph by name for `ids` [B, S]."""
        names = [value.name for value in self.embed.get_outputs()]
        return dict(zip(names, self.embed.run(None, {"input_ids": ids}), strict=True))

    def empty(self, batch: int) -> dict[str, FloatArray]:
        """Caches without a row."""
        caches = {}
        for i, owner in enumerate(self.spec.kv_owners):
            attention = self.spec.attention_of(owner)
            for part in ("key", "value"):
                shape = (batch, attention.num_kv_heads, 0, attention.head_dim)
                caches[f"past_key_values.{i}.{part}"] = np.zeros(shape, np.float32)
        return caches

    def logits(self, ids: npt.NDArray[np.int64], splits: Sequence[int], keep: int = 0) -> FloatArray:
        """Logits of `ids` [B, S] given in pieces of `splits` tokens: all of a piece, or its last `keep` positions."""
        assert sum(splits) == ids.shape[1]
        past, start, rows = self.empty(len(ids)), 0, []
        for count in splits:
            stop = start + count
            feeds = {
                **self.embedded(ids[:, start:stop]),
                **past,
                "attention_mask": np.ones((len(ids), stop), np.int64),
                "position_ids": np.tile(np.arange(start, stop), (len(ids), 1)),
                "num_logits_to_keep": np.array(keep, np.int64),
            }
            results = dict(zip(self.outputs, self.decoder.run(None, feeds), strict=True))
            rows.append(results.pop("logits"))
            past = {name.replace("present", "past_key_values"): value for name, value in results.items()}
            start = stop
        return np.concatenate(rows, axis=1)
