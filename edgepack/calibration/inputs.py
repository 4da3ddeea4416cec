"""Which values the matrices of a decoder are multiplied with, and which matrices read the same one.

Asked of the decoder itself, which is run on one token with all shapes and no weights: a matrix that a family gains is
found without a list that could be forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgepack.model.families import family_of
from edgepack.model.families.base import DecoderState, head_name
from edgepack.model.numpy_ops import NumpyOps
from edgepack.model.ops import Weight
from edgepack.model.spec import ModelSpec
from edgepack.model.tensors import checkpoint_name
from edgepack.values import FloatArray

SUFFIX = ".weight"


@dataclass(frozen=True, slots=True)
class ProductInput:
    """One value that matrices read.

    Attributes:
        stage: where it arises, see `stages_of`.
        matrices: canonical names of those that read it, in the order of computation.
        columns: K.
        uses: how often the first of them is multiplied in one run: AltUp's router reads two values in a layer.
    """

    stage: int
    matrices: tuple[str, ...]
    columns: int
    uses: int = 1

    @property
    def name(self) -> str:
        """The first matrix that reads it, without ``.weight``."""
        return self.matrices[0].removesuffix(SUFFIX)


def stages_of(spec: ModelSpec) -> int:
    """The parts in which a decoder is run: 0 is what stands before the layers, 1 + i layer i, the last the head."""
    return len(spec.layers) + 2


def trace_inputs(spec: ModelSpec) -> tuple[ProductInput, ...]:
    """Every value that a matrix of the model is multiplied with, in the order of computation."""
    family, ops = family_of(spec), _Trace(spec)
    embeds = np.ones((1, 1, spec.hidden_size), np.float32)
    rows = np.ones((1, 1, len(spec.layers), spec.ple.dim), np.float32) if spec.ple else None
    state: DecoderState[FloatArray] = family.begin(ops, spec, embeds, rows)
    for i in range(len(spec.layers)):
        ops.begin(1 + i)
        state = family.layer(ops, spec, i, state)
    ops.begin(stages_of(spec) - 1)
    ops.linear(family.finish(ops, spec, state), Weight(head_name(spec)))
    return tuple(ops.found)


def input_map(inputs: tuple[ProductInput, ...]) -> dict[str, str]:
    """The name of what it reads, by canonical name of every matrix."""
    return {matrix: read.name for read in inputs for matrix in read.matrices}


class _Ones:
    """Weights of the shapes of a model, all of them one."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes

    def read_rows(self, name: str, start: int, stop: int) -> FloatArray:
        return np.ones((stop - start, *self._shapes[name][1:]), np.float32)


class _Trace(NumpyOps):
    """Notes the products and computes none: each gives ones, of the right shape."""

    def __init__(self, spec: ModelSpec) -> None:
        table = family_of(spec).tensor_table(spec)
        super().__init__(spec, _Ones({checkpoint_name(spec, tensor.name): tensor.shape for tensor in table}))
        self.found: list[ProductInput] = []
        self._stage = 0
        self._values: list[tuple[FloatArray, int]] = []

    def begin(self, stage: int) -> None:
        """What follows belongs to `stage`."""
        self._stage, self._values = stage, []

    def linear(self, x: FloatArray, matrix: Weight) -> FloatArray:
        place = next(self._places(x, matrix.name), None)
        if place is None:
            self.found.append(ProductInput(self._stage, (matrix.name,), x.shape[-1]))
            place = len(self.found) - 1
        else:
            known = self.found[place]
            if matrix.name not in known.matrices:
                self.found[place] = replace(known, matrices=(*known.matrices, matrix.name))
            elif matrix.name == known.matrices[0]:
                self.found[place] = replace(known, uses=known.uses + 1)
        self._values.append((x, place))
        return np.ones((*x.shape[:-1], self._shapes[matrix.name][0]), np.float32)

    def _places(self, x: FloatArray, name: str) -> Iterator[int]:
        """Inputs to which `x` belongs: that of the matrix, if it was multiplied before, or of the same value."""
        yield from (place for place, known in enumerate(self.found) if name in known.matrices)
        yield from (place for value, place in self._values if value is x)
