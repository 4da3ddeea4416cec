"""A checkpoint folder or hub id, opened: every header checked, one tensor (or some of its rows) read at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.builtin import builtin_checkpoint
from edgepack.checkpoint.hub import download, is_hub_id, snapshot_origin
from edgepack.checkpoint.kind import ADAPTER_CONFIG, ADAPTER_WEIGHTS, what_is_in
from edgepack.checkpoint.safetensors import READABLE_DTYPES, SafetensorsFile, TensorInfo
from edgepack.errors import CheckpointError
from edgepack.reading import loads_object
from edgepack.shown import one_line, printable, shown
from edgepack.text.files import TEMPLATE_FOLDER, require_file

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# The index of a model with a million tensors has 0.1 GB.
MOST_JSON_BYTES = 100_000_000
_COMPARED_VALUES = 1 << 20
_SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "chat_template*",
    f"{TEMPLATE_FOLDER}/*.jinja",
    "special_tokens_map.json",
    "*processor_config.json",
)
_FILE_KINDS = {
    ".gguf": "a GGUF file, which holds quantized weights",
    ".litertlm": "a LiteRT model, which is converted already",
    ".task": "a LiteRT model, which is converted already",
    ".tflite": "a LiteRT model, which is converted already",
    ".onnx": "an ONNX model, which is converted already",
    ".safetensors": "a file of weights without its config.json",
    ".zip": "an archive",
    ".gz": "an archive",
    ".tgz": "an archive",
    ".tar": "an archive",
}


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """Where a checkpoint came from: hub repository and commit where they are known, and the folder."""

    repo_id: str | None
    revision: str | None
    path: str


class Checkpoint:
    """An open checkpoint; a context manager. No weight stays in memory after it was read.

    Attributes:
        path: the folder.
        config: the content of config.json, a JSON object.
        config_path: config.json itself, for messages.
        source: where the folder came from.
        tensors: every readable tensor by the name that the checkpoint gives it.
        skipped: the element type of every other tensor, by name.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        tensors: Mapping[str, TensorInfo],
        *,
        source: CheckpointSource | None = None,
        skipped: Mapping[str, str] | None = None,
        files: Mapping[Path, SafetensorsFile] | None = None,
    ) -> None:
        self.path = path
        self.config = config
        self.config_path = path / "config.json"
        self.source = source or CheckpointSource(None, None, str(path))
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(dict(tensors))
        self.skipped: Mapping[str, str] = MappingProxyType(dict(skipped or {}))
        self._files = dict(files or {})
        self._same: dict[tuple[str, str], bool] = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files of all shards. Harmless when called twice."""
        for file in self._files.values():
            file.close()

    def info(self, name: str) -> TensorInfo:
        """Return where tensor `name` lies.

        Raises:
            CheckpointError: the checkpoint has no such tensor, or only as integers.
        """
        info = self.tensors.get(name)
        if info is None:
            dtype = self.skipped.get(name)
            if dtype is not None:
                readable = ", ".join(READABLE_DTYPES)
                raise CheckpointError(
                    f"{self.path}: tensor {shown(name)} has dtype {dtype}, expected one of {readable}"
                )
            raise CheckpointError(
                f"{self.path}: tensor {shown(name)} is missing ({len(self.tensors):,} others are there); "
                "is the checkpoint complete, and does config.json belong to it?"
            )
        return info

    def require(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        """Return where tensor `name` lies after comparing its shape.

        Raises:
            CheckpointError: the tensor is missing or has another shape than `shape`.
        """
        info = self.info(name)
        if info.shape != tuple(shape):
            raise CheckpointError(
                f"{info.shard}: tensor {shown(name)} has shape {shown(list(info.shape))}, expected {list(shape)}; "
                "does config.json belong to these weights?"
            )
        return info

    def read(self, name: str) -> NDArray[np.float32]:
        """Return the whole tensor `name` as float32.

        Raises:
            CheckpointError: the tensor is missing, cannot be read or holds nan or inf.
        """
        info = self.info(name)
        values = np.empty(info.shape, np.float32)
        self._files[info.shard].read_values(info, 0, values.reshape(-1))
        return values

    def read_rows(
        self, name: str, start: int, stop: int, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Return rows `start` to `stop` of tensor `name` as float32 [stop - start, ...]. Safe to call from threads.

        Args:
            out: filled and returned if given: float32, contiguous, of exactly that shape.

        Raises:
            CheckpointError: as `read`; or the tensor has no such rows, or `out` does not fit.
        """
        info = self.info(name)
        if not info.shape or not 0 <= start <= stop <= info.shape[0]:
            raise CheckpointError(
                f"{info.shard}: tensor {shown(name)} of shape {shown(list(info.shape))} has no rows {start} to {stop}"
            )
        shape = (stop - start, *info.shape[1:])
        if out is None:
            out = np.empty(shape, np.float32)
        elif out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise CheckpointError(
                f"rows {start} to {stop} of tensor {shown(name)} need a contiguous float32 array of shape "
                f"{list(shape)}, got {out.dtype} {list(out.shape)}"
            )
        self._files[info.shard].read_values(info, start * math.prod(info.shape[1:]), out.reshape(-1))
        return out

    def same_values(self, one: str, other: str) -> bool:
        """Whether two matrices hold the same numbers, read a piece at a time up to the first difference, and once only.

        Raises:
            CheckpointError: one of them is missing, cannot be read or holds nan or inf.
        """
        key = (one, other)
        if key not in self._same:
            shape = self.info(one).shape
            step = max(1, _COMPARED_VALUES // max(1, math.prod(shape[1:])))
            self._same[key] = shape == self.info(other).shape and all(
                np.array_equal(
                    self.read_rows(one, start, min(start + step, shape[0])),
                    self.read_rows(other, start, min(start + step, shape[0])),
                )
                for start in range(0, shape[0] if shape else 0, step)
            )
        return self._same[key]

    def side_files(self) -> tuple[Path, ...]:
        """Return the configuration, tokenizer, template and processor files that exist, by name.

        Raises:
            CheckpointError: one of them is a link that leads out of the checkpoint, or has a name that no package
                takes.
        """
        found = {path for pattern in _SIDE_FILES for path in self.path.glob(pattern) if path.is_file()}
        for path in found:
            _inside(self.path, path)
            if not path.name.isprintable() or "\\" in path.name:
                raise CheckpointError(
                    f"{self.path}: the file {shown(path.name)} has a name that no package takes: rename or remove it"
                )
        return tuple(sorted(found))


def open_checkpoint(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: Path | None = None,
    offline: bool = False,
) -> Checkpoint:
    """Open a local folder, a model of the Hugging Face hub given as ``org/name``, or ``demo``, and check all headers.

    An existing folder wins over a hub id of the same spelling, and over ``demo``, the built-in checkpoint. No weight is
    read and no pickle is ever loaded.

    Args:
        revision: branch, tag or commit of the hub repository.
        token: hub access token; without it the library's own places (HF_TOKEN, `hf auth login`) count.
        cache_dir: where downloads are kept; default: the hub library's cache.
        offline: use what the cache has and touch no network; HF_HUB_OFFLINE=1 does the same.

    Raises:
        CheckpointError: the checkpoint cannot be found, read or trusted; the message says what and where.
    """
    repo_id = None
    path = builtin_checkpoint(source) or Path(source)
    if isinstance(source, str) and is_hub_id(source) and not os.path.exists(path):
        repo_id = source
        path = download(source, revision=revision, token=token, cache_dir=cache_dir, offline=offline)
    _require_folder(path)
    _require_checkpoint(path)
    config = _read_json_object(path, path / "config.json", "is this a Transformers checkpoint?")
    origin_id, commit = snapshot_origin(path)
    with ExitStack() as opened:
        tensors, skipped, files = _open_weights(path, opened)
        opened.pop_all()
    origin = CheckpointSource(repo_id or origin_id, commit, str(path))
    return Checkpoint(path, config, tensors, source=origin, skipped=skipped, files=files)


def _require_folder(path: Path) -> None:
    try:
        os.listdir(path)
    except (FileNotFoundError, ValueError) as error:  # ValueError: a name that no folder can have
        raise CheckpointError(
            f"{path}: no such folder; expected a checkpoint folder or a hub id such as google/gemma-3n-E2B-it, or demo"
        ) from error
    except NotADirectoryError as error:
        kind = _FILE_KINDS.get(path.suffix.lower(), "not a folder")
        raise CheckpointError(f"{path}: {kind}; expected the folder with config.json and safetensors files") from error
    except OSError as error:
        raise CheckpointError(f"{path}: the folder cannot be read: {error.strerror or error}") from error


def _open_weights(
    folder: Path, opened: ExitStack
) -> tuple[dict[str, TensorInfo], dict[str, str], dict[Path, SafetensorsFile]]:
    """Open the single file or all shards of the index; `opened` closes them again if one of them is refused."""

    def open_shard(path: Path) -> SafetensorsFile:
        file = SafetensorsFile(path, location=_inside(folder, path))
        opened.callback(file.close)
        return file

    if os.path.lexists(folder / SINGLE_FILE):
        file = open_shard(folder / SINGLE_FILE)
        return file.tensors, file.skipped, {file.path: file}
    if not os.path.lexists(folder / INDEX_FILE):
        raise CheckpointError(_why_no_weights(folder))
    listed = _read_index(folder)
    files = {path: open_shard(path) for path in listed}
    tensors: dict[str, TensorInfo] = {}
    skipped: dict[str, str] = {}
    for file in files.values():
        # All that the shards hold counts, as in Transformers, whatever the index says of single tensors.
        for name in (*file.tensors, *file.skipped):
            if name in tensors or name in skipped:
                raise CheckpointError(
                    f"{file.path}: tensor {shown(name)} is in another shard as well, and which one is right cannot be "
                    "told: save the checkpoint again"
                )
        tensors |= file.tensors
        skipped |= file.skipped
    return tensors, skipped, files


def _read_index(folder: Path) -> list[Path]:
    """Return the shards that the index lists, by name."""
    index_path = folder / INDEX_FILE
    weight_map = _read_json_object(folder, index_path, "download it again").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path}: key 'weight_map' is missing: expected tensor names with their files")
    shards: set[Path] = set()
    for name, entry in weight_map.items():
        where = f"{index_path}: tensor {shown(name)}"
        if not isinstance(entry, str) or not entry:
            raise CheckpointError(f"{where}: expected a file name, got {shown(entry)}")
        if entry.startswith("/") or "\\" in entry or "\0" in entry or ".." in PurePosixPath(entry).parts:
            raise CheckpointError(f"{where} points to {shown(entry)}, outside the folder; refused")
        shards.add(folder / entry)
    for path in sorted(shards):
        if not os.path.exists(path):  # unlike Path.exists it answers for names that the system refuses
            raise CheckpointError(
                f"{printable(str(path))}: this shard is missing, {INDEX_FILE} lists it; finish the download"
            )
    return sorted(shards)


def _inside(folder: Path, path: Path) -> Path:
    """Return the real file behind `path`, a name inside `folder`.

    Links may stay in the folder or, in a snapshot of the hub cache, lead to the blobs of the same repository: a
    downloaded index or archive must not make edgepack read, or copy into a package, some other file of the machine.
    """
    root = folder.resolve()
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    try:
        real = path.resolve(strict=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: a link to nothing; finish or repeat the download") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not any(real.is_relative_to(place) for place in allowed):
        raise CheckpointError(f"{path}: a link to {real}, outside the checkpoint folder; refused, copy the file there")
    return real


def _read_json_object(folder: Path, path: Path, hint: str) -> dict[str, Any]:
    if not os.path.lexists(path):
        raise CheckpointError(f"{path}: this file is missing; {hint}")
    try:
        real = _inside(folder, path)
        require_file(path, MOST_JSON_BYTES, error=CheckpointError, way_out="download it again")
        return loads_object(real.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {one_line(error)}") from error


def _why_no_weights(folder: Path) -> str:
    """Say what the folder has instead of safetensors, and the way from there."""
    start = f"{folder}: no {SINGLE_FILE} and no {INDEX_FILE}"
    if said := what_is_in(folder):
        return f"{start}, {said}"
    name = next((name for name in sorted(os.listdir(folder)) if name.endswith(".safetensors")), None)
    if name is not None:
        return f"{start}, only {printable(name)}: download the index as well, or rename a single file to {SINGLE_FILE}"
    return f"{start}; expected the weights as safetensors"


def _require_checkpoint(folder: Path) -> None:
    """Refuse what is no checkpoint, or not this one alone, by what it is: config.json is the least that is missing."""
    if not os.path.lexists(folder / "config.json"):
        if said := what_is_in(folder):
            raise CheckpointError(f"{folder}: no config.json, {said}")
        raise CheckpointError(f"{folder / 'config.json'}: this file is missing; is this a Transformers checkpoint?")
    for name in ADAPTER_WEIGHTS:
        # Transformers with peft loads the base model that the adapter names, and not what stands beside it.
        if os.path.lexists(folder / name) and os.path.lexists(folder / ADAPTER_CONFIG) and _has_weights(folder):
            raise CheckpointError(
                f"{folder}: both a model and an adapter ({name}), so which model is meant cannot be told: merge the "
                f"adapter (peft: merge_and_unload), or move {ADAPTER_CONFIG} and {name} away if that was done"
            )


def _has_weights(folder: Path) -> bool:
    return any(os.path.lexists(folder / name) for name in (SINGLE_FILE, INDEX_FILE))


def opened(checkpoint: str | Path | Checkpoint) -> AbstractContextManager[Checkpoint]:
    """`checkpoint` itself where it is open already; it then stays open."""
    return nullcontext(checkpoint) if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
