"""`edgepack synth`: a random-weight checkpoint of exact shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from edgepack.cli.console import out, progress_bar, told_of_interruption
from edgepack.cli.options import among
from edgepack.errors import EdgepackError
from edgepack.reading import loads_object, read_user_file
from edgepack.shown import one_line, shown
from edgepack.synth import PRESETS, write_synthetic_checkpoint


def command(
    out_folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="Checkpoint folder to write.")],
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", metavar="NAME", help=f"{' or '.join(PRESETS)}.", autocompletion=among(lambda: PRESETS)
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="A config.json, in place of a preset.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Same seed, same bytes.")] = 0,
) -> None:
    """Write a checkpoint with random weights: to budget and time a device before having the gated weights."""
    with told_of_interruption(lambda: "nothing was written"), progress_bar("writing") as progress:
        write_synthetic_checkpoint(_config(preset, config), out_folder, seed=seed, progress=progress)
    out.print(Text.assemble((str(out_folder), "bold green"), ": random weights, for budgets and timings only"))


def _config(preset: str | None, config: Path | None) -> dict[str, Any]:
    if (preset is None) == (config is None):
        what = "nothing to write" if preset is None else "--preset and --config are both given"
        raise EdgepackError(f"{what}: pass either --preset {'|'.join(PRESETS)} or --config FILE")
    if preset is not None:
        if preset not in PRESETS:
            raise EdgepackError(f"preset {shown(preset)} is not known: expected one of {', '.join(PRESETS)}")
        return PRESETS[preset]
    if config is None:
        raise EdgepackError("no config given")
    try:
        return loads_object(read_user_file(config, "config"))
    except ValueError as error:
        raise EdgepackError(f"config {config}: {one_line(error)}") from error
