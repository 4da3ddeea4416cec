"""What a quality was measured against, by content: a path or a name does not tell whether it is still the same."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from edgepack.checkpoint.fingerprint import checkpoint_fingerprint
from edgepack.checkpoint.folder import open_checkpoint
from edgepack.errors import EdgepackError
from edgepack.package.folder import MANIFEST

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

    Of a package it is the sha256 of its manifest, which has the sha256 of every file; of a checkpoint
    `checkpoint_fingerprint`.

    Raises:
        EdgepackError: it is neither of them, or cannot be read.
    """
    folder = Path(reference)
    if os.path.isfile(folder / MANIFEST):
        return file_sha256(folder / MANIFEST)
    with open_checkpoint(str(reference)) as checkpoint:
        return checkpoint_fingerprint(checkpoint)
