"""What tells one checkpoint from another without reading all of it."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack

from edgepack.checkpoint.folder import Checkpoint
from edgepack.errors import CheckpointError

SAMPLE_BYTES = 64


def checkpoint_fingerprint(checkpoint: Checkpoint) -> str:
    """The sha256 of config.json and, of every tensor by name, of its type, shape and the bytes in its middle.

    A checkpoint of many GB is not read for it. A merged adapter or a fine-tune changes whole tensors, so it changes
    these; a change of single weights elsewhere is not seen.

    Raises:
        CheckpointError: a file of it cannot be read.
    """
    try:
        return _fingerprint(checkpoint)
    except OSError as error:
        raise CheckpointError(f"{checkpoint.path}: cannot be read: {error.strerror or error}") from error


def _fingerprint(checkpoint: Checkpoint) -> str:
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
