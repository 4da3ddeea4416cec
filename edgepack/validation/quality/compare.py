"""Quality of a package against a reference: KL, top-1 agreement and perplexity on the same positions of the same texts.

Three processes, one after the other: the package's runtime tokenizes, the reference runs and leaves its logits in a
file, the package runs and is compared. See docs/quality.md for what the figures mean.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, prod
from pathlib import Path
from typing import IO, Any

import psutil

from edgepack.checkpoint.folder import open_checkpoint
from edgepack.errors import EdgepackError, not_installed
from edgepack.package.folder import MANIFEST, Package, open_package
from edgepack.units import format_bytes
from edgepack.user_folders import require_utf8
from edgepack.validation.identity import Identity, reference_fingerprint
from edgepack.validation.processes.helper import HelperOutput, run_helper
from edgepack.validation.processes.protocol import FailedRunError, OnPhase
from edgepack.validation.quality.divergence import (
    NEAR_TIE_NATS,
    Positions,
    joined,
    mean,
    p99,
    perplexity,
    perplexity_ratio,
    share,
    text_quality,
)
from edgepack.validation.quality.jobs import CompareJob, DType, Probe, ReferenceJob, TokenizeJob, with_logits
from edgepack.validation.quality.overlap import overlap_notes
from edgepack.validation.quality.texts import (
    BUILTIN,
    Piece,
    Text,
    builtin_texts,
    cut_file,
    cut_texts,
    read_text,
    texts_sha256,
)
from edgepack.validation.result import QualityReport
from edgepack.validation.settings import QualityRequest

# Python, torch and Transformers themselves, and the activations of one piece.
REFERENCE_BASE_BYTES = 1_000_000_000
WORKER = "edgepack.validation.quality.worker"
FREE_DISK_BYTES = 200_000_000


@dataclass(frozen=True, slots=True)
class Reference:
    """What the package is compared with.

    Attributes:
        name: as the user gave it.
        folder: where it is.
        dtype: a checkpoint's numbers in Transformers; None for a package.
        notes: what to know about it.
    """

    name: str
    folder: Path
    dtype: DType | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tokens:
    """The texts as tokens of the package."""

    pieces: tuple[Piece, ...]
    probes: tuple[Probe, ...]
    vocab_size: int
    notes: tuple[str, ...]


def compare_quality(
    package: Package, asked: QualityRequest, *, on_phase: OnPhase = lambda phase: None
) -> QualityReport:
    """Compare `package` with the reference that is asked for, position by position.

    LiteRT-LM gives no logits, so the same models run in LiteRT. A checkpoint runs in Transformers, in float32 where the
    memory allows, a package in its own runtime.

    Args:
        on_phase: called with ``tokenize``, ``reference load``, ``reference 1/21``, ..., ``package load``, ...

    Raises:
        FailedRunError: the package died, hung or gave logits that are not finite, which is a result of its own.
        EdgepackError: an input is not usable, the two cannot be compared, or the reference did not run.
    """
    assert asked.reference is not None  # nothing is compared without one
    require_tokenizer(package)
    texts = builtin_texts() if asked.text is None else (read_text(asked.text),)
    asked_for = package.runtime(asked.runtime)
    runtime, notes = with_logits(asked_for), []
    if runtime != asked_for:
        notes.append("LiteRT-LM gives no logits: the same models were compared in the runtime litert")
    folder = str(package.path.resolve())
    job = TokenizeJob(package=folder, runtime=runtime, threads=asked.used_threads, texts=texts)
    run = partial(run_helper, WORKER, timeout_s=asked.timeout_s, on_phase=on_phase)
    whose = f"the package {package.path} did not run"
    tokens = _tokens(run(job, whose=whose), job, whole_file=asked.text is not None)
    notes += overlap_notes(package.manifest, _judged(texts, tokens))
    found = open_reference(asked.reference, tokens)
    tokens = _without_needless_probes(tokens, package.path, found)
    with _logits_file(tokens) as logits:
        to_reference, to_package = _jobs(job, found, tokens, logits.fileno())
        ran = _run_reference(found, partial(run, to_reference, files=[logits.fileno()]))
        output = run(to_package, whose=whose, files=[logits.fileno()])
    parts = _positions(output, tokens.pieces, whose)
    notes += [*found.notes, *tokens.notes, _cost("reference", ran), _cost("package", output)]
    source = Identity(texts_sha256(texts), BUILTIN if asked.text is None else str(asked.text))
    return _report(found, source, parts, notes)


def _run_reference(found: Reference, run: Callable[..., HelperOutput]) -> HelperOutput:
    """Run the reference. Whatever stops it, the package is not to blame: there is nothing to judge it by."""
    try:
        return run(whose=f"the reference {found.name} did not run, so there is nothing to compare with")
    except FailedRunError as error:
        raise EdgepackError(str(error)) from error


def _positions(output: HelperOutput, pieces: Sequence[Piece], whose: str) -> dict[str, Positions]:
    """The figures of every piece, by its name."""
    names, wanted = [result["name"] for result in output.results], [piece.name for piece in pieces]
    if names != wanted:
        raise FailedRunError(f"{whose} to its end: {len(names)} of {len(wanted)} texts were compared")
    return {result["name"]: Positions.model_validate(result["positions"]) for result in output.results}


def require_tokenizer(package: Package) -> None:
    """Raise `EdgepackError` unless `package` can read text."""
    if not (package.path / "tokenizer.json").is_file():
        raise EdgepackError(
            f"{package.path}: this package has no tokenizer (tokenizer.json), so it can read no text: put "
            "tokenizer.json beside the checkpoint's weights and export again"
        )


def open_reference(reference: str, tokens: Tokens) -> Reference:
    """Find the reference and choose its numbers; nothing of it is loaded.

    Raises:
        EdgepackError: it is neither a package nor a checkpoint, its libraries are missing, or it does not fit into the
            free memory.
    """
    folder = Path(reference)
    if os.path.isfile(folder / MANIFEST):
        open_package(folder)
        return Reference(reference, folder.resolve(), None)
    require_reference_libraries()
    with open_checkpoint(reference) as checkpoint:
        elements = sum(prod(info.shape) for info in checkpoint.tensors.values())
        place = checkpoint.path.resolve()
    require_utf8(place, "the reference")
    longest = max(piece.positions for piece in tokens.pieces)
    # The logits of a piece as they come from the model, and once more in float32.
    work = REFERENCE_BASE_BYTES + 2 * 4 * longest * tokens.vocab_size
    dtype, notes = choose_dtype(reference, elements, work, psutil.virtual_memory().available)
    return Reference(reference, place, dtype, notes)


def require_reference_libraries() -> None:
    """Raise `EdgepackError` unless what runs a checkpoint is installed."""
    for library in ("torch", "transformers"):
        if importlib.util.find_spec(library) is None:
            raise EdgepackError(
                f"{not_installed(library, 'reference')}; or give a package of the checkpoint (recipe fp32) as the "
                "reference"
            )


def choose_dtype(name: str, elements: int, work_bytes: int, free_bytes: int) -> tuple[DType, tuple[str, ...]]:
    """The widest numbers in which `elements` weights fit into the free memory, and a note where it is not float32.

    Raises:
        EdgepackError: not even bfloat16 fits.
    """
    exact, short = 4 * elements + work_bytes, 2 * elements + work_bytes
    if exact <= free_bytes:
        return "float32", ()
    if short <= free_bytes:
        note = (
            f"the reference ran in bfloat16, since float32 needs {format_bytes(exact)} and {format_bytes(free_bytes)} "
            "were free; its own rounding is part of the figures (for Gemma 3 270M a mean KL of 0.002)"
        )
        return "bfloat16", (note,)
    raise EdgepackError(
        f"the reference {name} needs {format_bytes(exact)} in float32 and {format_bytes(short)} in bfloat16, and "
        f"{format_bytes(free_bytes)} of memory are free: give a package of it (recipe fp32 or int8) as the reference"
    )


def _tokens(output: HelperOutput, job: TokenizeJob, *, whole_file: bool) -> Tokens:
    """The answer of the process that tokenized, cut to what is compared."""
    if len(output.results) != len(job.texts) + 1:  # the last one says what the model is
        raise FailedRunError(f"the package {job.package} did not tokenize all of the {len(job.texts)} texts")
    *texts, facts = output.results
    read = [Piece(name=text["name"], ids=tuple(text["ids"])) for text in texts]
    if whole_file:
        pieces, notes = cut_file(read[0], facts["bos"], facts["context_tokens"])
    else:
        pieces, notes = cut_texts(read, facts["context_tokens"])
    if not pieces:
        raise EdgepackError(f"{read[0].name}: the text has {len(read[0].ids)} tokens, too few to compare anything")
    if facts["note"] is not None:
        notes.append(facts["note"])
    probes = tuple(Probe(text=text["text"], ids=tuple(text["ids"])) for text in texts)
    return Tokens(tuple(pieces), probes, facts["vocab_size"], tuple(notes))


def _judged(texts: Sequence[Text], tokens: Tokens) -> list[Text]:
    """The texts as far as they are compared: of a long file that is about the beginning."""
    if len(texts) > 1:
        return list(texts)
    used = sum(len(piece.ids) for piece in tokens.pieces) / max(1, len(tokens.probes[0].ids))
    return [Text(name=texts[0].name, text=texts[0].said[: ceil(used * len(texts[0].said))])]


def _without_needless_probes(tokens: Tokens, package: Path, reference: Reference) -> Tokens:
    """`tokens` without the texts that compare two tokenizers, where the files are the same or there is only one.

    A reference without a tokenizer is none the worse: both models are given the package's tokens, and another
    vocabulary is refused. Weights that were trained on other tokens of the same number show in the KL.
    """
    ours, theirs = package / "tokenizer.json", reference.folder / "tokenizer.json"
    notes = tokens.notes
    if not theirs.is_file():
        notes = (*notes, "the reference has no tokenizer.json: only the size of its vocabulary could be compared")
    elif ours.stat().st_size != theirs.stat().st_size or ours.read_bytes() != theirs.read_bytes():
        return tokens
    return Tokens(tokens.pieces, (), tokens.vocab_size, notes)


def _logits_file(tokens: Tokens) -> IO[bytes]:
    """An open file without a name: whatever happens, the disk is free again with the last process that holds it.

    In TMPDIR where it is set, else in /var/tmp: /tmp is memory on many systems.
    """
    needed = 4 * tokens.vocab_size * sum(piece.positions for piece in tokens.pieces)
    stable = Path("/var/tmp")
    folder = tempfile.gettempdir() if "TMPDIR" in os.environ or not os.access(stable, os.W_OK) else str(stable)
    free = shutil.disk_usage(folder).free
    if free < needed + FREE_DISK_BYTES:
        raise EdgepackError(
            f"the logits of the reference need {format_bytes(needed)} in {folder}, {format_bytes(free)} are free: "
            "make room, or set TMPDIR to a folder that has it"
        )
    return tempfile.TemporaryFile(dir=folder, buffering=0)


def _jobs(job: TokenizeJob, reference: Reference, tokens: Tokens, fd: int) -> tuple[ReferenceJob, CompareJob]:
    shared: dict[str, Any] = {"threads": job.threads, "pieces": tokens.pieces, "logits_fd": fd}
    first = ReferenceJob(
        path=str(reference.folder),
        dtype=reference.dtype,
        vocab_size=tokens.vocab_size,
        probes=tokens.probes,
        **shared,
    )
    return first, CompareJob(package=job.package, runtime=job.runtime, **shared)


def _cost(name: str, output: HelperOutput) -> str:
    memory = "" if output.peak_rss_bytes is None else f", peak RSS {format_bytes(output.peak_rss_bytes)}"
    return f"the {name} took {output.duration_s:.1f} s{memory}"


def _report(reference: Reference, texts: Identity, parts: dict[str, Positions], notes: Sequence[str]) -> QualityReport:
    whole = joined(parts.values())
    return QualityReport(
        reference=reference.name,
        reference_kind="package" if reference.dtype is None else "transformers",
        reference_sha256=reference_fingerprint(reference.folder),
        reference_dtype=reference.dtype,
        text_set=texts.name,
        text_sha256=texts.sha256,
        tokens=len(whole.kl),
        kl_mean=mean(whole.kl),
        kl_p99=p99(whole.kl),
        top1_agreement=share(whole.agreement),
        strict_agreement=share(whole.same),
        near_ties=sum(whole.near_tie),
        near_tie_nats=NEAR_TIE_NATS,
        perplexity=perplexity(whole.loss),
        reference_perplexity=perplexity(whole.reference_loss),
        perplexity_ratio=perplexity_ratio(whole),
        texts=tuple(text_quality(name, positions) for name, positions in parts.items()),
        notes=tuple(notes),
    )
