"""Checkpoint folders written byte by byte, for the tests that open good and bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.checkpoint.folder import INDEX_FILE, open_checkpoint
from edgepack.errors import CheckpointError

Header = dict[str, Any]


def write_shard(path: Path, header: Header | bytes, data: bytes, length: int | None = None) -> None:
    """A safetensors file byte by byte; `length` overrides what its length field claims."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def entry(dtype: str, shape: list[int], begin: int, end: int) -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ONE = {"w": entry("F32", [2, 2], 0, 16)}
ONE_DATA = np.arange(4, dtype="<f4").tobytes()


def make_folder(path: Path) -> Path:
    """Make `path` a valid checkpoint with one float32 tensor `w` of shape [2, 2] and return it."""
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "gemma3_text"}')
    write_shard(path / "model.safetensors", ONE, ONE_DATA)
    return path


def sharded(folder: Path, weight_map: object = None) -> Path:
    """Replace the single file of `folder` by two shards with tensors `a` and `b` and an index."""
    (folder / "model.safetensors").unlink()
    for name, value in (("a", 1.0), ("b", 2.0)):
        write_shard(folder / f"{name}.safetensors", {name: entry("F32", [1], 0, 4)}, np.float32(value).tobytes())
    index = {"weight_map": weight_map if weight_map is not None else {"a": "a.safetensors", "b": "b.safetensors"}}
    (folder / INDEX_FILE).write_text(json.dumps(index))
    return folder


def refused(source: str | Path, *needles: str, **options: Any) -> str:
    """The message with which `source` is refused: one line that holds every one of `needles`."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(source, **options).close()
    message = str(caught.value)
    assert "\n" not in message
    for needle in needles:
        assert needle in message
    return message
