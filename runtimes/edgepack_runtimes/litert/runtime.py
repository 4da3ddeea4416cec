"""LiteRT's CompiledModel on CPU: the models of a bundle, weights file-backed, keys and values updated in place."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepack.errors import EdgepackError, PackageError
from edgepack.package.folder import Package
from edgepack.package.interface import DECODER
from edgepack.package.interface_litert import (
    DECODE,
    INPUT_POS,
    LOGITS,
    LOOKUP,
    MASK,
    ROW,
    ROWS,
    TOKEN_IDS,
    prefill_name,
)
from edgepack.planning.runtime_costs import LITERT_RUNTIME
from edgepack.shown import one_line
from edgepack.values import FloatArray
from edgepack_runtimes.base import TokenRuntime
from edgepack_runtimes.cache import CacheSpec, cached_entry
from edgepack_runtimes.litert.api import (
    CompiledModel,
    TensorBuffer,
)
from edgepack_runtimes.litert.entry import PREPACK, WEIGHTS, file_name, open_model
from edgepack_runtimes.native.log import captured_log, silence_exit
from edgepack_runtimes.native.mapped import drop_resident_pages, expect_random_access, mapped_spans, opening_files

# Masked scores get this added: what LiteRT-LM itself adds is larger, and vanishes in a softmax like this.
MASKED = -1e9


def cache_spec(package: Package) -> CacheSpec:
    """How the cached entry of `package` is made: its models as files, and the decoder's packed weights."""
    parts = [f"{role}:{offset}:{size}" for role, (offset, size) in package.manifest.spans.items()]
    version = " ".join([metadata.version("ai-edge-litert"), *parts])
    files, command = (package.listed(DECODER),), ("-m", PREPACK)
    return CacheSpec(runtime="litert", version=version, files=files, command=command)


class Signature:
    """One signature of a model, with a buffer for each of its inputs and outputs.

    Args:
        model: the compiled model.
        name: of the signature.
        caches: buffers that signatures have in common: each cache is input and output at once, updated in place.
    """

    def __init__(self, model: CompiledModel, name: str, caches: dict[str, TensorBuffer]) -> None:
        self.model, self.name = model, name
        inputs, outputs = model.get_input_tensor_details(name), model.get_output_tensor_details(name)
        self._details = {**inputs, **outputs}
        for key in inputs:
            if key in outputs and key not in caches:
                caches[key] = model.create_input_buffer_by_name(name, key)
                # Zeros, not garbage: a masked row still takes part in a product, and 0 * NaN is NaN.
                caches[key].write(np.zeros(self.shape(key), np.float32))
        self._inputs = {
            key: caches[key] if key in caches else model.create_input_buffer_by_name(name, key) for key in inputs
        }
        self._outputs = {
            key: caches[key] if key in caches else model.create_output_buffer_by_name(name, key) for key in outputs
        }

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of an input or output."""
        return tuple(int(size) for size in self._details[key]["shape"])

    def write(self, key: str, values: npt.NDArray[Any]) -> None:
        """Set an input."""
        self._inputs[key].write(values)

    def read(self, key: str) -> FloatArray:
        """A copy of a float32 output, flat."""
        values: FloatArray = self._outputs[key].read(prod(self.shape(key)), np.float32)
        return values

    def run(self) -> None:
        """Compute the outputs.

        Raises:
            PackageError: LiteRT refuses.
        """
        try:
            self.model.run_by_name(self.name, self._inputs, self._outputs)
        except RuntimeError as error:
            raise PackageError(f"LiteRT refused a step: {one_line(error)}") from error


class LitertRuntime(TokenRuntime):
    """A package in LiteRT.

    Args:
        package: an opened package.
        threads: CPU threads; None takes all cores.
        rebuild_cache: pack the weights again.
    """

    def __init__(self, package: Package, *, threads: int | None = None, rebuild_cache: bool = False) -> None:
        self._begin(package, backend="litert", runtime="litert", threads=threads)
        silence_exit()
        self.prefill_tokens = tuple(sorted(self.plan.prefill_tokens))
        self._tables: dict[str, Signature] = {}
        self._prefill: dict[int, Signature] = {}
        self._decode: Signature | None = None
        self._looked_up_tokens = 0
        self._entry = cached_entry(package, cache_spec(package), rebuild=rebuild_cache)
        entry = self._entry.path
        files = {role: entry / file_name(role) for role in package.manifest.spans}
        decoder = files.pop(DECODER)
        try:
            with opening_files, captured_log() as log:
                self._open(files, decoder, entry / WEIGHTS)
        except (RuntimeError, ValueError, MemoryError) as error:  # what LiteRT makes of a model that is not one
            reason = log.reason_of(error)
            with captured_log():  # what the frames hold says good-bye
                self.close()
                traceback.clear_frames(error.__traceback__)
            raise PackageError(f"{package.file(DECODER)} is no bundle that LiteRT can run: {reason}") from error
        except BaseException:
            self.close()
            raise

    def _open(self, tables: dict[str, Path], decoder: Path, weights: Path) -> None:
        others = mapped_spans(tables.values())
        for role, file in tables.items():
            self._tables[role] = Signature(open_model(file, 1), LOOKUP, {})
        self._lookup_spans = mapped_spans(tables.values()) - others
        expect_random_access(self._lookup_spans)
        others = mapped_spans([decoder])
        model = open_model(decoder, self.threads, weights)
        # The load has looked at every scale, and what is computed with stands in the packed file.
        drop_resident_pages(mapped_spans([decoder]) - others)
        caches: dict[str, TensorBuffer] = {}
        for n in self.prefill_tokens:  # no comprehension: its closure would keep a model that is refused
            self._prefill[n] = Signature(model, prefill_name(n), caches)
        self._decode = Signature(model, DECODE, caches)

    def _checked(self, token_ids: Iterable[int], past_tokens: int) -> list[int]:
        if self._decode is None:
            raise EdgepackError("this model is closed: load the package again")
        return self.check_room(token_ids, past_tokens)

    def _step(self, signature: Signature, ids: Sequence[int]) -> None:
        """Append `ids` with a signature that takes as many or more: what is left over is padding at position 0."""
        length, count, past = signature.shape(INPUT_POS)[0], len(ids), self.past_tokens
        rows = {role: np.zeros(signature.shape(ROWS[role]), np.float32) for role in self._tables}
        for i, token_id in enumerate(ids):
            for role, values in rows.items():
                values[0, i] = self._row(role, token_id).reshape(values.shape[2:])
            self._give_back()
        for role, values in rows.items():
            signature.write(ROWS[role], values)
        positions = np.zeros(length, np.int32)
        positions[:count] = np.arange(past, past + count)
        signature.write(INPUT_POS, positions)
        seen = np.arange(self.max_context_tokens) <= np.arange(past, past + length)[:, None]
        signature.write(MASK, np.where(seen, np.float32(0), np.float32(MASKED))[None, None])
        signature.run()
        self.past_tokens += count

    def _row(self, role: str, token_id: int) -> FloatArray:
        """One row of a table, flat."""
        table = self._tables[role]
        table.write(TOKEN_IDS, np.array([[token_id]], np.int32))
        table.run()
        return table.read(ROW)

    def _give_back(self) -> None:
        """After some tokens give the pages around their rows back to the system."""
        self._looked_up_tokens += 1
        if self._looked_up_tokens >= LITERT_RUNTIME.lookup_tokens:
            self._looked_up_tokens = 0
            drop_resident_pages(self._lookup_spans)

    def _decoded(self, token_id: int) -> FloatArray:
        if self._decode is None:
            raise EdgepackError("this model is closed: load the package again")
        self._step(self._decode, [token_id])
        return self._decode.read(LOGITS)

    def reset(self) -> None:
        self.past_tokens = 0

    def prefill(self, token_ids: Sequence[int]) -> FloatArray:
        ids = self._checked(token_ids, self.past_tokens)
        self._fill(ids[:-1])  # only the decode signature has logits
        return self._decoded(ids[-1])

    def _fill(self, rest: Sequence[int]) -> None:
        """Append `rest` to the cache without logits."""
        while rest:
            length = max((n for n in self.prefill_tokens if n <= len(rest)), default=self.prefill_tokens[0])
            self._step(self._prefill[length], rest[:length])
            rest = rest[length:]

    def decode(self, token_id: int) -> FloatArray:
        return self._decoded(self._checked([token_id], self.past_tokens)[0])

    def logits(self, token_ids: Sequence[int], last: int | None = None) -> FloatArray:
        ids = self._checked(token_ids, 0)
        first = self._first_of(ids, last)
        self._cache_owner = None  # a running generation has lost its cache
        self.reset()
        self._fill(ids[:first])
        return np.stack([self._decoded(token_id) for token_id in ids[first:]])

    def close(self) -> None:
        with captured_log():
            self._decode = None
            self._prefill, self._tables = {}, {}
        self._entry.close()
