"""A checkpoint on a few tokens: how far changed weights move its next-token probabilities.

The hidden states between the parts of the decoder and the log-probabilities of the unchanged model are kept in files,
so that a change is run from the first part on that it touches, and no more than a piece of the head is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.calibration.collecting import HeldWeights, weight_roots
from edgepack.calibration.inputs import stages_of, trace_inputs
from edgepack.calibration.sensitivity.rounded import Change, ChangedWeights
from edgepack.checkpoint.folder import Checkpoint
from edgepack.errors import EdgepackError
from edgepack.model.families import family_of
from edgepack.model.families.base import DecoderState, head_name
from edgepack.model.families.layers import softcap
from edgepack.model.numpy_ops import NumpyOps, WeightSource
from edgepack.model.ops import Weight
from edgepack.model.spec import ModelSpec
from edgepack.model.tensors import checkpoint_name
from edgepack.values import FloatArray

# Every second position is compared: neighbours say much the same, and the head is half of the work.
POSITION_STEP = 2
# Elements of the head that are read at once, by one thread.
_PIECE_ELEMENTS = 1 << 22
_HIDDEN, _PER_LAYER, _KEYS, _INPUTS, _LOGPROBS = "hidden", "per_layer", "keys", "inputs", "logprobs"


class _Recording(NumpyOps):
    """Keeps what the first matrix of every input is multiplied with, times the roots of the weights, by use."""

    def __init__(self, spec: ModelSpec, weights: WeightSource, leaders: Mapping[str, str]) -> None:
        super().__init__(spec, weights)
        self._leaders = leaders
        self.inputs = dict[str, list[FloatArray]]()

    def linear(self, x: FloatArray, matrix: Weight) -> FloatArray:
        name = self._leaders.get(matrix.name)
        if name is not None:
            rows = x.reshape(-1, x.shape[-1])
            self.inputs.setdefault(name, []).append(rows * weight_roots(len(rows)))
        return super().linear(x, matrix)


@dataclass(slots=True)
class _Run:
    """One sequence under one change, on its way through the decoder."""

    sequence: int
    ops: NumpyOps
    state: DecoderState[FloatArray] | None = None


class Probe:
    """An unchanged checkpoint that was run, for changes to be compared with.

    Args:
        ids: token ids [N, S].
        folder: an empty folder for hidden states and log-probabilities.
        pool: its threads each run one sequence or one piece of the head.
        tell: called with the multiplications that were done.

    Attributes:
        positions: how many are compared, in all sequences.
    """

    def __init__(
        self,
        source: Checkpoint,
        spec: ModelSpec,
        ids: NDArray[np.int32],
        folder: Path,
        pool: ThreadPoolExecutor,
        tell: Callable[[float], None] = lambda done: None,
    ) -> None:
        self.spec, self._source, self._ids, self._folder, self._pool, self._tell = spec, source, ids, folder, pool, tell
        self._family, self._last = family_of(spec), stages_of(spec) - 1
        self._held = HeldWeights(spec, source)
        self._shared = {layer.kv_owner for i, layer in enumerate(spec.layers) if layer.kv_owner != i}
        table = self._family.tensor_table(spec)
        self._head = head_name(spec)
        shape = next(tensor.shape for tensor in table if tensor.name == self._head)
        self._pieces = _pieces(shape[0], max(1, _PIECE_ELEMENTS // shape[1]))
        self._sizes = _stage_sizes(spec)
        self._inputs = {matrix: read.name for read in trace_inputs(spec) for matrix in read.matrices}
        self._compared = np.arange(1, ids.shape[1], POSITION_STEP)
        self.positions = len(ids) * len(self._compared)
        self._log_sums = self._reference()

    def divergences(self, stage: int, changes: Sequence[Change]) -> list[float]:
        """Mean KL(unchanged || changed) in nats of each change, none of which touches a part before `stage`.

        Raises:
            EdgepackError: a weight cannot be rounded, or an activation is not finite.
        """
        weights = [ChangedWeights(self.spec, self._held, change, self._ids.ravel().tolist()) for change in changes]
        runs = [_Run(s, NumpyOps(self.spec, own)) for own in weights for s in range(len(self._ids))]
        for run in runs if stage else ():
            run.state, run.ops.cached = self._resumed(stage, run.sequence)
        hidden = self._through(runs, weights, stage)
        each = np.split(hidden, len(changes))
        tasks = [partial(self._compare, i, piece, each, changes) for i, piece in enumerate(self._pieces)]
        sums = np.zeros((2, len(changes), self.positions))
        for part in self._pool.map(lambda task: task(), tasks):
            sums += part
            self._tell(float(self.positions * len(changes) * self._head_size / len(self._pieces)))
        if not np.isfinite(sums).all():
            raise EdgepackError("a logit is nan or infinite: expected finite activations; is the model trained?")
        return [max(0.0, float(kl)) for kl in (np.log1p(sums[0]) - sums[1]).mean(1)]

    def inputs(self, matrix: str) -> FloatArray:
        """What `matrix` is multiplied with in the unchanged model, but in first positions, [positions, K]."""
        name = self._inputs[matrix]
        return np.concatenate([self._load(f"{_INPUTS}.{name}", 0, s) for s in range(len(self._ids))])

    def cost(self, stage: int, changes: int) -> float:
        """Multiplications of `divergences`."""
        decoder = self._ids.size * sum(self._sizes[stage : self._last])
        return float(changes * (decoder + self.positions * self._head_size))

    # -- the decoder

    def _through(
        self, runs: Sequence[_Run], weights: Sequence[ChangedWeights], stage: int, *, keep: bool = False
    ) -> FloatArray:
        """Hidden states of the compared positions of all runs, [runs * positions of one, M]."""
        for i in range(stage, self._last):
            for _ in self._pool.map(lambda run, i=i: self._step(run, i, keep=keep), runs):
                self._tell(float(self._ids.shape[1] * self._sizes[i]))
            for run in runs if keep else ():
                self._keep_inputs(run)
            for own in weights:
                own.release()
            self._held.release()
        finished = list(self._pool.map(self._finish, runs))
        for run in runs if keep else ():
            self._keep_inputs(run)
        self._held.release()
        return np.concatenate(finished)

    def _step(self, run: _Run, stage: int, *, keep: bool) -> None:
        if stage == 0:
            embedded = self._family.embed(run.ops, self.spec, self._ids[None, run.sequence])
            run.state = self._family.begin(run.ops, self.spec, *embedded)
            if keep and run.state.per_layer is not None:
                self._save(_PER_LAYER, 0, run.sequence, run.state.per_layer)
        else:
            assert run.state is not None
            run.state = self._family.layer(run.ops, self.spec, stage - 1, run.state)
            if stage - 1 not in self._shared:
                run.ops.cached.pop(stage - 1, None)
            elif keep and stage - 1 in run.ops.cached:
                self._save(_KEYS, stage - 1, run.sequence, run.ops.cached[stage - 1])
        if keep:
            self._save(_HIDDEN, stage, run.sequence, run.state.hidden)

    def _keep_inputs(self, run: _Run) -> None:
        assert isinstance(run.ops, _Recording)
        for name, values in run.ops.inputs.items():
            self._save(f"{_INPUTS}.{name}", 0, run.sequence, np.concatenate(values))
        run.ops.inputs.clear()

    def _resumed(self, stage: int, sequence: int) -> tuple[DecoderState[FloatArray], dict[int, FloatArray]]:
        per_layer = self._load(_PER_LAYER, 0, sequence) if self.spec.ple else None
        state = DecoderState(self._load(_HIDDEN, stage - 1, sequence), per_layer)
        return state, {i: self._load(_KEYS, i, sequence) for i in self._shared if i < stage - 1}

    def _finish(self, run: _Run) -> FloatArray:
        assert run.state is not None
        hidden = self._family.finish(run.ops, self.spec, DecoderState(run.state.hidden))
        run.state = None
        compared: FloatArray = hidden[0, self._compared]
        return compared

    # -- the head

    def _reference(self) -> NDArray[np.float64]:
        """Run the unchanged model and keep what it leaves; the logarithm of the sum of powers of each position."""
        own = ChangedWeights(self.spec, self._held, {}, ())
        leaders = {read.matrices[0]: read.name for read in trace_inputs(self.spec)}
        runs = [_Run(s, _Recording(self.spec, own, leaders)) for s in range(len(self._ids))]
        hidden = self._through(runs, [own], 0, keep=True)

        def piece(number: int) -> NDArray[np.float64]:
            values = self._logits(hidden, self._rows(self._pieces[number]))
            self._save(_LOGPROBS, number, 0, values)
            total: NDArray[np.float64] = np.logaddexp.reduce(values, 1, dtype=np.float64)
            return total

        sums = list(self._pool.map(piece, range(len(self._pieces))))
        self._tell(self.cost(self._last, 1))
        total: NDArray[np.float64] = np.logaddexp.reduce(np.stack(sums))
        if not np.isfinite(total).all():
            raise EdgepackError("a logit is nan or infinite: expected finite activations; is the model trained?")
        return total

    def _compare(
        self, number: int, piece: slice, hidden: Sequence[FloatArray], changes: Sequence[Change]
    ) -> NDArray[np.float64]:
        """What one piece of the head adds to sum p (exp(d) - 1) and to sum p d, [2, changes, positions].

        With d = z' - z the change of the logits and p the probabilities of z, KL = log sum p exp(d) - sum p d.
        """
        before, rows = self._load(_LOGPROBS, number, 0), self._rows(piece)
        p = np.exp(before - self._log_sums[:, None].astype(np.float32))
        sums = np.empty((2, len(changes), self.positions))
        for i, (values, change) in enumerate(zip(hidden, changes, strict=True)):
            changed = change[self._head](rows) if self._head in change else rows
            after = self._logits(values, changed)
            moved = after - before
            sums[1, i] = np.einsum("nv,nv->n", p, moved, dtype=np.float64)
            np.exp(moved, out=moved)
            moved -= 1  # the sum of p is not quite 1 in float32
            sums[0, i] = np.einsum("nv,nv->n", p, moved, dtype=np.float64)
        return sums

    def _rows(self, piece: slice) -> FloatArray:
        return self._source.read_rows(checkpoint_name(self.spec, self._head), piece.start, piece.stop)

    def _logits(self, hidden: FloatArray, rows: FloatArray) -> FloatArray:
        capped: FloatArray = softcap(NumpyOps(self.spec, self._held), hidden @ rows.T, self.spec.final_logit_softcap)
        return capped

    @property
    def _head_size(self) -> int:
        return int(self._pieces[-1].stop) * self.spec.hidden_size

    # -- files

    def _save(self, kind: str, number: int, sequence: int, values: NDArray[Any]) -> None:
        np.save(self._folder / f"{kind}.{number}.{sequence}.npy", values, allow_pickle=False)

    def _load(self, kind: str, number: int, sequence: int) -> FloatArray:
        values: FloatArray = np.load(self._folder / f"{kind}.{number}.{sequence}.npy", allow_pickle=False)
        return values


def _pieces(rows: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _stage_sizes(spec: ModelSpec) -> list[int]:
    """Weights that each part of a decoder multiplies with, the head aside."""
    shapes = {tensor.name: tensor.shape for tensor in family_of(spec).tensor_table(spec)}
    sizes = [0] * stages_of(spec)
    for read in trace_inputs(spec):
        names: Iterable[str] = (name for name in read.matrices if name != head_name(spec))
        sizes[read.stage] += sum(shapes[name][0] * shapes[name][1] for name in names)
    return sizes
