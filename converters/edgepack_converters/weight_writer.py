"""Fills files of weights: row chunks are read, quantized and written where the layout put them, by a few threads.

Nothing holds more than one chunk a thread, so the peak RSS of an export does not grow with the model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepack.calibration.planned import PlannedWeights
from edgepack.errors import PackageError
from edgepack.model.ops import Weight
from edgepack.planning.plan import TensorPlan
from edgepack.planning.runtime_costs import EXPORT_CHUNK_ELEMENTS
from edgepack.units import format_bytes
from edgepack_converters.weights import Placement, StoredTensor

Progress = Callable[[int], None]


def write_weights(
    path: Path,
    size_bytes: int,
    placements: Sequence[Placement],
    weights: PlannedWeights,
    *,
    threads: int,
    progress: Progress,
) -> None:
    """Write a new file of `size_bytes`, calling `progress` with the number of elements done after every chunk.

    Raises:
        CheckpointError: a weight cannot be read or is not finite; the tensor is named.
        PackageError: the disk is full or the file cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        _reserve(descriptor, size_bytes, path)
        for placement in placements:
            if placement.content is not None:
                _write(descriptor, placement.content, placement.offset)
        chunks = _chunks(placements)
        tasks = (partial(chunk.write, weights, descriptor) for chunk in chunks)
        _run(tasks, threads, progress)
        os.fsync(descriptor)
    except OSError as error:
        raise PackageError(f"{path} cannot be written: {error.strerror}; nothing was changed") from error
    finally:
        os.close(descriptor)


def _reserve(descriptor: int, size_bytes: int, path: Path) -> None:
    """Reserve the whole file, so that a full disk shows before the first weight is read."""
    if not size_bytes or not hasattr(os, "posix_fallocate"):  # macOS has none
        return
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        free = os.statvfs(path.parent)
        raise PackageError(
            f"{path} cannot be written: it needs {format_bytes(size_bytes)}, "
            f"{format_bytes(free.f_bavail * free.f_frsize)} are free ({error.strerror}); nothing was changed"
        ) from error


def _chunks(placements: Sequence[Placement]) -> Iterator[Chunk]:
    """The row chunks of every tensor, in file order."""
    tensors: dict[StoredTensor, list[Placement]] = {}
    for placement in placements:
        if placement.tensor is not None:
            tensors.setdefault(placement.tensor, []).append(placement)
    for tensor, places in tensors.items():
        first = 0
        for plan, weight in tensor.sources:
            step = max(1, EXPORT_CHUNK_ELEMENTS // prod(plan.shape[1:]))
            for start in range(0, plan.shape[0], step):
                rows = slice(start, min(plan.shape[0], start + step))
                yield Chunk(tensor, places, plan, weight, rows, first + start)
            first += plan.shape[0]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of one source of a stored tensor, and the row of the stored tensor where they go."""

    tensor: StoredTensor
    placements: list[Placement]
    plan: TensorPlan
    weight: Weight
    rows: slice
    first: int

    def write(self, weights: PlannedWeights, descriptor: int) -> int:
        """Read, quantize, write; returns the number of elements."""
        values = weights.rows(self.weight, self.rows.start, self.rows.stop)
        parts = weights.quantize(self.weight.name, values, self.plan.scheme, self.plan.rounding)
        for placement in self.placements:
            row_bytes = placement.part.nbytes // self.tensor.shape[0]
            encoded = placement.encode(parts[placement.part.name])
            _write(descriptor, encoded, placement.offset + self.first * row_bytes)
        return values.size


def _write(descriptor: int, content: npt.NDArray[Any], offset: int) -> None:
    view = np.ascontiguousarray(content).data.cast("B")
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _run(tasks: Iterator[Callable[[], int]], threads: int, progress: Progress) -> None:
    """Run the tasks on `threads` threads with a short queue; the first failure stops all and is raised."""
    with ThreadPoolExecutor(threads, thread_name_prefix="export") as pool:
        pending: set[Future[int]] = set()
        try:
            for task in tasks:
                pending.add(pool.submit(task))
                if len(pending) > 2 * threads:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        progress(future.result())
            for future in pending:
                progress(future.result())
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
