"""A calibration: sequences of a text go through a checkpoint one layer at a time, and leave statistics in a file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar

import numpy as np

from edgepack.calibration.collecting import (
    BLOCK_COLUMNS,
    FIRST_WEIGHT,
    CollectingOps,
    HeldWeights,
    Scratch,
    Sums,
    combine,
)
from edgepack.calibration.file import open_calibration
from edgepack.calibration.inputs import ProductInput, input_map, stages_of, trace_inputs
from edgepack.calibration.layout import Header, lay_out, spec_sha256
from edgepack.calibration.second_moments import blocks_of, write_block
from edgepack.calibration.sequences import Sequences, read_sequences
from edgepack.calibration.texts import BUILTIN
from edgepack.calibration.work import Job, Work, open_work, remove_finished
from edgepack.calibration.writer import CalibrationWriter
from edgepack.checkpoint.fingerprint import checkpoint_fingerprint
from edgepack.checkpoint.folder import Checkpoint, opened
from edgepack.errors import EdgepackError
from edgepack.model.families import family_of
from edgepack.model.families.base import DecoderState, head_name
from edgepack.model.read import read_model
from edgepack.model.spec import ModelSpec
from edgepack.shown import printable
from edgepack.system.peak_memory import PeakWatch
from edgepack.system.process_memory import sample_memory
from edgepack.system.threads import available_cores, one_blas_thread, require_threads
from edgepack.units import format_bytes
from edgepack.user_folders import require_utf8
from edgepack.values import FloatArray
from edgepack.version import __version__

SUFFIX = ".calibration.safetensors"
# What is done, what there is in all, and what runs.
Progress = Callable[[float, float, str], None]
T = TypeVar("T")
HIDDEN, PER_LAYER, KEYS = "hidden", "per_layer", "keys"


@dataclass(frozen=True, slots=True)
class CalibrationRun:
    """A finished calibration.

    Attributes:
        path: the file.
        header: what it says of itself.
        size_bytes: of the file.
        peak_rss_bytes: the most memory that this process had.
    """

    path: Path
    header: Header
    size_bytes: int
    peak_rss_bytes: int


def calibrate(
    checkpoint: str | Path | Checkpoint,
    *,
    out: str | Path,
    text: str | Path = BUILTIN,
    tokens: int | None = None,
    sequence: int | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    reuse: bool = False,
    progress: Progress = lambda done, total, phase: None,
) -> CalibrationRun:
    """Collect statistics of what every matrix of `checkpoint` is multiplied with, and write them to one file.

    A run that was ended in any way goes on behind its last whole layer when it is asked for again; what it has so far
    is in `<file>.partial`. The bytes of the file depend on checkpoint, text, `tokens` and `sequence` alone.

    Args:
        out: the file, or a folder that is there, in which it gets the name of the checkpoint.
        text: ``builtin``, or a file of UTF-8.
        tokens: how many to run, at most; by default 16,384, or what the text has.
        sequence: how many of them at once; by default 512, or the context of the model.
        threads: by default one a core.
        overwrite: replace an existing file, or begin again where an unfinished run had other settings.
        reuse: take an existing file as it is where it is of the same checkpoint, text and numbers.
        progress: called with what is done, what there is in all, and what runs.

    Raises:
        EdgepackError: unusable input, an existing file, a text that is too short, activations that are not finite, a
            full disk, or another process that writes the same file.
    """
    require_threads(threads)
    with opened(checkpoint) as source:
        spec = read_model(source)
        file = output_file(out, source)
        if not reuse:
            refuse_output(file, overwrite=overwrite)
        sequences = read_sequences(source, spec, text, tokens, sequence)
        inputs = trace_inputs(spec)
        job = _job(source, spec, sequences, inputs)
        collection = _Collection(source, spec, sequences, inputs, threads, progress)
        with PeakWatch() as watch:
            if not (reuse and _is_done(file, job)):
                _write(file, collection, job, overwrite)
    return CalibrationRun(file, job.header, file.stat().st_size, watch.peak_bytes)


def output_file(out: str | Path, checkpoint: Checkpoint) -> Path:
    """The file that `out` means: itself, or one with the name of `checkpoint` in a folder that is there.

    Raises:
        EdgepackError: its name is not UTF-8 or none that a file can have.
    """
    path = Path(out)
    require_utf8(path, "the output")
    try:
        path.resolve()
        if not path.is_dir():
            return path
        name = checkpoint.source.repo_id or checkpoint.path.resolve().name
        return path / f"{name.rpartition('/')[2]}{SUFFIX}"
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or printable(str(error))
        raise EdgepackError(f"output {printable(str(out))} cannot be written: {reason}; choose another") from error


def refuse_output(file: Path, *, overwrite: bool) -> None:
    """Raise EdgepackError if `file` may not be replaced."""
    try:
        remove_finished(file.resolve())
        mode = os.stat(file).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise EdgepackError(f"output {file} cannot be written: {error.strerror}; choose another") from error
    if not S_ISREG(mode):
        raise EdgepackError(f"output {file} is not a regular file: choose another")
    if not overwrite:
        raise EdgepackError(f"output {file} exists: choose another, or pass --overwrite to replace it")


def _is_done(file: Path, job: Job) -> bool:
    """Whether `file` is what `job` would make, as far as its header tells."""
    if not file.is_file():
        return False
    try:
        with open_calibration(file) as known:
            return known.header == job.header
    except EdgepackError:  # damaged, or no calibration
        return False


def _job(source: Checkpoint, spec: ModelSpec, sequences: Sequences, inputs: tuple[ProductInput, ...]) -> Job:
    count, length = sequences.ids.shape
    header = Header(
        family=spec.family,
        spec_sha256=spec_sha256(spec),
        checkpoint_sha256=checkpoint_fingerprint(source),
        text=sequences.text,
        text_sha256=sequences.text_sha256,
        sketch=sequences.sketch,
        tokens=count * length,
        sequence_tokens=length,
        first_weight=FIRST_WEIGHT,
        inputs=input_map(inputs),
    )
    return Job(
        header=header,
        ids_sha256=hashlib.sha256(sequences.ids.astype("<i4").tobytes()).hexdigest(),
        block_columns=BLOCK_COLUMNS,
        versions={"edgepack": __version__, "numpy": np.__version__},
    )


def _write(file: Path, collection: _Collection, job: Job, overwrite: bool) -> None:
    refuse_output(file, overwrite=overwrite)
    real = file.resolve()  # a link stays, and what it leads to is replaced
    try:
        with open_work(real, job, overwrite=overwrite) as work:
            refuse_output(real, overwrite=overwrite)  # another process may have finished it meanwhile
            writer = CalibrationWriter(work.file, lay_out(job.header, collection.inputs))
            try:
                with one_blas_thread():
                    collection.run(work, writer)
            finally:
                writer.close()
            os.replace(work.file, real)
    except OSError as error:
        raise EdgepackError(
            f"{file}: cannot be written: {error.strerror or error}; what is done stays in {file.name}.partial, and the "
            "same command goes on with it"
        ) from error


class _Collection:
    """What the stages of one calibration share."""

    def __init__(
        self,
        source: Checkpoint,
        spec: ModelSpec,
        sequences: Sequences,
        inputs: tuple[ProductInput, ...],
        threads: int | None,
        progress: Progress,
    ) -> None:
        self.spec, self.inputs, self._ids, self._progress = spec, inputs, sequences.ids, progress
        self._threads = threads or available_cores()
        self._weights = HeldWeights(spec, source)
        self._family, self._last = family_of(spec), stages_of(spec) - 1
        self._shared = {layer.kv_owner for i, layer in enumerate(spec.layers) if layer.kv_owner != i}
        self._sizes = {t.name: prod(t.shape) for t in self._family.tensor_table(spec)}
        self._done, self._total = 0.0, sum(self._cost(stage) for stage in range(stages_of(spec)))

    def run(self, work: Work, writer: CalibrationWriter) -> None:
        """Run all stages that are not done yet."""
        self._done = sum(self._cost(stage) for stage in range(work.stages_done))
        work.forget(HIDDEN, work.stages_done - 2)  # of a run that was killed before it did
        with ThreadPoolExecutor(self._threads, thread_name_prefix="calibration") as pool:
            for stage in range(work.stages_done, self._last + 1):
                self._run_stage(pool, stage, work, writer)
                writer.sync()
                work.finish_stage()
                work.forget(HIDDEN, stage - 1)

    def _run_stage(self, pool: ThreadPoolExecutor, stage: int, work: Work, writer: CalibrationWriter) -> None:
        inputs, (count, length) = self._of(stage), self._ids.shape
        scratch = Scratch(work.scratch, inputs, count, length)
        try:
            sums: dict[str, list[Sums]] = {read.name: [] for read in inputs}
            forward = [partial(self._forward, stage, sequence, work, scratch) for sequence in range(count)]
            for part in _in_order(pool, forward):
                for name, values in part.items():
                    sums[name] += values
                self._tell(stage, self._forward_cost(stage) / count)
            self._weights.release()
            blocks, costs = [], []
            for read in inputs:
                rms = combine(sums[read.name], scratch.rows)
                writer.write_rms(read.name, rms)
                for down, right in blocks_of(read.columns):
                    blocks.append(partial(write_block, scratch, writer, read, rms, down, right))
                    costs.append(self._block_cost(read, down, right))
            for _, cost in zip(_in_order(pool, blocks), costs, strict=True):
                self._tell(stage, cost)
        finally:
            scratch.close()

    def _forward(self, stage: int, sequence: int, work: Work, scratch: Scratch) -> dict[str, list[Sums]]:
        """Run one stage of one sequence, and keep what the next one starts from."""
        leaders = {read.matrices[0]: read.name for read in self._of(stage)}
        ops = CollectingOps(self.spec, self._weights, scratch, leaders, sequence)
        if stage == 0:
            embedded = self._family.embed(ops, self.spec, self._ids[None, sequence])
            self._keep(self._family.begin(ops, self.spec, *embedded), stage, sequence, work)
        elif stage < self._last:
            self._layer(ops, stage, sequence, work)
        else:
            hidden = self._family.finish(ops, self.spec, DecoderState(work.load(HIDDEN, stage - 1, sequence)))
            ops.record(hidden, head_name(self.spec))
        return ops.sums

    def _layer(self, ops: CollectingOps, stage: int, sequence: int, work: Work) -> None:
        i = stage - 1
        owner = self.spec.layers[i].kv_owner
        if owner != i:
            ops.cached[owner] = work.load(KEYS, owner, sequence)
        per_layer = work.load(PER_LAYER, 0, sequence) if self.spec.ple else None
        state = DecoderState(work.load(HIDDEN, stage - 1, sequence), per_layer)
        self._keep(self._family.layer(ops, self.spec, i, state), stage, sequence, work)
        if i in self._shared:
            work.save(KEYS, i, sequence, ops.cached[i])

    def _keep(self, state: DecoderState[FloatArray], stage: int, sequence: int, work: Work) -> None:
        work.save(HIDDEN, stage, sequence, state.hidden)
        if stage == 0 and state.per_layer is not None:
            work.save(PER_LAYER, 0, sequence, state.per_layer)

    def _of(self, stage: int) -> list[ProductInput]:
        return [read for read in self.inputs if read.stage == stage]

    # -- progress, in multiplications

    def _cost(self, stage: int) -> float:
        blocks = sum(self._block_cost(r, *block) for r in self._of(stage) for block in blocks_of(r.columns))
        return self._forward_cost(stage) + blocks

    def _forward_cost(self, stage: int) -> float:
        head = head_name(self.spec)  # never computed
        names = (name for read in self._of(stage) for name in read.matrices if name != head)
        return float(self._ids.size * sum(self._sizes[name] for name in names))

    def _block_cost(self, read: ProductInput, down: slice, right: slice) -> float:
        return float(self._ids.size * read.uses * (down.stop - down.start) * (right.stop - right.start))

    def _tell(self, stage: int, more: float) -> None:
        self._done += more
        sample = sample_memory(os.getpid())
        layers = len(self.spec.layers)
        part = "embeddings" if stage == 0 else "head" if stage == self._last else f"layer {stage} of {layers}"
        rss = f", RSS {format_bytes(sample.rss_bytes)}" if sample else ""
        self._progress(self._done, self._total, part + rss)


def _in_order(pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
    """What `tasks` return, in their order; where one fails those that have not begun never do."""
    futures = [pool.submit(task) for task in tasks]
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()
