"""`edgepack export`: checkpoint to package."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from edgepack.api import Export, export
from edgepack.calibration.work import partial_folder
from edgepack.checkpoint.folder import open_checkpoint
from edgepack.cli.console import (
    ANSWER_NO,
    err,
    nothing_written,
    out,
    progress_bar,
    stdout_to_stderr,
    told_of_interruption,
)
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
    CalibrateOption,
    CalibrationOption,
    ConfigOption,
    ConfiguredCheckpoint,
    ContextOption,
    JsonOption,
    OfflineOption,
    OverwriteOption,
    PlannedRuntimeOption,
    PrefillOption,
    RecipeOption,
    RevisionOption,
    TargetOption,
    ThreadsOption,
    TokenOption,
    choose,
    not_empty,
)
from edgepack.cli.plan import print_plan, verdict
from edgepack.config import Config, first_set, read_config
from edgepack.errors import EdgepackError
from edgepack.exporting import calibration_beside
from edgepack.package.folder import MANIFEST, refuse_existing
from edgepack.planning.plan import Plan, load_plan
from edgepack.report.words import calibration_words
from edgepack.units import format_bytes


def command(
    checkpoint: ConfiguredCheckpoint = None,
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            parser=not_empty("--out"),
            help="Package folder to write; default: that of edgepack.toml.",
        ),
    ] = None,
    config: ConfigOption = None,
    to: BackendOption = None,
    runtime: PlannedRuntimeOption = None,
    target: TargetOption = None,
    recipe: RecipeOption = None,
    plan_file: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", parser=not_empty("--plan"), help="Plan that `plan --save` wrote."),
    ] = None,
    calibration: CalibrationOption = None,
    calibrate: CalibrateOption = None,
    bits: BitsOption = None,
    head_bits: HeadBitsOption = None,
    sensitivity: SensitivityOption = None,
    save_recipe: SaveRecipeOption = None,
    context: ContextOption = None,
    prefill: PrefillOption = None,
    overwrite: OverwriteOption = False,
    threads: ThreadsOption = None,
    json_output: JsonOption = False,
    revision: RevisionOption = None,
    token: TokenOption = None,
    offline: OfflineOption = False,
) -> None:
    """Convert a checkpoint into a package. Exit code 1, and nothing written, if it would miss the target."""
    if plan_file and (runtime or target or context or prefill or recipe or bits is not None):
        raise EdgepackError(
            "a plan has its own runtime, target, recipe and context: pass either --plan or these options"
        )
    settings = read_config(config)
    calibrated = _is_calibrated(settings, calibration, calibrate)
    request = requested(bits, head_bits, sensitivity, save_recipe, recipe=recipe, calibrated=calibrated)
    chosen = choose(
        settings,
        checkpoint=checkpoint,
        to=to,
        runtime=runtime,
        target=target,
        recipe=recipe,
        context=context,
        prefill=prefill,
        revision=revision,
        calibrated=calibrated,
    )
    folder: Path | None = first_set(out_folder, settings.export.out)
    if folder is None:
        raise EdgepackError("no output was given: pass --out DIR, or set out in the table [export] of edgepack.toml")
    refuse_existing(folder, overwrite=overwrite)
    start = time.perf_counter()
    before = _written(folder)

    def outcome() -> str:
        if _written(folder) != before:
            return f"{folder} was written, and is whole"
        kept = None if calibrate is None else _kept(calibration, folder)
        if kept is None:
            return nothing_written(chosen.checkpoint)
        return f"no package was written; the calibration so far stays in {kept}, the same command goes on with it"

    with (
        told_of_interruption(outcome),
        open_checkpoint(chosen.checkpoint, revision=chosen.revision, token=token, offline=offline) as source,
    ):
        mix = mixed(request, source, chosen) if request else None
        plan = load_plan(plan_file) if plan_file else chosen.plan(source, mix.recipe if mix else None)
        if mix and not json_output:
            print_mix(mix)
        if not plan.fits:
            if json_output:
                typer.echo(plan.model_dump_json())
            else:
                print_plan(plan)
            raise typer.Exit(ANSWER_NO)
        own_recipe = plan_file is None and recipe is None
        calibration, calibrate = _calibrations(settings, plan, calibration, calibrate, own_recipe=own_recipe)
        with progress_bar("exporting") as progress, stdout_to_stderr():
            done = export(
                source,
                to=chosen.to,
                out=folder,
                plan=plan,
                calibration=calibration,
                calibrate=calibrate,
                overwrite=overwrite,
                threads=threads,
                progress=progress,
            )
    seconds = time.perf_counter() - start
    if json_output:
        typer.echo(json.dumps(_facts(done, seconds)))
    else:
        print_export(done, seconds)


def _is_calibrated(settings: Config, calibration: Path | None, calibrate: str | None) -> bool:
    given = (calibration, calibrate, settings.export.calibration, settings.export.calibrate)
    return any(value is not None for value in given)


def _calibrations(
    settings: Config, plan: Plan, calibration: Path | None, calibrate: str | None, *, own_recipe: bool
) -> tuple[Path | None, str | None]:
    """What is given, else what the file says: for its own recipe, or for another that takes a calibration."""
    if (calibration is not None or calibrate is not None) or not (own_recipe or plan.recipe.calibrated):
        return calibration, calibrate
    return settings.export.calibration, settings.export.calibrate


def _kept(calibration: Path | None, folder: Path) -> Path | None:
    """What there is of a calibration that is made for this export: the folder of its work, or the file."""
    file = calibration_beside(folder) if calibration is None else calibration.resolve()
    return next((path for path in (partial_folder(file), file) if path.exists()), None)


def _written(folder: Path) -> tuple[int, int] | None:
    """What tells the package in `folder` from another one that takes its place; None where there is none."""
    try:
        status = (folder / MANIFEST).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _facts(done: Export, seconds: float) -> dict[str, Any]:
    plan, calibration = done.package.manifest.plan, done.package.manifest.calibration
    return {
        "package": str(done.package.path),
        "size_bytes": _size_bytes(done),
        "seconds": round(seconds, 3),
        "peak_rss_bytes": done.peak_rss_bytes,
        "planned_total_bytes": plan.total_bytes,
        "fits": plan.fits,
        "calibration": None if calibration is None else calibration.model_dump(),
        "notes": done.notes,
    }


def print_export(done: Export, seconds: float) -> None:
    """Print where the package is, its size and verdict; on stderr the notes, the time and the peak memory."""
    path, size = str(done.package.path), format_bytes(_size_bytes(done))
    out.print(Text.assemble((path, "bold green"), f": {size}, {verdict(done.package.manifest.plan)}"))
    if done.package.manifest.calibration is not None:
        out.print(f"calibration: {calibration_words(done.package.manifest.calibration)}")
    print_notes(done)
    err.print(f"written in {seconds:.1f} s with a peak RSS of {format_bytes(done.peak_rss_bytes)}")


def print_notes(done: Export) -> None:
    """Print on stderr what an export says beside its result."""
    for note in done.notes:
        err.print(f"note: {note}")


def _size_bytes(done: Export) -> int:
    return sum(entry.size_bytes for entry in done.package.manifest.files)
