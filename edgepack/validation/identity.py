"""What a quality was measured against, by content: a path or a name does not tell whether it is still the same."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from edgepack.checkpoint.folder import Checkpoint, open_checkpoint
from edgepack.errors import EdgepackError
from edgepack.package.folder import MANIFEST

SAMPLE_BYTES = 64
SHOWN_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Identity:
    """Content with the name that people know it by; equal where the content is."""

    sha256: str
    name: str = field(compare=False)

    def __str__(self) -> str:
        return f"{self.name} (sha256 {self.sha256[:SHOWN_DIGITS]})"


def file_sha256(file: Path) -> str:
    """The sha256 of `file`.

    Raises:
        EdgepackError: it cannot be read.
    """
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise EdgepackError(f"{file}: cannot be read: {error.strerror or error}") from error


def reference_fingerprint(reference: str | Path) -> str:
    """A fingerprint of a package or a checkpoint: a folder, or a hub id.

    Of a package it is the sha256 of its manifest, which has the sha256 of every file. A checkpoint of many GB is not
    read for it: it is the sha256 of config.json and, of every tensor by name, type, shape and the bytes in its middle.
    A merged adapter or a fine-tune changes whole tensors, so it changes these; a change of single weights elsewhere is
    not seen.

    Raises:
        EdgepackError: it is neither of them, or cannot be read.
    """
    folder = Path(reference)
    if os.path.isfile(folder / MANIFEST):
        return file_sha256(folder / MANIFEST)
    with open_checkpoint(str(reference)) as checkpoint:
        try:
            return _checkpoint_fingerprint(checkpoint)
        except OSError as error:
            raise EdgepackError(f"{checkpoint.path}: cannot be read: {error.strerror or error}") from error


def _checkpoint_fingerprint(checkpoint: Checkpoint) -> str:
    digest = hashlib.sha256(checkpoint.config_path.read_bytes())
    with ExitStack() as opened:
        # Unbuffered: some bytes of each tensor are wanted, not the pages around them.
        files = {
            shard: opened.enter_context(shard.open("rb", buffering=0))
            for shard in {info.shard for info in checkpoint.tensors.values()}
        }
        for name, info in sorted(checkpoint.tensors.items()):
            digest.update(f"{name} {info.dtype} {list(info.shape)}\n".encode())
            size = min(SAMPLE_BYTES, info.size_bytes)
            files[info.shard].seek(info.offset_bytes + (info.size_bytes - size) // 2)
            digest.update(files[info.shard].read(size))
    return digest.hexdigest()
