"""ONNX Runtime on CPU: weights and tables file-backed, keys and values bound in place, prefill in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepack.errors import EdgepackError, PackageError
from edgepack.model.spec import AttentionSpec, ModelSpec
from edgepack.package.folder import Package
from edgepack.package.interface import DECODER, EMBED, cache_type
from edgepack.package.interface_onnx import (
    ATTENTION_MASK,
    INPUT_IDS,
    INPUTS_EMBEDS,
    LOGITS,
    NUM_LOGITS_TO_KEEP,
    POSITION_IDS,
    past_names,
    present_names,
)
from edgepack.planning.runtime_costs import ONNX_RUNTIME
from edgepack.system.libraries import native_reason
from edgepack.values import FloatArray
from edgepack_runtimes.base import TokenRuntime
from edgepack_runtimes.cache import CacheSpec, cached_entry
from edgepack_runtimes.cache_files import Held
from edgepack_runtimes.native.heap import trimmed_heap
from edgepack_runtimes.native.mapped import drop_resident_pages, expect_random_access, mapped_spans, opening_files
from edgepack_runtimes.onnx.entry import DATA, FULL, PREPACK, WINDOW
from edgepack_runtimes.onnx.library import ort

# Rows that a full-length cache starts with; it doubles when it is full.
FIRST_CAPACITY_TOKENS = 512
# The first with window-sized caches of any capacity on CPU. Older ones are not only poorer: 1.23 makes a sliding window
# one token wider and reads packed zero points wrongly, without a word.
OLDEST = (1, 29)
# num_logits_to_keep that starts the slice of wanted positions behind the last one: the head and the layers without keys
# and values of their own then have nothing to do. For every chunk of a prompt but the last.
NOTHING = -(2**31)


def require_version() -> None:
    """Raise `EdgepackError` if the installed onnxruntime is older than `OLDEST`."""
    if tuple(int(part) for part in ort.__version__.split(".")[:2]) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise EdgepackError(
            f"onnxruntime {ort.__version__} computes these graphs wrongly or not at all: expected {wanted} or newer "
            f"(pip install 'onnxruntime>={wanted}')"
        )


def cache_spec(package: Package) -> CacheSpec:
    """How the cached entry of `package` is made: see `edgepack_runtimes.cache`."""
    files = _decoder_files(package)
    return CacheSpec(runtime="onnx", version=ort.__version__, files=files, command=("-m", PREPACK))


def _decoder_files(package: Package) -> tuple[str, ...]:
    """The decoder's graph and its weights, which stand in the same folder: all there but what is the embedder's."""
    decoder, embed = package.listed(DECODER), package.listed(EMBED)
    paths = [entry.path for entry in package.manifest.files]
    beside = [path for path in paths if PurePosixPath(path).parent == PurePosixPath(decoder).parent]
    return tuple(path for path in beside if path.startswith(decoder) or not path.startswith(embed))


def prepacked(package: Package, *, rebuild: bool = False) -> Held:
    """The cached folder with the prepacked weights of `package`, which has been checked then."""
    if find_spec("onnx") is None:  # said here: the process that needs it would say no way out
        raise ModuleNotFoundError("No module named 'onnx'", name="onnx")
    return cached_entry(package, cache_spec(package), rebuild=rebuild)


def open_session(path: Path, threads: int | None, *, optimized: bool) -> ort.InferenceSession:
    """A CPU session; `optimized` says that the graph was optimized when it was written."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions; said on stderr as well, they would be two lines
    options.intra_op_num_threads = threads or 0
    # An arena keeps what packing and prefill needed for a moment: 110 MB of E2B's anonymous memory, for no speed.
    options.enable_cpu_mem_arena = False
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_DISABLE_ALL if optimized else levels.ORT_ENABLE_EXTENDED
    try:
        # Without its second try, which could only be the same and is announced on stdout.
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=False)
    except Exception as error:  # onnxruntime raises its own types without a common base
        raise PackageError(
            f"{path} cannot be loaded by onnxruntime {ort.__version__}: {native_reason(error)}"
        ) from error


def refusing(step: Callable[..., Any], *arguments: Any) -> Any:
    """What `step` of a session returns; raises `PackageError` where onnxruntime refuses it."""
    try:
        return step(*arguments)
    except Exception as error:  # onnxruntime raises its own types without a common base
        raise PackageError(f"onnxruntime {ort.__version__} refused a step: {native_reason(error)}") from error


class Caches:
    """Keys and values of every owner, float32 [1, K, capacity, D], bound as past and present at once.

    Args:
        spec: the model.
        binding: where the buffers are bound.
        slack_tokens: rows that layers with a window hold beyond it, or None where they keep the full length too.
        context_tokens: the most that a full-length cache can ever hold.
    """

    def __init__(self, spec: ModelSpec, binding: ort.IOBinding, slack_tokens: int | None, context_tokens: int) -> None:
        self.spec, self.binding, self.context_tokens = spec, binding, context_tokens
        self.capacity_tokens = 0
        self.buffers: dict[int, list[FloatArray]] = {}
        self._growing: list[tuple[int, AttentionSpec]] = []
        for i, owner in enumerate(spec.kv_owners):
            attention = spec.attention_of(owner)
            if slack_tokens is None or attention.window is None:
                self._growing.append((i, attention))
            else:
                self._bind(i, _empty(attention, attention.window + slack_tokens))

    def reserve(self, total_tokens: int, past_tokens: int) -> None:
        """Make room for `total_tokens`, keeping the first `past_tokens` rows."""
        if total_tokens <= self.capacity_tokens:
            return
        capacity = max(FIRST_CAPACITY_TOKENS, self.capacity_tokens)
        while capacity < total_tokens:
            capacity *= 2
        self.capacity_tokens = min(capacity, self.context_tokens)
        for i, attention in self._growing:
            pair = _empty(attention, self.capacity_tokens)
            if past_tokens:
                for new, old in zip(pair, self.buffers[i], strict=True):
                    new[:, :, :past_tokens] = old[:, :, :past_tokens]
            self._bind(i, pair)

    def _bind(self, i: int, pair: list[FloatArray]) -> None:
        self.buffers[i] = pair
        for past, present, buffer in zip(past_names(i), present_names(i), pair, strict=True):
            place = ("cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
            self.binding.bind_input(past, *place)
            self.binding.bind_output(present, *place)


def _empty(attention: AttentionSpec, tokens: int) -> list[FloatArray]:
    """Keys and values [1, K, `tokens`, D] of one layer."""
    # Zeros, not garbage: a masked row still takes part in a product, and 0 * NaN is NaN. Untouched pages of a
    # fresh zero array are not resident.
    return [np.zeros(cache_type(attention, tokens).sizes, np.float32) for _ in range(2)]


class Decoder:
    """One decoder session with its bound caches and inputs."""

    def __init__(
        self, session: ort.InferenceSession, spec: ModelSpec, context_tokens: int, slack_tokens: int | None
    ) -> None:
        self.session, self.spec = session, spec
        self.binding = session.io_binding()
        self.caches = Caches(spec, self.binding, slack_tokens, context_tokens)
        self.mask = np.ones((1, context_tokens), np.int64)
        self.positions = np.arange(context_tokens, dtype=np.int64)[None]
        self._alive: dict[str, npt.NDArray[Any]] = {}

    def _bind(self, name: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
        """Bind the first elements of a contiguous `array` as an input of `shape`, and keep it alive."""
        self._alive[name] = array
        self.binding.bind_input(name, "cpu", 0, array.dtype.type, shape, array.ctypes.data)

    def step(self, embedded: dict[str, npt.NDArray[Any]], past_tokens: int, logits_to_keep: int) -> FloatArray:
        """Append S embedded tokens behind `past_tokens`; logits float32 [S', V]: all for 0, none for `NOTHING`."""
        new = embedded[INPUTS_EMBEDS].shape[1]
        total = past_tokens + new
        self.caches.reserve(total, past_tokens)
        for name, array in embedded.items():
            self._bind(name, array, array.shape)
        self._bind(ATTENTION_MASK, self.mask, (1, total))
        self._bind(POSITION_IDS, np.ascontiguousarray(self.positions[:, past_tokens:total]), (1, new))
        self._bind(NUM_LOGITS_TO_KEEP, np.array(logits_to_keep, np.int64), ())
        wanted = max(0, logits_to_keep or new)
        logits = np.empty((1, wanted, self.spec.vocab_size), np.float32)
        self.binding.bind_output(LOGITS, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        refusing(self.session.run_with_iobinding, self.binding)
        result: FloatArray = logits[0]
        return result


class OnnxRuntime(TokenRuntime):
    """A package in ONNX Runtime.

    Args:
        package: an opened package.
        threads: CPU threads; None takes all cores.
        chunk_tokens: prompt tokens per step; larger chunks are faster and need more memory for activations.
        slack_tokens: rows that a window-sized cache has beyond its window: more rows are compacted less often.
        rebuild_cache: pack the weights again.
    """

    def __init__(
        self,
        package: Package,
        *,
        threads: int | None = None,
        chunk_tokens: int | None = None,
        slack_tokens: int = ONNX_RUNTIME.window_slack_tokens,
        rebuild_cache: bool = False,
    ) -> None:
        self._begin(package, backend="onnx", runtime="onnx", threads=threads)
        require_version()
        self.chunk_tokens = self.plan.chunk_tokens if chunk_tokens is None else chunk_tokens
        if self.chunk_tokens < 1:
            raise EdgepackError(f"chunk_tokens is {self.chunk_tokens}: expected at least 1")
        self.slack_tokens = slack_tokens
        self._entry = prepacked(package, rebuild=rebuild_cache)  # checked, before anything native opens a file of it
        tables = [package.path / entry.path for entry in package.manifest.files if entry.path.endswith("_data")]
        with opening_files:
            others = mapped_spans(tables)  # of other models that have this package open
            self._embed: ort.InferenceSession | None = open_session(package.file(EMBED), threads, optimized=False)
            self._lookup_spans = mapped_spans(tables) - others
        expect_random_access(self._lookup_spans)
        self._embed_outputs = [value.name for value in self._embed.get_outputs()]
        self._looked_up_tokens = 0
        self._full: Decoder | None = None
        self._decoder: Decoder | None = self._open(WINDOW)

    def _open(self, name: str) -> Decoder:
        try:
            return self._open_entry(name)
        except PackageError:  # its files were damaged: it is a cache, so it is built again
            self._entry.close()
            self._entry = prepacked(self.package, rebuild=True)
            return self._open_entry(name)

    def _open_entry(self, name: str) -> Decoder:
        with opening_files:
            before = mapped_spans([self._entry.path / DATA])
            with trimmed_heap():
                session = open_session(self._entry.path / name, self.threads, optimized=True)
            # The load reads all that it maps; what a step needs comes back, the raw scales and zero points stay away.
            drop_resident_pages(mapped_spans([self._entry.path / DATA]) - before)
        slack = self.slack_tokens if name == WINDOW else None
        return Decoder(session, self.spec, self.max_context_tokens, slack)

    def _embedded(self, token_ids: Sequence[int]) -> dict[str, npt.NDArray[Any]]:
        """Rows of the tables for S tokens, looked up in small portions: the pages around a row are given back soon."""
        if self._embed is None:
            raise EdgepackError("this model is closed: load the package again")
        size = ONNX_RUNTIME.lookup_tokens
        portions = []
        for start in range(0, len(token_ids), size):
            ids = np.asarray(token_ids[start : start + size], np.int64)[None]
            portions.append(refusing(self._embed.run, None, {INPUT_IDS: ids}))
            self._looked_up_tokens += ids.size
            if self._looked_up_tokens >= size:
                self._looked_up_tokens = 0
                drop_resident_pages(self._lookup_spans)
        rows = (
            portions[0] if len(portions) == 1 else [np.concatenate(parts, 1) for parts in zip(*portions, strict=True)]
        )
        return dict(zip(self._embed_outputs, rows, strict=True))

    def _check(self, token_ids: Iterable[int], past_tokens: int) -> list[int]:
        """`token_ids` as plain ints, after asking whether all of them can be appended behind `past_tokens`."""
        if self._embed is None:
            raise EdgepackError("this model is closed: load the package again")
        return self.check_room(token_ids, past_tokens)

    def _append(self, token_ids: Sequence[int], logits_to_keep: int = 1) -> FloatArray:
        if self._decoder is None:
            raise EdgepackError("this model is closed: load the package again")
        total = self.past_tokens + len(token_ids)
        logits = self._decoder.step(self._embedded(token_ids), self.past_tokens, logits_to_keep)
        self.past_tokens = total
        return logits

    def reset(self) -> None:
        self.past_tokens = 0

    def prefill(self, token_ids: Sequence[int]) -> FloatArray:
        ids = self._check(token_ids, self.past_tokens)
        last = (len(ids) - 1) // self.chunk_tokens * self.chunk_tokens
        for start in range(0, last, self.chunk_tokens):
            self._append(ids[start : start + self.chunk_tokens], NOTHING)
        logits: FloatArray = self._append(ids[last:])[0]
        return logits

    def decode(self, token_id: int) -> FloatArray:
        logits: FloatArray = self._append(self._check([token_id], self.past_tokens))[0]
        return logits

    def logits(self, token_ids: Sequence[int], last: int | None = None) -> FloatArray:
        # Full-length caches: KV-sharing layers then find every position's window, not only the last one's.
        ids = self._check(token_ids, 0)
        first = self._first_of(ids, last)
        if self._full is None:
            self._full = self._open(FULL)
        parts = []
        for start in range(0, len(ids), self.chunk_tokens):
            chunk = ids[start : start + self.chunk_tokens]
            wanted = min(start + len(chunk) - first, len(chunk))
            parts.append(self._full.step(self._embedded(chunk), start, wanted if wanted > 0 else NOTHING))
        return np.concatenate(parts)

    def close(self) -> None:
        self._decoder = self._full = self._embed = None
        self._entry.close()
