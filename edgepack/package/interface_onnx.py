"""The two graphs of an ONNX package: names and order are those that transformers.js and onnx-community have."""

from __future__ import annotations

from collections.abc import Mapping

from edgepack.model.spec import ModelSpec
from edgepack.package.interface import Interface, TensorType, cache_type

INPUT_IDS = "input_ids"
INPUTS_EMBEDS, PER_LAYER_INPUTS = "inputs_embeds", "per_layer_inputs"
ATTENTION_MASK, POSITION_IDS, NUM_LOGITS_TO_KEEP = "attention_mask", "position_ids", "num_logits_to_keep"
LOGITS = "logits"
# What GroupQueryAttention has as the window of a layer that sees all positions.
NO_WINDOW = -1
_BATCH, _SEQUENCE, _PAST, _TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"


def past_names(i: int) -> tuple[str, str]:
    """Inputs for keys and values of the owner number `i`, before a step."""
    return f"past_key_values.{i}.key", f"past_key_values.{i}.value"


def present_names(i: int) -> tuple[str, str]:
    """Outputs for keys and values of the owner number `i`, after a step."""
    return f"present.{i}.key", f"present.{i}.value"


def embed_interface(spec: ModelSpec) -> Interface:
    """The graph that looks tokens up."""
    ids = TensorType("int64", (_BATCH, _SEQUENCE))
    return Interface({INPUT_IDS: ids}, _rows(spec))


def _rows(spec: ModelSpec) -> Mapping[str, TensorType]:
    rows = {INPUTS_EMBEDS: TensorType("float32", (_BATCH, _SEQUENCE, spec.hidden_size))}
    if spec.ple is not None:
        shape = (_BATCH, _SEQUENCE, len(spec.layers), spec.ple.dim)
        rows[PER_LAYER_INPUTS] = TensorType("float32", shape)
    return rows


def decoder_interface(spec: ModelSpec) -> Interface:
    """The decoder: caches of any length go in and come out, longer by the new tokens."""
    inputs = {
        **_rows(spec),
        ATTENTION_MASK: TensorType("int64", (_BATCH, _TOTAL)),
        POSITION_IDS: TensorType("int64", (_BATCH, _SEQUENCE)),
    }
    outputs = {LOGITS: TensorType("float32", (_BATCH, "num_logits", spec.vocab_size))}
    for i, owner in enumerate(spec.kv_owners):
        attention = spec.attention_of(owner)
        inputs |= dict.fromkeys(past_names(i), cache_type(attention, _PAST, _BATCH))
        outputs |= dict.fromkeys(present_names(i), cache_type(attention, _TOTAL, _BATCH))
    inputs[NUM_LOGITS_TO_KEEP] = TensorType("int64", ())
    return Interface(inputs, outputs)


def window_tokens(spec: ModelSpec, layer: int) -> int:
    """Positions that the attention of `layer` sees, and that its cache may be cut to; `NO_WINDOW` for all."""
    window = spec.attention_of(layer).window
    return NO_WINDOW if window is None else window
