"""The processes of a quality comparison, one after the other: tokenize, run the reference, run the package.

Run as ``python -m edgepack.validation.quality.worker`` with one of the jobs on stdin. The reference's logits go to an
open file that both models' processes inherit: exact float32, position by position, never two models in memory.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from edgepack.errors import EdgepackError
from edgepack.loading import load
from edgepack.package.folder import open_package
from edgepack.validation.processes.protocol import Channel, child_main
from edgepack.validation.quality.divergence import Logits, compare_positions, require_finite
from edgepack.validation.quality.jobs import (
    CompareJob,
    Model,
    QualityJob,
    ReferenceJob,
    TokenizeJob,
    require_ids,
    require_vocabulary,
    with_logits,
)
from edgepack_runtimes.base import require_tokens


def run(line: str, channel: Channel) -> None:
    """Do the job of `line`."""
    job: TokenizeJob | ReferenceJob | CompareJob = TypeAdapter(QualityJob).validate_json(line)
    if isinstance(job, TokenizeJob):
        tokenize(job, channel)
    elif isinstance(job, ReferenceJob):
        run_reference(job, channel)
    else:
        compare(job, channel)


def tokenize(job: TokenizeJob, channel: Channel) -> None:
    """Send each text with its ids, and in the end what the model is."""
    channel.begin("tokenize")
    with load(job.package, runtime=job.runtime, threads=job.threads) as model:
        codec, note = model.codec, None
        for text in job.texts:
            written = text.plain
            if text.messages is not None:
                try:
                    written = codec.render_chat(text.messages, add_generation_prompt=False)
                except EdgepackError as error:
                    note = f"{text.name}: in Gemma's plain turn format, since {error}"
            ids = codec.encode(written)
            channel.give(name=text.name, text=written, ids=ids)
        bos = codec.bos_token_id
        starts_with_bos = bos is not None and codec.encode("a")[:1] == [bos]
        facts: dict[str, Any] = {"vocab_size": model.vocab_size, "context_tokens": model.max_context_tokens}
        channel.give(**facts, bos=bos if starts_with_bos else None, note=note)


def run_reference(job: ReferenceJob, channel: Channel) -> None:
    """Write the logits of all compared positions."""
    channel.begin("reference load")
    if job.dtype is None:
        runtime = with_logits(open_package(job.path).manifest.plan.runtime)
        with load(job.path, runtime=runtime, threads=job.threads) as model:
            require_vocabulary(job, model.vocab_size)
            for probe in job.probes:
                require_ids(job, probe, model.codec.encode(probe.text))
            write_logits(job, require_tokens(model).logits, channel)
    else:
        from edgepack.validation.quality.transformers_reference import transformers_model

        write_logits(job, transformers_model(job), channel)


def write_logits(job: ReferenceJob, model: Model, channel: Channel) -> None:
    """Run piece by piece; only one piece's logits are in memory."""
    with os.fdopen(job.logits_fd, "wb", closefd=False) as file:
        for number, piece in enumerate(job.pieces, 1):
            channel.begin(f"reference {number}/{len(job.pieces)}")
            logits = np.ascontiguousarray(model(list(piece.ids[:-1]), piece.positions), np.float32)
            if logits.shape != (piece.positions, job.vocab_size):
                raise EdgepackError(
                    f"{job.path}: logits of shape {list(logits.shape)} for {piece.positions} positions and a "
                    f"vocabulary of {job.vocab_size}"
                )
            require_finite(logits, f"the reference {job.path}, text {piece.name}")
            file.write(logits.data)


def compare(job: CompareJob, channel: Channel) -> None:
    """Send the figures of every position, text by text."""
    channel.begin("package load")
    with load(job.package, runtime=job.runtime, threads=job.threads) as model:
        offset = 0
        for number, piece in enumerate(job.pieces, 1):
            channel.begin(f"package {number}/{len(job.pieces)}")
            logits = require_tokens(model).logits(piece.ids[:-1], piece.positions)
            require_finite(logits, f"the package {job.package}, text {piece.name}")
            reference = read_logits(job.logits_fd, offset, piece.positions, model.vocab_size)
            offset += reference.nbytes
            channel.give(name=piece.name, positions=compare_positions(reference, logits, piece.targets).model_dump())


def read_logits(fd: int, offset: int, positions: int, vocab_size: int) -> Logits:
    """Logits [N, V] at `offset` bytes of the file."""
    values = np.empty((positions, vocab_size), np.float32)
    room: Any = values.view(np.uint8).reshape(-1)
    done = 0
    while done < len(room):
        count = os.preadv(fd, [room[done:]], offset + done)
        if not count:
            raise EdgepackError("the file with the reference's logits is shorter than what was written to it")
        done += count
    return values


if __name__ == "__main__":
    sys.exit(child_main(run))
