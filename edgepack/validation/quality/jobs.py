"""What a quality comparison tells its three processes, and what they may be refused for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from edgepack.errors import EdgepackError
from edgepack.loading import RUNTIMES
from edgepack.planning.backends import runtime_named
from edgepack.shown import shown
from edgepack.validation.quality.divergence import Logits
from edgepack.validation.quality.texts import Piece, Text
from edgepack.values import Frozen

DType = Literal["float32", "bfloat16"]
Model = Callable[[list[int], int], Logits]  # S token ids, N -> logits [N, V] of the last N positions


class TokenizeJob(Frozen):
    """Texts to token ids, by the package's own tokenizer and chat template."""

    step: Literal["tokenize"] = "tokenize"
    package: str
    runtime: str | None
    threads: int | None
    texts: tuple[Text, ...]


class Probe(Frozen):
    """A text as the package's tokenizer read it, for a reference that has another tokenizer file."""

    text: str
    ids: tuple[int, ...]


class ReferenceJob(Frozen):
    """Logits of the reference to a file.

    Attributes:
        dtype: of weights and activations, for a checkpoint; None for a package.
        logits_fd: an open file that is written from its beginning.
        probes: compared with the reference's own tokenizer; empty where the files are the same.
    """

    step: Literal["reference"] = "reference"
    path: str
    dtype: DType | None
    threads: int | None
    vocab_size: int
    pieces: tuple[Piece, ...]
    logits_fd: int
    probes: tuple[Probe, ...] = ()


class CompareJob(Frozen):
    """The package against the logits in a file."""

    step: Literal["compare"] = "compare"
    package: str
    runtime: str | None
    threads: int | None
    pieces: tuple[Piece, ...]
    logits_fd: int


QualityJob = Annotated[TokenizeJob | ReferenceJob | CompareJob, Field(discriminator="step")]


def with_logits(runtime: str) -> str:
    """`runtime`, or the one that gives the logits of the same models where it gives none itself."""
    return RUNTIMES[runtime_named(runtime)].logits_from or runtime


def require_vocabulary(job: ReferenceJob, vocab_size: int) -> None:
    """Refuse a reference whose tokens are others."""
    if vocab_size != job.vocab_size:
        raise EdgepackError(
            f"the reference {job.path} has a vocabulary of {vocab_size:,} tokens, the package of {job.vocab_size:,}: "
            "compare with the checkpoint that the package was exported from, or with a package of it"
        )


def require_ids(job: ReferenceJob, probe: Probe, ids: list[int]) -> None:
    """Refuse a reference whose tokenizer reads a text otherwise."""
    if tuple(ids) != probe.ids:
        raise EdgepackError(
            f"the tokenizer of the reference {job.path} is not the package's: it reads the text "
            f"{shown(probe.text, 40)} as other tokens; compare with the checkpoint that the package was exported from"
        )
