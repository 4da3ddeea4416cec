"""What planning knows from measurements: what each runtime adds to a model, and what an export takes."""

from __future__ import annotations

from edgepack.planning.backends import RuntimeName
from edgepack.values import Frozen

# The exporter works on row chunks of about this many elements, one chunk a thread,
# and by default on no more than this many threads.
EXPORT_CHUNK_ELEMENTS = 1 << 20
EXPORT_THREADS = 8
EXPORT_BASE_BYTES = 120_000_000
# A chunk as read, as float32, and the quantizer's work buffers and results.
EXPORT_BYTES_PER_ELEMENT = 12
# The same where columns make up for each other's errors: what one thread more took on Gemma 3 270M.
COMPENSATED_BYTES_PER_ELEMENT = 44
# The process that converts a tokenizer for LiteRT-LM, measured on Gemma's 262,144 tokens: 241 MB.
TOKENIZER_BASE_BYTES = 30_000_000
TOKENIZER_BYTES_PER_TOKEN = 850
# A larger matrix (the head of a full-size model) becomes several products side by side: a runtime that repacks weights
# holds one of them in anonymous memory at a time. One copy of the logits is 0.2 % of a decode step.
LARGEST_PRODUCT_BYTES = 100_000_000


class RuntimeCosts(Frozen):
    """What a runtime adds to the model; how each was measured stands at the values below.

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
        lookup_tokens: looked-up rows whose pages count.
        drops_lookups: whether the runtime gives the pages of its tables back after as many.
        packed_block_bytes: bytes that a repacked matrix has per quantization block besides its codes (scale and sum).
        packed_row_bytes: the same, per row.
        packs_whole: whether a load holds a matrix raw and packed side by side, one product at a time.
        tokenizer_piece_bytes: heap that a tokenizer of the runtime's own takes for each token of the vocabulary.
        table_copies: whether an embedding that is looked up and multiplied with is stored once for each use.
        copies_models: whether the runtime keeps the models as files of their own beside the package.
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
    drops_lookups: bool
    packed_block_bytes: float
    packed_row_bytes: int
    packs_whole: bool
    tokenizer_piece_bytes: int
    table_copies: bool
    copies_models: bool
    keeps_cache: bool
    whole_caches: bool


# Measured with benchmarks/plan_table.py and /proc/PID/smaps, 2026-11-24: Linux 6.18, 2 threads, Python 3.11.7, numpy
# 2.4.6, onnxruntime 1.32.0, ai-edge-litert 2.3.0; demo, Gemma 3 270M, E2B and E4B (8, 18, 30 and 35 layers).
ONNX_RUNTIME = RuntimeCosts(
    # Mapped files other than weights at the end of a run: 41.7 to 44.3 MB. No load imports `onnx` since 2026-11-28.
    library_file_bytes=44_500_000,
    # Anonymous memory after the load was 47.5, 52.9, 64.7 and 67.6 MB: a line over the layers, 41.6 + 0.74 MB each.
    # As a load imports less it is 3 MB lower; first short steps leave 2 MB, and what doubling caches leave behind on
    # the demo's small heap is 1.4 MB. In some runs of E2B and E4B glibc kept 31 MB more, and then used it.
    library_anonymous_bytes=42_000_000,
    layer_anonymous_bytes=740_000,
    window_slack_tokens=64,
    streams_alive=5.0,  # E4B, of twice E2B's FFN width, needs no more than 66 MB where E2B needs 45 to 64
    ffn_alive=7.0,
    attention_alive=0.0,
    scores_alive=0.0,
    masks_alive=0,
    repacked_caches=0.0,
    lookup_tokens=8,
    drops_lookups=True,
    packed_block_bytes=8,
    packed_row_bytes=0,
    packs_whole=True,
    tokenizer_piece_bytes=0,
    table_copies=False,
    copies_models=False,
    keeps_cache=False,
    whole_caches=False,
)
LITERT_RUNTIME = RuntimeCosts(
    library_file_bytes=37_000_000,  # mapped files other than models and packed weights: 36.1 MB (2026-11-28)
    # This and what is alive: least squares over the anonymous memory of 13 runs, of four models at 1024 and 4096 tokens
    # and of the demo with pieces of 32 to 1024 tokens too. Residuals are below 5 MB.
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
    drops_lookups=True,
    packed_block_bytes=2,
    packed_row_bytes=8,
    packs_whole=False,
    tokenizer_piece_bytes=0,
    table_copies=True,
    copies_models=True,
    keeps_cache=True,
    whole_caches=True,
)
# LiteRT-LM on the same bundles (litert-lm-api 0.18.1, 2026-11-28; demo, Gemma 3 270M and E2B at 1024 to 4096 tokens): a
# heap 4 MB larger, on E2B smaller, and with Gemma's 262,144 pieces 42 MB of tokenizer. One that is no SentencePiece
# model costs nearly ten times that: see docs/litert.md.
LITERT_LM_RUNTIME = LITERT_RUNTIME.model_copy(
    update={
        "library_file_bytes": 78_000_000,  # 76.3 to 80.0 MB
        "library_anonymous_bytes": 37_000_000,
        "tokenizer_piece_bytes": 160,
        # A prompt of a dozen words and its answer touched 22 to 28 MB of the tables of 270M, and 105 MB of E2B's.
        "lookup_tokens": 32,
        "drops_lookups": False,
        "copies_models": False,
    }
)
RUNTIME_COSTS: dict[RuntimeName, RuntimeCosts] = {
    "onnx": ONNX_RUNTIME,
    "litert": LITERT_RUNTIME,
    "litert-lm": LITERT_LM_RUNTIME,
}
