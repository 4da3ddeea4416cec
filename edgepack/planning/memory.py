"""Memory and traffic by arithmetic: what a package costs on disk, in RAM and per token, before a weight is read.

File-backed memory is pages of a mapped file: the system can drop and re-read them. Anonymous memory is the rest: when
it does not fit, the process is killed. A budget holds when both together stay under the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from edgepack.model.spec import AttentionSpec, ModelSpec
from edgepack.planning.backends import BackendName
from edgepack.values import Frozen

FLOAT32_BYTES = 4
PAGE_BYTES = 4096
# Touching one page of a cached file maps what is around it: fault_around_bytes (64 KiB), or a whole large folio where
# the page cache has them. Measured on Linux 6.18, ext4: 0.4 MB a look-up on average.
FAULT_AROUND_BYTES = 1 << 19
# The exporter works on row chunks of about this many elements, one chunk a thread,
# and by default on no more than this many threads.
EXPORT_CHUNK_ELEMENTS = 1 << 20
EXPORT_THREADS = 8
EXPORT_BASE_BYTES = 120_000_000
# A chunk as read, as float32, and the quantizer's work buffers and results.
EXPORT_BYTES_PER_ELEMENT = 12
# The process that converts a tokenizer for LiteRT-LM, measured on Gemma's 262,144 tokens: 241 MB.
TOKENIZER_BASE_BYTES = 30_000_000
TOKENIZER_BYTES_PER_TOKEN = 850
# A larger matrix (the head of a full-size model) becomes several products side by side: a runtime that repacks weights
# holds one of them in anonymous memory at a time. One copy of the logits is 0.2 % of a decode step.
LARGEST_PRODUCT_BYTES = 100_000_000
MemoryKind = Literal["file", "anonymous"]


class MemoryRow(Frozen):
    """One line of a memory budget: bytes on disk, and resident bytes at the peak of a generation."""

    name: str
    kind: MemoryKind
    disk_bytes: int = 0
    resident_bytes: int
    note: str = ""


class RuntimeCosts(Frozen):
    """What a backend's runtime adds to the model; how each was measured stands at the values below.

    Attributes:
        library_file_bytes: mapped code of Python, numpy and the runtime.
        library_anonymous_bytes: heap of an idle process with the sessions open, weights and graph aside.
        layer_anonymous_bytes: heap that the graph of one layer takes: nodes, tensors, kernels.
        window_slack_tokens: rows that a sliding layer's cache has beyond its window.
        streams_alive: activation buffers alive at the peak of a chunk, in units of [S, A * M] float32.
        ffn_alive: the same in units of [S, F] float32, F being the widest layer's.
        attention_alive: the same in units of [S, H * D] float32.
        scores_alive: attention scores alive at its peak, in units of [H, S, T] float32: 0 where attention is one
            operator that works in pieces.
        masks_alive: masks [S, T] float32, besides one for each query head of a KV head; 0 where none is needed.
        repacked_caches: copies of one full-length layer's keys [K, T, D] (or values) that attention makes.
        lookup_tokens: looked-up rows after which a runtime gives the pages of its tables back.
        packed_block_bytes: bytes that a repacked matrix has per quantization block besides its codes (scale and sum).
        packed_row_bytes: the same, per row.
        packs_whole: whether a load holds a matrix raw and packed side by side, one product at a time.
        table_copies: whether an embedding that is looked up and multiplied with is stored once for each use.
        keeps_cache: whether repacked weights are a file of their own beside the package.
        whole_caches: whether keys and values are resident for the whole context from the start.
    """

    library_file_bytes: int
    library_anonymous_bytes: int
    layer_anonymous_bytes: int
    window_slack_tokens: int
    streams_alive: float
    ffn_alive: float
    attention_alive: float
    scores_alive: float
    masks_alive: int
    repacked_caches: float
    lookup_tokens: int
    packed_block_bytes: float
    packed_row_bytes: int
    packs_whole: bool
    table_copies: bool
    keeps_cache: bool
    whole_caches: bool


# Measured with benchmarks/plan_table.py and /proc/PID/smaps, 2026-11-24: Linux 6.18, 2 threads, Python 3.11.7, numpy
# 2.4.6, onnxruntime 1.32.0, ai-edge-litert 2.3.0; demo, Gemma 3 270M, E2B and E4B (8, 18, 30 and 35 layers).
ONNX_RUNTIME = RuntimeCosts(
    library_file_bytes=49_000_000,  # mapped files other than weights at the end of a run: 48.1 to 48.8 MB
    # Anonymous memory after the load was 47.5, 52.9, 64.7 and 67.6 MB: a line over the layers, 41.6 + 0.74 MB each. The
    # checks of graphs that came later leave 4 MB, first short steps 2 MB, and what doubling caches leave
    # behind on the demo's small heap 1.4 MB. In some runs of E2B and E4B glibc kept 31 MB more, and then used it.
    library_anonymous_bytes=49_000_000,
    layer_anonymous_bytes=740_000,
    window_slack_tokens=64,
    streams_alive=5.0,  # E4B, of twice E2B's FFN width, needs no more than 66 MB where E2B needs 45 to 64
    ffn_alive=7.0,
    attention_alive=0.0,
    scores_alive=0.0,
    masks_alive=0,
    repacked_caches=0.0,
    lookup_tokens=8,
    packed_block_bytes=8,
    packed_row_bytes=0,
    packs_whole=True,
    table_copies=False,
    keeps_cache=False,
    whole_caches=False,
)
LITERT_RUNTIME = RuntimeCosts(
    library_file_bytes=40_000_000,  # mapped files other than models and packed weights: 38.8 to 40.0 MB
    # This and what is alive: least squares over the anonymous memory of 13 runs, of four models at 1024 and 4096 tokens
    # and of the demo with pieces of 32 to 1024 tokens too. Residuals are below 5 MB. Checks of graphs added 4.5 MB.
    library_anonymous_bytes=32_500_000,
    layer_anonymous_bytes=400_000,
    window_slack_tokens=0,
    streams_alive=6.3,
    ffn_alive=4.2,
    attention_alive=25.0,  # queries and their rotated pieces, and rings of keys and values with the new rows behind
    scores_alive=0.75,
    masks_alive=2,  # the input, and the one that is written to it
    repacked_caches=4.2,
    lookup_tokens=8,
    packed_block_bytes=2,
    packed_row_bytes=8,
    packs_whole=False,
    table_copies=True,
    keeps_cache=True,
    whole_caches=True,
)
# LiteRT-LM on the same bundles: 74 to 78 MB of code in place of 39, pages of the bundle that it never gives back, and
# with Gemma's 262,144 pieces 42 MB of tokenizer (with the demo's 2,176 nothing that could be seen). A tokenizer that is
# no SentencePiece model costs nearly ten times that: see docs/litert.md.
ENGINE_CODE_BYTES = 38_000_000
ENGINE_PIECE_BYTES = 160
RUNTIME_COSTS: dict[BackendName, RuntimeCosts] = {"onnx": ONNX_RUNTIME, "litert": LITERT_RUNTIME}


def kv_bytes(spec: ModelSpec, context_tokens: int, slack_tokens: int) -> dict[str, int]:
    """Key and value cache by attention kind, float32; sliding layers hold their window and some slack."""
    totals = {"sliding": 0, "full": 0}
    for owner in spec.kv_owners:
        attention = spec.attention_of(owner)
        window = context_tokens if attention.window is None else attention.window + slack_tokens
        rows = min(context_tokens, window)  # rows never written are not resident
        totals[spec.layers[owner].kind] += 2 * rows * attention.kv_width * FLOAT32_BYTES
    return totals


def touched_table_bytes(row_bytes: Sequence[int], table_bytes: Sequence[int], tokens: int) -> int:
    """Resident pages of tables of which `tokens` scattered rows are read.

    Args:
        row_bytes: bytes of one row in each of the tables.
        table_bytes: size of each table: more than all of it cannot be resident.
        tokens: rows read; distinct tokens are fewer, so this is an upper bound.
    """
    per_row = (max(FAULT_AROUND_BYTES, row + PAGE_BYTES) for row in row_bytes)
    return sum(min(size, tokens * pages) for size, pages in zip(table_bytes, per_row, strict=True))


def activation_bytes(spec: ModelSpec, chunk_tokens: int, context_tokens: int, costs: RuntimeCosts) -> int:
    """Peak of the values alive while `chunk_tokens` (S) are prefilled behind up to `context_tokens` (T) tokens.

    Besides buffers of one layer these are per-layer inputs, as looked up and as projected, and a row of logits twice.
    """
    streams = spec.altup.num_inputs if spec.altup else 1
    per_layer = len(spec.layers) * spec.ple.dim if spec.ple else 0
    per_token = costs.streams_alive * streams * spec.hidden_size + 2 * per_layer
    per_token += costs.ffn_alive * max(layer.ffn_width for layer in spec.layers)

    def with_attention(attention: AttentionSpec) -> float:
        """Elements with a layer of this attention; one with a window is counted as if it saw all of T."""
        total = per_token + costs.attention_alive * attention.num_heads * attention.head_dim
        total += costs.scores_alive * attention.num_heads * context_tokens
        if costs.masks_alive:  # the query heads of a KV head are rows of one product, and each needs its mask
            total += (costs.masks_alive + attention.groups) * context_tokens
        copies = costs.repacked_caches * attention.num_kv_heads * attention.head_dim * context_tokens
        return chunk_tokens * total + copies

    return int((max(map(with_attention, spec.attention.values())) + 2 * spec.vocab_size) * FLOAT32_BYTES)


def export_peak_bytes(widest_row: int, tokenizer_tokens: int) -> int:
    """Peak RSS of an export and the processes that it starts.

    First a process converts the tokenizer, beside the export's own; then each thread has one chunk as read, as float32
    and as work buffers.

    Args:
        widest_row: elements of the widest row of a tensor, the least that a chunk can have.
        tokenizer_tokens: tokens of the tokenizer that is converted; 0 where none is.
    """
    converting = TOKENIZER_BASE_BYTES + tokenizer_tokens * TOKENIZER_BYTES_PER_TOKEN if tokenizer_tokens else 0
    quantizing = EXPORT_THREADS * max(EXPORT_CHUNK_ELEMENTS, widest_row) * EXPORT_BYTES_PER_ELEMENT
    return EXPORT_BASE_BYTES + max(converting, quantizing)
