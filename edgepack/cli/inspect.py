"""`edgepack inspect`: what a checkpoint is."""

from __future__ import annotations

import json
from collections import Counter
from math import prod
from typing import Any

import typer
from rich.table import Table

from edgepack.checkpoint.folder import Checkpoint, open_checkpoint
from edgepack.cli.console import nothing_written, told_of_interruption
from edgepack.cli.options import CheckpointArgument, JsonOption, OfflineOption, RevisionOption, TokenOption
from edgepack.cli.tables import print_table
from edgepack.model.families import family_of
from edgepack.model.read import read_model
from edgepack.model.spec import AttentionSpec, ModelSpec
from edgepack.model.tensors import checkpoint_name
from edgepack.units import format_bytes


def command(
    checkpoint: CheckpointArgument,
    json_output: JsonOption = False,
    revision: RevisionOption = None,
    token: TokenOption = None,
    offline: OfflineOption = False,
) -> None:
    """Show the model in a checkpoint: layers, caches, parameters by component. Reads headers, no weights."""
    with (
        told_of_interruption(lambda: nothing_written(checkpoint)),
        open_checkpoint(checkpoint, revision=revision, token=token, offline=offline) as source,
    ):
        spec = read_model(source)
        facts = describe(source, spec)
    if json_output:
        typer.echo(json.dumps({**facts, "spec": spec.model_dump(mode="json")}))
        return
    _print(facts, spec, str(source.path))


def describe(source: Checkpoint, spec: ModelSpec) -> dict[str, Any]:
    """Parameters and stored bytes by component, and what the checkpoint holds besides."""
    table = family_of(spec).tensor_table(spec)
    components: dict[str, dict[str, int]] = {}
    used = set()
    for tensor in table:
        name = checkpoint_name(spec, tensor.name)
        used.add(name)
        entry = components.setdefault(tensor.component, {"tensors": 0, "parameters": 0, "stored_bytes": 0})
        entry["tensors"] += 1
        entry["parameters"] += prod(tensor.shape)
        entry["stored_bytes"] += source.info(name).size_bytes
    unused = [info for name, info in source.tensors.items() if name not in used]
    return {
        "checkpoint": str(source.path),
        "repo_id": source.source.repo_id,
        "revision": source.source.revision,
        "components": components,
        "dtypes": dict(Counter(source.info(name).dtype for name in used)),
        "unused_tensors": len(unused),
        "unused_bytes": sum(info.size_bytes for info in unused),
        "side_files": [file.name for file in source.side_files()],
    }


def _heads(attention: AttentionSpec) -> str:
    heads = f"{attention.num_heads} query / {attention.num_kv_heads} kv heads of {attention.head_dim}"
    return heads if attention.window is None else f"{heads}, window {attention.window}"


def _print(facts: dict[str, Any], spec: ModelSpec, path: str) -> None:
    kinds = Counter(spec.layers[owner].kind for owner in spec.kv_owners)
    widths = Counter(layer.ffn_width for layer in spec.layers)
    sparse = sum(layer.activation_sparsity > 0 for layer in spec.layers)
    lines = [
        ("checkpoint", path),
        ("family", f"{spec.family} (model_type {spec.model_type})"),
        ("layers", str(len(spec.layers))),
        ("KV caches", ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))),
        ("KV sharing", f"layers {spec.first_shared_layer} to {len(spec.layers) - 1} use earlier layers' caches")
        if spec.first_shared_layer < len(spec.layers)
        else ("KV sharing", "none"),
        ("hidden", str(spec.hidden_size)),
        *((f"{kind} attention", _heads(attention)) for kind, attention in spec.attention.items()),
        ("FFN widths", ", ".join(f"{width} x {count}" for width, count in sorted(widths.items()))),
        ("sparse layers", str(sparse)),
        ("vocabulary", f"{spec.vocab_size}" + (f", per-layer {spec.ple.vocab_size}" if spec.ple else "")),
        ("context", f"{spec.max_context_tokens} tokens"),
        ("stored as", ", ".join(f"{dtype} x {count}" for dtype, count in facts["dtypes"].items())),
        ("not used", f"{facts['unused_tensors']} tensors, {format_bytes(facts['unused_bytes'])}"),
        ("other files", ", ".join(facts["side_files"]) or "none"),
    ]
    summary = Table(box=None, show_header=False)
    summary.add_column(style="bold", no_wrap=True)
    for name, value in lines:
        summary.add_row(name, value)
    print_table(summary)
    table = Table(title="text model by component")
    for heading in ("component", "tensors", "parameters", "stored"):
        table.add_column(heading, justify="left" if heading == "component" else "right", no_wrap=True)
    for name, entry in facts["components"].items():
        table.add_row(name, str(entry["tensors"]), f"{entry['parameters']:,}", format_bytes(entry["stored_bytes"]))
    total = {
        key: sum(entry[key] for entry in facts["components"].values())
        for key in ("tensors", "parameters", "stored_bytes")
    }
    table.add_section()
    table.add_row("total", str(total["tensors"]), f"{total['parameters']:,}", format_bytes(total["stored_bytes"]))
    print_table(table)
