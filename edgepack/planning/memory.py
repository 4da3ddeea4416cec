"""Memory and traffic by arithmetic: what a package costs on disk, in RAM and per token, before a weight is read.

File-backed memory is pages of a mapped file: the system can drop and re-read them. Anonymous memory is the rest: when
it does not fit, the process is killed. A budget holds when both together stay under the target.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod

from edgepack.model.spec import AttentionSpec, ModelSpec
from edgepack.planning.assign import TABLES, is_multiplied
from edgepack.planning.plan import MemoryRow, TensorPlan
from edgepack.planning.runtime_costs import (
    COMPENSATED_BYTES_PER_ELEMENT,
    EXPORT_BASE_BYTES,
    EXPORT_BYTES_PER_ELEMENT,
    EXPORT_CHUNK_ELEMENTS,
    EXPORT_THREADS,
    LARGEST_PRODUCT_BYTES,
    TOKENIZER_BASE_BYTES,
    TOKENIZER_BYTES_PER_TOKEN,
    RuntimeCosts,
)
from edgepack.quant import IntScheme

FLOAT32_BYTES = 4
PAGE_BYTES = 4096
# Touching one page of a cached file maps what is around it: fault_around_bytes (64 KiB), or a whole large folio where
# the page cache has them. Measured on Linux 6.18, ext4: 0.4 MB a look-up on average.
FAULT_AROUND_BYTES = 1 << 19


def planned_rows(
    tensors: Sequence[TensorPlan], spec: ModelSpec, costs: RuntimeCosts, context_tokens: int, chunk_tokens: int
) -> tuple[MemoryRow, ...]:
    """The memory budget of a run that fills `context_tokens`, with prompts in pieces of up to `chunk_tokens`."""
    disk: dict[str, int] = {}
    resident: dict[str, int] = {}
    lookups = 0
    for tensor in tensors:
        disk[tensor.component] = disk.get(tensor.component, 0) + tensor.scheme.nbytes(tensor.shape)
        used = _packed_bytes(tensor, costs) if is_multiplied(tensor, spec) else 0
        resident[tensor.component] = resident.get(tensor.component, 0) + used
        lookups += _looked_up_bytes(tensor, min(context_tokens, costs.lookup_tokens)) if tensor.gathered else 0
    rows = [
        MemoryRow(name=name, kind="file", disk_bytes=size, resident_bytes=resident[name], note=_note(name))
        for name, size in disk.items()
    ]
    rows += _copies(tensors, spec, costs)
    note = "pages around them" + ("" if costs.drops_lookups else ", more where memory is free: the system drops them")
    rows.append(MemoryRow(name="looked-up rows", kind="file", resident_bytes=lookups, note=note))
    rows += _run_rows(spec, costs, chunk_tokens, context_tokens)
    more = 0 if not costs.packs_whole else _load_bytes(tensors, spec, costs) - sum(row.resident_bytes for row in rows)
    if more > 0:  # a small model with a large vocabulary, or a large model with little context: its peak is the load
        rows.append(MemoryRow(name="loading", kind="file", resident_bytes=more, note="while weights are packed"))
    return tuple(rows)


def read_per_token_bytes(
    tensors: Sequence[TensorPlan], spec: ModelSpec, costs: RuntimeCosts, context_tokens: int
) -> int:
    """Bytes that one decode step reads from memory: weights, whole windows, and half of the full-length caches."""
    cache = kv_bytes(spec, context_tokens, costs.window_slack_tokens)
    return _product_bytes(tensors, spec, costs) + cache["sliding"] + cache["full"] // 2


def _product_bytes(tensors: Sequence[TensorPlan], spec: ModelSpec, costs: RuntimeCosts) -> int:
    """Bytes of everything that is multiplied with, as the runtime has repacked it."""
    return sum(_packed_bytes(tensor, costs) for tensor in tensors if is_multiplied(tensor, spec))


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


def export_peak_bytes(widest_row: int, tokenizer_tokens: int, calibrated_columns: Iterable[int] = ()) -> int:
    """Peak RSS of an export and the processes that it starts.

    First a process converts the tokenizer, beside the export's own; then each thread has one chunk as read, as float32
    and as work buffers. A rounding that takes the second moments of an input has them and their factor, beside the
    factor of the input before.

    Args:
        widest_row: elements of the widest row of a tensor, the least that a chunk can have.
        tokenizer_tokens: tokens of the tokenizer that is converted; 0 where none is.
        calibrated_columns: columns of the matrices that are rounded so.
    """
    converting = TOKENIZER_BASE_BYTES + tokenizer_tokens * TOKENIZER_BYTES_PER_TOKEN if tokenizer_tokens else 0
    largest = sorted(set(calibrated_columns), reverse=True)[:2]
    element_bytes = COMPENSATED_BYTES_PER_ELEMENT if largest else EXPORT_BYTES_PER_ELEMENT
    quantizing = EXPORT_THREADS * max(EXPORT_CHUNK_ELEMENTS, widest_row) * element_bytes
    moments = sum(copies * columns**2 * FLOAT32_BYTES for copies, columns in zip((2, 1), largest, strict=False))
    return EXPORT_BASE_BYTES + max(converting, quantizing + moments)


def _run_rows(spec: ModelSpec, costs: RuntimeCosts, chunk_tokens: int, context_tokens: int) -> Iterator[MemoryRow]:
    """What a run needs besides weights: caches by attention kind, activations, and the runtime itself."""
    for kind, size in kv_bytes(spec, context_tokens, costs.window_slack_tokens).items():
        if size:
            yield MemoryRow(name=f"KV cache, {kind} layers", kind="anonymous", resident_bytes=size)
    activations = activation_bytes(spec, chunk_tokens, context_tokens, costs)
    note = f"prefill in chunks of {chunk_tokens}"
    yield MemoryRow(name="activations", kind="anonymous", resident_bytes=activations, note=note)
    yield MemoryRow(name="runtime, heap", kind="anonymous", resident_bytes=costs.library_anonymous_bytes)
    yield MemoryRow(name="runtime, graph", kind="anonymous", resident_bytes=_graph_bytes(spec, costs))
    if costs.tokenizer_piece_bytes:
        size = costs.tokenizer_piece_bytes * spec.vocab_size
        yield MemoryRow(name="runtime, tokenizer", kind="anonymous", resident_bytes=size)
    yield MemoryRow(name="runtime, code", kind="file", resident_bytes=costs.library_file_bytes)


def _copies(tensors: Sequence[TensorPlan], spec: ModelSpec, costs: RuntimeCosts) -> Iterator[MemoryRow]:
    """What some runtimes need on disk besides one copy of every tensor."""
    copied = 0
    for tensor in tensors:
        if costs.table_copies and tensor.gathered and is_multiplied(tensor, spec):
            size = tensor.scheme.nbytes(tensor.shape)
            copied += size
            note = "the table that is looked up, a second copy"
            yield MemoryRow(name=f"{tensor.component} rows", kind="file", disk_bytes=size, resident_bytes=0, note=note)
    if costs.copies_models:
        models = sum(tensor.scheme.nbytes(tensor.shape) for tensor in tensors) + copied
        note = "not in the package: the litert runtime's copy of it"
        yield MemoryRow(name="models in the cache", kind="file", disk_bytes=models, resident_bytes=0, note=note)
    if costs.keeps_cache:
        note = "not in the package: repacked weights, written by the first load"
        size = _product_bytes(tensors, spec, costs)
        yield MemoryRow(name="weight cache", kind="file", disk_bytes=size, resident_bytes=0, note=note)


def _packed_bytes(tensor: TensorPlan, costs: RuntimeCosts) -> int:
    """Bytes of a tensor as the runtime has repacked it: codes, and per block a scale and a sum."""
    scheme = tensor.scheme
    if not isinstance(scheme, IntScheme):
        return scheme.nbytes(tensor.shape)
    codes, blocks = prod(tensor.shape) * scheme.bits // 8, prod(tensor.shape) // scheme.block_of(tensor.shape)
    return codes + int(blocks * costs.packed_block_bytes) + tensor.shape[0] * costs.packed_row_bytes


def _graph_bytes(spec: ModelSpec, costs: RuntimeCosts) -> int:
    return len(spec.layers) * costs.layer_anonymous_bytes


def _load_bytes(tensors: Sequence[TensorPlan], spec: ModelSpec, costs: RuntimeCosts) -> int:
    """Peak of resident bytes while one product after another is packed, the largest first.

    For a moment a product is there raw, fresh and saved. Of all before it the saved bytes stay, and until the load has
    come to its end the raw scales and zero points too.
    """
    products = [tensor for tensor in tensors if len(tensor.shape) == 2 and is_multiplied(tensor, spec)]
    staying = peak = 0
    for tensor in sorted(products, key=lambda tensor: -prod(tensor.shape)):
        raw, packed = tensor.scheme.nbytes(tensor.shape), _packed_bytes(tensor, costs)
        codes = prod(tensor.shape) * tensor.scheme.bits // 8 if isinstance(tensor.scheme, IntScheme) else raw
        slices = max(1, -(-codes // LARGEST_PRODUCT_BYTES)) if isinstance(tensor.scheme, IntScheme) else 1
        for _ in range(slices):
            peak = max(peak, staying + (raw + 2 * packed) // slices)
            staying += (packed + raw - codes) // slices
    return max(peak, staying) + costs.library_file_bytes + costs.library_anonymous_bytes + _graph_bytes(spec, costs)


def _looked_up_bytes(tensor: TensorPlan, tokens: int) -> int:
    sizes = [part.nbytes for part in tensor.scheme.parts(tensor.shape)]
    return touched_table_bytes([size // tensor.shape[0] for size in sizes], sizes, tokens)


def _note(component: str) -> str:
    return "stays on file" if component in TABLES else ""
