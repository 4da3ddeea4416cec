"""`edgepack plan`: what a package will cost, and whether it fits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from edgepack.api import plan as make
from edgepack.budget import roofline_tokens_per_s
from edgepack.checkpoint import open_checkpoint
from edgepack.cli.console import ANSWER_NO, err, out
from edgepack.cli.options import (
    BackendOption,
    CheckpointArgument,
    ContextOption,
    JsonOption,
    OfflineOption,
    PrefillOption,
    RecipeOption,
    RevisionOption,
    TargetOption,
    TokenOption,
    parse_prefill,
)
from edgepack.errors import EdgepackError
from edgepack.planner import DEFAULT_RECIPE, Plan
from edgepack.targets import device_of
from edgepack.units import format_bytes


def command(
    checkpoint: CheckpointArgument,
    to: BackendOption = "onnx",
    target: TargetOption = None,
    recipe: RecipeOption = DEFAULT_RECIPE,
    context: ContextOption = None,
    prefill: PrefillOption = None,
    save: Annotated[Path | None, typer.Option("--save", metavar="FILE", help="Write the plan for `export`.")] = None,
    json_output: JsonOption = False,
    revision: RevisionOption = None,
    token: TokenOption = None,
    offline: OfflineOption = False,
) -> None:
    """Plan disk, RAM and speed of a package. Exit code 1 if it misses the target."""
    with open_checkpoint(checkpoint, revision=revision, token=token, offline=offline) as source:
        plan = make(source, to=to, target=target, recipe=recipe, context=context, prefill=parse_prefill(prefill))
    if save:
        try:
            save.write_text(plan.model_dump_json(indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise EdgepackError(f"plan {save} cannot be written: {error.strerror}") from error
    if json_output:
        typer.echo(plan.model_dump_json())
    else:
        print_plan(plan)
    if not plan.fits:
        raise typer.Exit(ANSWER_NO)


def verdict(plan: Plan) -> str:
    """One line: whether the plan fits, by how much, and what to blame if not."""
    total = format_bytes(plan.total_bytes)
    if plan.target is None:
        return f"needs {total} of RAM; pass --target for a verdict"
    limit = format_bytes(plan.target.limit_bytes)
    if plan.fits:
        spare = format_bytes(plan.target.limit_bytes - plan.total_bytes)
        return f"fits {plan.target.name}: {total} of {limit}, {spare} spare"
    over = format_bytes(plan.total_bytes - plan.target.limit_bytes)
    return f"does not fit {plan.target.name}: {total} of {limit}, {over} over; largest: {plan.blame}"


def print_plan(plan: Plan) -> None:
    """The plan as tables for people: verdict first."""
    style = "bold green" if plan.fits else "bold red"
    out.print(verdict(plan), style=style if plan.target else "bold")
    for suggestion in plan.suggestions:
        size = format_bytes(suggestion.total_bytes)
        out.print(f"  would fit: --recipe {suggestion.recipe} --context {suggestion.context_tokens} ({size})")
    if plan.target and not plan.fits and not plan.suggestions:
        out.print("  no built-in recipe fits, with as little as 256 tokens of context either")
    out.print(_table(plan))
    anonymous, backed = plan.anonymous_bytes, plan.total_bytes - plan.anonymous_bytes
    out.print(f"RAM: {format_bytes(anonymous)} anonymous, {format_bytes(backed)} file-backed (the system can drop it)")
    out.print(
        f"a decode step reads {format_bytes(plan.read_per_token_bytes)}; the export itself needs at most "
        f"{format_bytes(plan.export_peak_bytes)} of RAM"
    )
    device = device_of(plan.target)
    if device:
        bound = roofline_tokens_per_s(plan.read_per_token_bytes, device.read_bandwidth_bytes_per_s)
        out.print(f"decode on {device.title}: about {bound:.1f} tok/s: a prediction from its memory bandwidth")
    _print_exceptions(plan)


def _table(plan: Plan) -> Table:
    table = Table(title=f"recipe {plan.recipe.name}, context {plan.context_tokens} tokens, backend {plan.backend}")
    for heading in ("component", "stored as", "on disk", "in RAM", "memory", ""):
        table.add_column(heading, justify="right" if heading in ("on disk", "in RAM") else "left")
    schemes: dict[str, dict[str, None]] = {}
    for tensor in plan.tensors:
        schemes.setdefault(tensor.component, {})[tensor.scheme.name] = None
    for row in plan.rows:
        stored = ", ".join(schemes.get(row.name, {}))
        disk = format_bytes(row.disk_bytes) if row.disk_bytes else ""
        table.add_row(row.name, stored, disk, format_bytes(row.resident_bytes), row.kind, row.note)
    table.add_section()
    table.add_row("total", "", format_bytes(plan.disk_bytes), format_bytes(plan.total_bytes), "", "")
    return table


def _print_exceptions(plan: Plan) -> None:
    """What is not stored as the recipe says, and why; vectors are float32 everywhere and not worth a line."""
    reasons = Counter(
        (tensor.component, tensor.scheme.name, tensor.reason)
        for tensor in plan.tensors
        if tensor.reason and len(tensor.shape) > 1
    )
    for (component, scheme, reason), count in reasons.items():
        err.print(f"note: {count} x {component} stored as {scheme}, not as the recipe says: {reason}")
