"""Second moments of one input by blocks of columns: each block is a task of its own, whatever computes it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgepack.calibration.collecting import BLOCK_COLUMNS, Scratch, weight_of
from edgepack.calibration.inputs import ProductInput
from edgepack.calibration.writer import CalibrationWriter
from edgepack.values import FloatArray


def blocks_of(columns: int) -> Iterator[tuple[slice, slice]]:
    """The blocks of the upper triangle of [K, K], diagonal included, by row."""
    spans = [slice(start, min(start + BLOCK_COLUMNS, columns)) for start in range(0, columns, BLOCK_COLUMNS)]
    return ((down, right) for i, down in enumerate(spans) for right in spans[i:])


def write_block(
    scratch: Scratch, writer: CalibrationWriter, read: ProductInput, rms: FloatArray, down: slice, right: slice
) -> None:
    """Sum up one block of correlations over all sequences, in their order, and write it.

    Values are divided by their rms before they are multiplied, so that no square leaves the range of float32.
    """
    # An rms below the normal numbers has no inverse in float32: such a column is as good as zero.
    inverse = np.divide(1, rms, out=np.zeros_like(rms), where=rms >= np.finfo(np.float32).tiny)
    block = np.zeros((down.stop - down.start, right.stop - right.start), np.float32)
    product = np.empty_like(block)
    for sequence in range(scratch.sequences):
        for use in range(read.uses):
            one = scratch.read(read.name, sequence, use, down)
            one *= inverse[down]
            other = one
            if right != down:
                other = scratch.read(read.name, sequence, use, right)
                other *= inverse[right]
            np.matmul(one.T, other, out=product)
            block += product
    block /= scratch.sequences * read.uses * weight_of(scratch.rows)
    if down == right:
        np.fill_diagonal(block, 1)
    writer.write_correlations(read.name, down.start, right.start, block, read.columns)
