"""Measuring: the KL of every group at a scheme or two by a forward, and at all others by the errors of their products.

The KL of a small change is quadratic in it. So a group whose KL at one scheme is known has at another one that KL times
the ratio of the squared errors of its products, which need no forward. Compensated errors have other directions than
those of plain rounding, so each of both kinds has a reference of its own; docs/quantization.md has how well this holds.
Tables, and the head with them, are run at every scheme.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from operator import call
from pathlib import Path

import numpy as np

from edgepack.atomic_write import write_whole
from edgepack.calibration.file import Calibration, open_calibration
from edgepack.calibration.layout import spec_sha256
from edgepack.calibration.run import Progress
from edgepack.calibration.sensitivity.file import Choice, GroupCost, Sensitivity
from edgepack.calibration.sensitivity.groups import Candidate, Group
from edgepack.calibration.sensitivity.probe import Probe
from edgepack.calibration.sensitivity.rounded import (
    COMPARED_ROWS,
    Factors,
    change_of,
    compared,
    product_energy,
    rounded,
)
from edgepack.calibration.sequences import DEFAULT_TOKENS as CALIBRATED_TOKENS
from edgepack.calibration.sequences import Sequences, read_sequences
from edgepack.calibration.texts import BUILTIN
from edgepack.checkpoint.fingerprint import checkpoint_fingerprint
from edgepack.checkpoint.folder import Checkpoint
from edgepack.errors import EdgepackError
from edgepack.model.spec import ModelSpec
from edgepack.model.tensors import checkpoint_name
from edgepack.quant.layout import IntScheme
from edgepack.quant.rounding import CALIBRATED
from edgepack.system.process_memory import sample_memory
from edgepack.system.threads import available_cores, require_threads
from edgepack.units import format_bytes

DEFAULT_TOKENS, DEFAULT_SEQUENCE = 512, 256
# Columns of a second moment above which only one is factored at a time: three such arrays are alive then.
_WIDE_COLUMNS = 8192
Candidates = Sequence[tuple[Group, Sequence[Candidate]]]


def measure_sensitivity(
    source: Checkpoint,
    spec: ModelSpec,
    candidates: Candidates,
    *,
    backend: str,
    calibration: str | Path,
    out: Path,
    text: str | Path = BUILTIN,
    tokens: int | None = None,
    sequence: int | None = None,
    threads: int | None = None,
    progress: Progress = lambda done, total, phase: None,
) -> Sensitivity:
    """Measure every group at every candidate, and write the file `out`, whole or not at all.

    Args:
        candidates: the groups and how each may be stored by `backend`.
        calibration: of the same checkpoint.
        tokens, sequence: of `text` to run, in all and at once; by default 512 and 256.
        threads: by default one a core.
        progress: called with what is done, what there is in all, and what runs.

    Raises:
        EdgepackError: unusable input, activations that are not finite, or a full disk.
    """
    require_threads(threads)
    sequences = few_sequences(source, spec, text, tokens, sequence)
    with open_calibration(calibration) as known:
        known.require_for(source, spec)
        try:
            with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.resolve().parent) as folder:
                work = Path(folder), threads or available_cores(), _Telling(progress)
                costs, positions = _measure(source, spec, candidates, known, sequences, *work)
            result = Sensitivity(
                spec_sha256=spec_sha256(spec),
                checkpoint_sha256=checkpoint_fingerprint(source),
                calibration_sha256=known.sha256,
                backend=backend,
                text=sequences.text,
                text_sha256=sequences.text_sha256,
                sequences=len(sequences.ids),
                sequence_tokens=sequences.ids.shape[1],
                positions=positions,
                groups=costs,
            )
            write_whole(out, result.model_dump_json(indent=1) + "\n")
        except OSError as error:
            raise EdgepackError(f"sensitivity {out} cannot be written: {error.strerror or error}") from error
    return result


def few_sequences(
    source: Checkpoint, spec: ModelSpec, text: str | Path, tokens: int | None, sequence: int | None
) -> Sequences:
    """Some of the sequences that a calibration would run, evenly spread: each is of one text as far as that goes."""
    length = min(DEFAULT_SEQUENCE, spec.max_context_tokens) if sequence is None else sequence
    wanted = DEFAULT_TOKENS if tokens is None else tokens
    read = wanted if wanted < length else max(wanted, CALIBRATED_TOKENS)  # too few are refused there
    all_of_them = read_sequences(source, spec, text, read, length)
    count = min(max(1, wanted // length), len(all_of_them.ids))
    chosen = np.linspace(0, len(all_of_them.ids) - 1, 2 * count + 1).round().astype(int)[1::2]
    return replace(all_of_them, ids=all_of_them.ids[chosen])


class _Telling:
    """Adds up what is done; `total` and `phase` are set from outside."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._done = progress, 0.0
        self.total, self.phase = 1.0, ""

    def __call__(self, more: float) -> None:
        self._done += more
        sample = sample_memory(os.getpid())
        rss = f", RSS {format_bytes(sample.rss_bytes)}" if sample else ""
        self._progress(min(self._done, self.total), self.total, self.phase + rss)


def _measure(
    source: Checkpoint,
    spec: ModelSpec,
    candidates: Candidates,
    known: Calibration,
    sequences: Sequences,
    folder: Path,
    workers: int,
    telling: _Telling,
) -> tuple[tuple[GroupCost, ...], int]:
    from threadpoolctl import threadpool_limits

    # One thread a product, as in a calibration: figures do not depend on how many threads there are.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers, thread_name_prefix="sensitivity") as pool:
        try:
            telling.phase = "float32"
            probe = Probe(source, spec, sequences.ids, folder, pool, telling)
            work, steps = _error_work(candidates, sequences.ids.size), list(_steps(candidates))
            telling.total = sum(work.values()) + probe.cost(0, 1)
            telling.total += sum(probe.cost(stage, len(step)) for stage, step in steps)
            telling.phase = "errors of products"
            errors = _errors(source, spec, candidates, known, probe, work, pool, telling)
            columns = {tensor.name: tensor.shape[1] for group, _ in candidates for tensor in group.tensors}
            found: dict[tuple[str, int], float] = {}
            for stage, step in steps:
                telling.phase = ", ".join(dict.fromkeys(group.name for group, _, _ in step))
                factors = Factors(known)
                changes = [change_of(candidate.stored, columns, factors) for _, _, candidate in step]
                for (group, number, _), kl in zip(step, probe.divergences(stage, changes), strict=True):
                    found[group.name, number] = kl
        finally:
            pool.shutdown(cancel_futures=True)
    return tuple(_cost(group, each, errors[group.name], found) for group, each in candidates), probe.positions


# -- what is run

_Step = list[tuple[Group, int, Candidate]]
# Changes that are run together read each weight once, and each has states and rounded matrices of its own in memory.
_TOGETHER = 8
# Changes of a table round its rows for themselves.
_TABLES_TOGETHER = 4


def _steps(candidates: Candidates) -> Iterator[tuple[int, _Step]]:
    """What is run, by where it begins: every table at all candidates, every other group at its references."""
    begun: dict[int, _Step] = {}
    for group, each in candidates:
        if not runs_every_candidate(group):
            references = sorted({reference_of(each, i) for i in range(len(each))})
            begun.setdefault(group.stage, []).extend((group, i, each[i]) for i in references)
    for stage, runs in sorted(begun.items()):
        for start in range(0, len(runs), _TOGETHER):
            yield stage, runs[start : start + _TOGETHER]
    for group, each in candidates:
        if runs_every_candidate(group):
            runs = [(group, i, one) for i, one in enumerate(each)]
            for start in range(0, len(runs), _TABLES_TOGETHER):
                yield group.stage, runs[start : start + _TABLES_TOGETHER]


def runs_every_candidate(group: Group) -> bool:
    """Whether a forward measures all: rows that are looked up are no product, and the head costs most."""
    return group.gathered or group.component == "head"


def reference_of(candidates: Sequence[Candidate], number: int) -> int:
    """Which one is run for the KL of another: the first of 4 bits whose errors are of its kind, else the first."""
    calibrated = candidates[number].asked.rounding in CALIBRATED
    alike = [i for i, one in enumerate(candidates) if (one.asked.rounding in CALIBRATED) == calibrated]
    schemes = {i: candidates[i].asked.scheme for i in alike}
    return next((i for i, s in schemes.items() if isinstance(s, IntScheme) and s.bits == 4), alike[0])


def _cost(
    group: Group,
    candidates: Sequence[Candidate],
    errors: Sequence[float] | None,
    found: Mapping[tuple[str, int], float],
) -> GroupCost:
    choices = []
    for i, one in enumerate(candidates):
        kl = found.get((group.name, i))
        if kl is None:
            assert errors is not None
            reference = reference_of(candidates, i)
            base = errors[reference]
            kl = found[group.name, reference] * (errors[i] / base if base else 0.0)
        choices.append(
            Choice(
                storage=one.asked,
                kl=_rounded(kl),
                error=None if errors is None else _rounded(errors[i]),
                measured=(group.name, i) in found,
            )
        )
    names = tuple(tensor.name for tensor in group.tensors)
    return GroupCost(name=group.name, kind=group.kind, component=group.component, tensors=names, choices=tuple(choices))


def _rounded(value: float) -> float:
    """Six digits: what follows depends on the library that adds."""
    return float(f"{value:.6g}")


# -- errors of products


def _error_work(candidates: Candidates, tokens: int) -> dict[str, float]:
    """Multiplications that the errors of each group take."""
    return {
        group.name: float(sum(min(t.shape[0], COMPARED_ROWS) * t.shape[1] * tokens for t in group.tensors) * len(each))
        for group, each in candidates
        if not runs_every_candidate(group)
    }


def _errors(
    source: Checkpoint,
    spec: ModelSpec,
    candidates: Candidates,
    known: Calibration,
    probe: Probe,
    work: Mapping[str, float],
    pool: ThreadPoolExecutor,
    telling: _Telling,
) -> dict[str, list[float] | None]:
    """The error of every candidate, by group; None where every candidate is run.

    It is that of products with the tokens of this run, which differ from those of a calibration: on the text that a
    rounding was made for its compensation looks better than it is, up to a hundred times where the text was short.
    """

    def task(group: Group, each: Sequence[Candidate]) -> list[float]:
        factors, total = Factors(known, one_block=True), np.zeros(len(each))
        rows = {
            t.name: source.read_rows(checkpoint_name(spec, t.name), 0, t.shape[0])[compared(t.shape[0])]
            for t in group.tensors
        }
        inputs = {name: probe.inputs(name) for name in rows}
        sizes = {name: product_energy(values, inputs[name]) for name, values in rows.items()}
        for i, one in enumerate(each):
            for name, values in rows.items():
                storage = one.stored[name]
                found = factors.of(name, storage, values.shape[1])
                lost = product_energy(rounded(values, storage, found) - values, inputs[name])
                total[i] += lost / sizes[name] if sizes[name] else 0.0
        return [float(value) for value in total]

    products = [(group, each) for group, each in candidates if not runs_every_candidate(group)]
    tasks = [partial(task, group, each) for group, each in products]
    widest = max((tensor.shape[1] for group, _ in products for tensor in group.tensors), default=0)
    errors: dict[str, list[float] | None] = {group.name: None for group, _ in candidates}
    results = map(call, tasks) if widest >= _WIDE_COLUMNS else pool.map(call, tasks)
    for (group, _), found in zip(products, results, strict=True):
        errors[group.name] = found
        telling(work[group.name])
    return errors
