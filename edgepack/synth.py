"""Random-weight checkpoints of official layout: to budget and time a device before one has the gated weights.

A full-size model has 4.5 billion values; fresh normals for all of them would take minutes. So one seeded block of
normals is written over and over, each tensor starting somewhere else in it. The block's length is a prime number,
larger than the rows of any model's tables are many: no row ever starts where another one did.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgepack.atomic_write import remove_leftovers
from edgepack.checkpoint.folder import INDEX_FILE, SINGLE_FILE, Checkpoint
from edgepack.checkpoint.safetensors import TensorInfo
from edgepack.errors import CheckpointError, EdgepackError
from edgepack.model.families import FAMILIES, family_of, read_spec
from edgepack.model.spec import ModelSpec
from edgepack.model.tensors import EMBEDDING, checkpoint_name
from edgepack.shown import printable
from edgepack.units import format_bytes

MAX_SHARD_BYTES = 4_000_000_000
MATRIX_STD = 0.02
_VECTOR_STD = 0.05
_BLOCK_VALUES = 4_194_301  # the largest prime below 2**22: 8.4 MB of bfloat16
_BYTES_PER_VALUE = 2
Shapes = dict[str, tuple[int, ...]]


class _Presets(Mapping[str, dict[str, Any]]):
    """Configs shipped as data files, read when asked for."""

    def __getitem__(self, name: str) -> dict[str, Any]:
        if name not in set(self):
            raise KeyError(name)
        config: dict[str, Any] = json.loads((_preset_folder() / f"{name}.json").read_text("utf-8"))
        return config

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(file.name.removesuffix(".json") for file in _preset_folder().iterdir()))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _preset_folder() -> Any:
    return resources.files("edgepack") / "presets"


PRESETS: Mapping[str, dict[str, Any]] = _Presets()


def synthetic_shapes(config: Mapping[str, Any]) -> Shapes:
    """Return name and shape of every tensor of the text model that `config` describes, named as in the checkpoint.

    KV-sharing layers get the key and value tensors that no decoder reads: official checkpoints have them too.

    Raises:
        CheckpointError: a key of `config` is missing or wrong.
        UnsupportedError: the model type is none of the known families.
    """
    spec = _read_spec(config)
    shapes = {checkpoint_name(spec, tensor.name): tensor.shape for tensor in family_of(spec).tensor_table(spec)}
    unused = family_of(spec).unneeded(spec)
    return shapes | {checkpoint_name(spec, name): shape for name, shape in unused.items()}


def _read_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read `config` as the checkpoint that is going to be written would be read."""
    model_type = str(config.get("model_type"))
    prefix = FAMILIES[model_type].prefixes[model_type] if model_type in FAMILIES else ""  # `read_spec` refuses it
    first = TensorInfo(prefix + EMBEDDING, "BF16", (), Path(SINGLE_FILE), 0, 0)
    return read_spec(Checkpoint(Path(), dict(config), {first.name: first}))


def write_synthetic_checkpoint(
    config: Mapping[str, Any],
    out: Path,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a bfloat16 checkpoint with random weights for `config` (the content of a config.json) into folder `out`.

    The same config and seed give the same bytes. Memory stays under 150 MB whatever the model's size, and `out` is
    whole or absent: everything goes to a folder beside it that is renamed at the end.

    Args:
        progress: called with the bytes written so far and the bytes in total.

    Raises:
        EdgepackError: `out` exists, its disk is too small or refuses to write, or `config` is not usable.
    """
    if seed < 0:
        raise EdgepackError(f"seed is {seed}: expected 0 or more")
    shapes = synthetic_shapes(config)
    total_bytes = sum(_size_bytes(shape) for shape in shapes.values())
    if os.path.lexists(out):
        raise EdgepackError(f"{out}: this already exists; choose another folder or remove it first")
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
        free_bytes = shutil.disk_usage(out.parent).free
        if free_bytes < total_bytes:
            raise EdgepackError(
                f"{out}: the weights need {format_bytes(total_bytes)}, the disk has {format_bytes(free_bytes)} free"
            )
        partial.mkdir()
        _write_json(partial / "config.json", dict(config))
        _write_json(partial / "generation_config.json", _generation_config(config))
        _write_shards(partial, shapes, _Weights(seed, config), progress or (lambda done, total: None))
        os.rename(partial, out)
    except OSError as error:
        raise EdgepackError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Weights:
    """The values of every tensor, as raw bfloat16, from one seed."""

    def __init__(self, seed: int, config: Mapping[str, Any]) -> None:
        self._seed = seed
        self._vector_mean = family_of(_read_spec(config)).unit_norm  # activations stay about as large
        normals = np.random.default_rng(seed).standard_normal(_BLOCK_VALUES, np.float32)
        self._block = _to_bfloat16(normals * np.float32(MATRIX_STD))

    def pieces(self, name: str, shape: tuple[int, ...]) -> Iterator[NDArray[np.uint16]]:
        """Yield the values of tensor `name` in order, in pieces of at most one block."""
        # Seeded by name, so a tensor's values do not depend on which other tensors the model has.
        rng = np.random.default_rng([self._seed, zlib.crc32(name.encode())])
        if len(shape) < 2:
            normals = rng.standard_normal(shape, np.float32)
            yield _to_bfloat16(np.float32(self._vector_mean) + normals * np.float32(_VECTOR_STD))
            return
        at, left = int(rng.integers(_BLOCK_VALUES)), math.prod(shape)
        while left:
            piece = self._block[at : at + left]
            yield piece
            left -= piece.size
            at = 0


def _to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to the nearest bfloat16, ties to even, as its raw bits."""
    bits = values.view(np.uint32)
    rounded: NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def _size_bytes(shape: tuple[int, ...]) -> int:
    return math.prod(shape) * _BYTES_PER_VALUE


def _split(shapes: Shapes) -> list[Shapes]:
    """Fill shards in order up to the limit; a tensor over the limit gets a shard of its own."""
    shards: list[Shapes] = [{}]
    filled = 0
    for name, shape in shapes.items():
        if shards[-1] and filled + _size_bytes(shape) > MAX_SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += _size_bytes(shape)
    return shards


def _write_shards(folder: Path, shapes: Shapes, weights: _Weights, progress: Callable[[int, int], None]) -> None:
    shards = _split(shapes)
    total_bytes = sum(_size_bytes(shape) for shape in shapes.values())
    done_bytes = 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(shard, file_name)
        with open(folder / file_name, "wb") as file:
            _write_header(file, shard)
            for name, shape in shard.items():
                for piece in weights.pieces(name, shape):
                    file.write(piece.data)
                    done_bytes += piece.nbytes
                    progress(done_bytes, total_bytes)
    if len(shards) > 1:
        _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})


def _write_header(file: BinaryIO, shapes: Shapes) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + _size_bytes(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data section aligned to 8 bytes
    file.write(len(text).to_bytes(8, "little") + text)


def _generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    text = config.get("text_config", {})
    found = {key: config.get(key, text.get(key)) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {key: value for key, value in found.items() if value is not None}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    try:
        path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
    except TypeError as error:
        raise CheckpointError(
            f"{path.name}: the config holds a value that JSON cannot express: {printable(str(error))}"
        ) from error
