"""Quality of a package against a reference: KL, top-1 agreement and perplexity on the same positions of the same texts.

Three processes, one after the other: the package's runtime tokenizes, the reference runs and leaves its logits in a
file, the package runs and is compared. See docs/quality.md for what the figures mean.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import psutil

from edgepack.checkpoint.folder import open_checkpoint
from edgepack.errors import EdgepackError
from edgepack.install import not_installed
from edgepack.package.folder import MANIFEST, Package, open_package
from edgepack.system.threads import require_threads
from edgepack.units import format_bytes
from edgepack.user_folders import require_utf8
from edgepack.validation.identity import Identity, reference_fingerprint, texts_sha256
from edgepack.validation.processes.helper import Answer, FailedRunError, OnPhase, ask, check_timeout
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
from edgepack.validation.quality.texts import BUILTIN, Piece, builtin_texts, cut_file, cut_texts, read_text
from edgepack.validation.result import QualityReport

# For each of the three processes. A checkpoint of 10 GB is read from disk, and a small board takes its time.
DEFAULT_TIMEOUT_S = 3600.0
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
    package: str | Path,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    reference: str | Path,
    text: Path | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    on_phase: OnPhase = lambda phase: None,
) -> QualityReport:
    """Compare `package` with `reference`, position by position.

    Args:
        runtime: as in `edgepack.load`; LiteRT-LM gives no logits, so the same models run in LiteRT.
        reference: a checkpoint folder or hub id, which Transformers runs in float32 where the memory allows, or the
            folder of another package, which its own runtime runs.
        text: a UTF-8 file in place of the built-in texts.
        timeout_s: limit for each of the three processes.
        on_phase: called with ``tokenize``, ``reference load``, ``reference 1/14``, ..., ``package load``, ...

    Raises:
        FailedRunError: the package died, hung or gave logits that are not finite, which is a result of its own.
        EdgepackError: an input is not usable, the two cannot be compared, or the reference did not run.
    """
    check_timeout("timeout_s", timeout_s)
    require_threads(threads)
    opened = open_package(package)
    require_tokenizer(opened)
    texts = builtin_texts() if text is None else (read_text(text),)
    notes = []
    asked_for = runtime or opened.manifest.plan.runtime
    runtime = with_logits(asked_for)
    if runtime != asked_for:
        notes.append("LiteRT-LM gives no logits: the same models were compared in the runtime litert")
    job = TokenizeJob(package=str(opened.path.resolve()), runtime=runtime, threads=threads, texts=texts)
    whose = f"the package {package} did not run"
    asked = ask(WORKER, job, whose=whose, timeout_s=timeout_s, on_phase=on_phase)
    tokens = _tokens(asked, job, whole_file=text is not None)
    found = open_reference(reference, tokens)
    tokens = _without_needless_probes(tokens, opened.path, found)
    with _logits_file(tokens) as logits:
        to_reference, to_package = _jobs(job, found, tokens, logits.fileno())
        ran = _ask_reference(found, to_reference, timeout_s=timeout_s, on_phase=on_phase)
        answer = ask(WORKER, to_package, whose=whose, timeout_s=timeout_s, on_phase=on_phase, files=[logits.fileno()])
    parts = _positions(answer, tokens.pieces, whose)
    notes += [*found.notes, *tokens.notes, _cost("reference", ran), _cost("package", answer)]
    said = Identity(texts_sha256(texts), BUILTIN if text is None else str(text))
    return _report(found, said, parts, notes)


def _ask_reference(found: Reference, job: ReferenceJob, *, timeout_s: float, on_phase: OnPhase) -> Answer:
    """Run the reference. Whatever stops it, the package is not to blame: there is nothing to judge it by."""
    whose = f"the reference {found.name} did not run, so there is nothing to compare with"
    try:
        return ask(WORKER, job, whose=whose, timeout_s=timeout_s, on_phase=on_phase, files=[job.logits_fd])
    except FailedRunError as error:
        raise EdgepackError(str(error)) from error


def _positions(answer: Answer, pieces: Sequence[Piece], whose: str) -> dict[str, Positions]:
    """The figures of every piece, by its name."""
    names, wanted = [message["name"] for message in answer.messages], [piece.name for piece in pieces]
    if names != wanted:
        raise FailedRunError(f"{whose} to its end: {len(names)} of {len(wanted)} texts were compared")
    return {message["name"]: Positions.model_validate(message["positions"]) for message in answer.messages}


def require_tokenizer(package: Package) -> None:
    """Raise `EdgepackError` unless `package` can read text."""
    if not (package.path / "tokenizer.json").is_file():
        raise EdgepackError(
            f"{package.path}: this package has no tokenizer (tokenizer.json), so it can read no text: put "
            "tokenizer.json beside the checkpoint's weights and export again"
        )


def open_reference(reference: str | Path, tokens: Tokens) -> Reference:
    """Find the reference and choose its numbers; nothing of it is loaded.

    Raises:
        EdgepackError: it is neither a package nor a checkpoint, its libraries are missing, or it does not fit into the
            free memory.
    """
    name, folder = str(reference), Path(reference)
    if os.path.isfile(folder / MANIFEST):
        open_package(folder)
        return Reference(name, folder.resolve(), None)
    require_reference_libraries()
    with open_checkpoint(name) as checkpoint:
        elements = sum(prod(info.shape) for info in checkpoint.tensors.values())
        place = checkpoint.path.resolve()
    require_utf8(place, "the reference")
    longest = max(piece.positions for piece in tokens.pieces)
    # The logits of a piece as they come from the model, and once more in float32.
    work = REFERENCE_BASE_BYTES + 2 * 4 * longest * tokens.vocab_size
    dtype, notes = choose_dtype(name, elements, work, psutil.virtual_memory().available)
    return Reference(name, place, dtype, notes)


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


def _tokens(answer: Answer, job: TokenizeJob, *, whole_file: bool) -> Tokens:
    """The answer of the process that tokenized, cut to what is compared."""
    if len(answer.messages) != len(job.texts) + 1:  # the last one says what the model is
        raise FailedRunError(f"the package {job.package} did not tokenize all of the {len(job.texts)} texts")
    *texts, facts = answer.messages
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


def _cost(name: str, answer: Answer) -> str:
    memory = "" if answer.peak_rss_bytes is None else f", peak RSS {format_bytes(answer.peak_rss_bytes)}"
    return f"the {name} took {answer.duration_s:.1f} s{memory}"


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
