"""`edgepack plan`: what a package will cost, and whether it fits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from edgepack.atomic_write import write_whole
from edgepack.calibration.texts import BUILTIN
from edgepack.checkpoint.folder import open_checkpoint
from edgepack.cli.console import ANSWER_NO, err, nothing_written, out, told_of_interruption
from edgepack.cli.mixing.choice import (
    BitsOption,
    HeadBitsOption,
    SaveRecipeOption,
    SensitivityOption,
    mixed,
    print_mix,
    requested,
)
from edgepack.cli.options import (
    BackendOption,
    ConfigOption,
    ConfiguredCheckpoint,
    ContextOption,
    JsonOption,
    OfflineOption,
    PlannedRuntimeOption,
    PrefillOption,
    RecipeOption,
    RevisionOption,
    TargetOption,
    TokenOption,
    choose,
)
from edgepack.cli.tables import print_table
from edgepack.config import read_config
from edgepack.errors import EdgepackError
from edgepack.planning.backends import backend_named
from edgepack.planning.plan import Plan
from edgepack.planning.targets import DeviceProfile, device_of, find_device
from edgepack.units import format_bytes
from edgepack.validation.figures.predict import package_facts, predict


def command(
    checkpoint: ConfiguredCheckpoint = None,
    config: ConfigOption = None,
    to: BackendOption = None,
    runtime: PlannedRuntimeOption = None,
    target: TargetOption = None,
    recipe: RecipeOption = None,
    bits: BitsOption = None,
    head_bits: HeadBitsOption = None,
    sensitivity: SensitivityOption = None,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="The export will have a calibration: --bits counts on its roundings.")
    ] = False,
    save_recipe: SaveRecipeOption = None,
    context: ContextOption = None,
    prefill: PrefillOption = None,
    save: Annotated[Path | None, typer.Option("--save", metavar="FILE", help="Write the plan for `export`.")] = None,
    json_output: JsonOption = False,
    revision: RevisionOption = None,
    token: TokenOption = None,
    offline: OfflineOption = False,
) -> None:
    """Plan disk, RAM and speed of a package. Exit code 1 if it misses the target."""
    request = requested(bits, head_bits, sensitivity, save_recipe, recipe=recipe, calibrated=calibrated)
    chosen = choose(
        read_config(config),
        checkpoint=checkpoint,
        to=to,
        runtime=runtime,
        target=target,
        recipe=recipe,
        context=context,
        prefill=prefill,
        revision=revision,
    )
    with (
        told_of_interruption(lambda: nothing_written(chosen.checkpoint)),
        open_checkpoint(chosen.checkpoint, revision=chosen.revision, token=token, offline=offline) as source,
    ):
        mix = mixed(request, source, chosen) if request else None
        plan = chosen.plan(source, mix.recipe if mix else None)
    if save:
        try:
            write_whole(save, plan.model_dump_json(indent=1) + "\n")
        except OSError as error:
            raise EdgepackError(f"plan {save} cannot be written: {error.strerror}") from error
    if json_output:
        typer.echo(plan.model_dump_json())
    else:
        if mix:
            print_mix(mix)
        print_plan(plan, find_device(chosen.target) if chosen.target else None)
    if not plan.fits:
        raise typer.Exit(ANSWER_NO)


def verdict(plan: Plan) -> str:
    """One line: whether the plan fits, by how much, and what to blame if not."""
    total = format_bytes(plan.total_bytes)
    if plan.target is None:
        return f"needs {total} of RAM; pass --target for a verdict"
    limit = format_bytes(plan.target.limit_bytes)
    if total == limit:  # rounding hides on which side it is
        total, limit = f"{plan.total_bytes:,} bytes", f"{plan.target.limit_bytes:,} bytes"
    if plan.fits:
        spare = format_bytes(plan.target.limit_bytes - plan.total_bytes)
        return f"fits {plan.target.name}: {total} of {limit}, {spare} spare"
    over = format_bytes(plan.total_bytes - plan.target.limit_bytes)
    return f"does not fit {plan.target.name}: {total} of {limit}, {over} over; largest: {plan.blame}"


def print_plan(plan: Plan, device: DeviceProfile | None = None) -> None:
    """The plan as tables for people, verdict first, and the speed predicted for `device` or that of the target."""
    style = "bold green" if plan.fits else "bold red"
    out.print(verdict(plan), style=style if plan.target else "bold")
    for suggestion in plan.suggestions:
        size = format_bytes(suggestion.total_bytes)
        out.print(f"  would fit: --recipe {suggestion.recipe} --context {suggestion.context_tokens} ({size})")
    if plan.target and not plan.fits and not plan.suggestions:
        out.print("  no built-in recipe fits, with as little as 256 tokens of context either")
    print_table(_table(plan))
    for row in plan.rows:
        if row.note:
            out.print(f"  {row.name}: {row.note}")
    anonymous, backed = plan.anonymous_bytes, plan.total_bytes - plan.anonymous_bytes
    out.print(f"RAM: {format_bytes(anonymous)} anonymous, {format_bytes(backed)} file-backed (the system can drop it)")
    out.print(
        f"a decode step reads {format_bytes(plan.read_per_token_bytes)}; the export itself needs at most "
        f"{format_bytes(plan.export_peak_bytes)} of RAM"
    )
    device = device or device_of(plan.target)
    if device and device.read_bandwidth_bytes_per_s:
        prediction = predict(package_facts(plan), device)
        speed = prediction.decode_tokens_per_s
        told = "no speed" if speed is None else f"about {speed:.1f} tok/s"
        out.print(f"prediction for decode on {device.title}: {told} ({prediction.basis})")
    if plan.recipe.calibrated:
        out.print(f"the export needs a calibration: --calibrate {BUILTIN}, or --calibration FILE of `calibrate`")
    for line in plan.exceptions():
        err.print(f"note: {line}")


def _table(plan: Plan) -> Table:
    used = "" if plan.runtime == backend_named(plan.backend).runtimes[0] else f", runtime {plan.runtime}"
    told = f"recipe {plan.recipe.name}, context {plan.context_tokens} tokens, backend {plan.backend}{used}"
    table = Table(title=told)
    table.add_column("component", no_wrap=True)
    table.add_column("stored as")
    for heading in ("on disk", "in RAM"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("memory", no_wrap=True)
    schemes: dict[str, dict[str, None]] = {}
    for tensor in plan.tensors:
        schemes.setdefault(tensor.component, {})[tensor.scheme.name] = None
    for row in plan.rows:
        stored = ", ".join(schemes.get(row.name, {}))
        disk = format_bytes(row.disk_bytes) if row.disk_bytes else ""
        table.add_row(row.name, stored, disk, format_bytes(row.resident_bytes), row.kind)
    table.add_section()
    table.add_row("total", "", format_bytes(plan.disk_bytes), format_bytes(plan.total_bytes), "")
    return table
