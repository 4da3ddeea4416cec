"""`--bits` of `plan` and `export`: the recipe that a sensitivity file gives for them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from edgepack.api import mix
from edgepack.atomic_write import write_whole
from edgepack.calibration.sensitivity.file import WAY_OUT
from edgepack.checkpoint.folder import Checkpoint
from edgepack.cli.options import Choices, not_empty
from edgepack.cli.tables import print_table
from edgepack.errors import EdgepackError
from edgepack.planning.mix import Mix, Mixed
from edgepack.quant import Storage
from edgepack.values import Frozen

BitsOption = Annotated[
    float | None,
    typer.Option(
        "--bits",
        metavar="X",
        help="Choose the recipe of least expected KL for X bits a weight read per decode step, such as 4.3.",
    ),
]
HeadBitsOption = Annotated[
    float | None,
    typer.Option("--head-bits", metavar="X", help="Bits of the head (the tied embedding); --bits is for the others."),
]
SensitivityOption = Annotated[
    Path | None,
    typer.Option(
        "--sensitivity",
        metavar="FILE",
        parser=not_empty("--sensitivity"),
        help="What `calibrate --sensitivity` measured on the checkpoint, for --bits.",
    ),
]
SaveRecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--save-recipe",
        metavar="FILE",
        parser=not_empty("--save-recipe"),
        help="Write the recipe of --bits, for --recipe.",
    ),
]


class MixRequest(Frozen):
    """What is asked with ``--bits``."""

    bits: float
    head_bits: float | None
    sensitivity: Path
    save: Path | None
    calibrated: bool


def requested(
    bits: float | None,
    head_bits: float | None,
    sensitivity: Path | None,
    save: Path | None,
    *,
    recipe: str | None,
    calibrated: bool,
) -> MixRequest | None:
    """The request; None where there is none.

    Raises:
        EdgepackError: an option of it stands alone, beside a recipe, or without a sensitivity.
    """
    if bits is None:
        alone = {"--head-bits": head_bits, "--sensitivity": sensitivity, "--save-recipe": save}
        given = [name for name, value in alone.items() if value is not None]
        if given:
            raise EdgepackError(f"{given[0]} goes with --bits: pass --bits X, such as 4.3, or leave it out")
        return None
    if recipe is not None:
        raise EdgepackError("--bits chooses the recipe: pass either --bits or --recipe")
    if sensitivity is None:
        raise EdgepackError(f"--bits are shared out by what they cost: pass --sensitivity FILE; {WAY_OUT}")
    return MixRequest(bits=bits, head_bits=head_bits, sensitivity=sensitivity, save=save, calibrated=calibrated)


def mixed(request: MixRequest, source: Checkpoint, chosen: Choices) -> Mix:
    """Choose, and save the recipe where that is asked for.

    Raises:
        EdgepackError: the sensitivity is none of this, such bits are not possible, or the recipe cannot be written.
    """
    found = mix(
        source,
        request.bits,
        sensitivity=request.sensitivity,
        to=chosen.to,
        runtime=chosen.runtime,
        head_bits=request.head_bits,
        calibrated=request.calibrated,
    )
    if request.save:
        try:
            write_whole(request.save, found.recipe.model_dump_json(indent=1) + "\n")
        except OSError as error:
            raise EdgepackError(f"recipe {request.save} cannot be written: {error.strerror}") from error
    return found


def print_mix(found: Mix) -> None:
    """The mix by kind of group: what it is stored as, in how many layers, and what that is expected to cost."""
    table = Table(title=f"{found.bits:.3f} bits a weight, expected KL {found.kl:.3g}")
    table.add_column("group", no_wrap=True)
    table.add_column("stored as")
    for heading in ("bits", "expected KL"):
        table.add_column(heading, justify="right", no_wrap=True)
    kinds: dict[str, list[Mixed]] = {}
    for group in found.groups:
        kinds.setdefault(group.kind, []).append(group)
    for kind, groups in kinds.items():
        counts = Counter(stored_as(group.storage) for group in groups)
        stored = ", ".join(name if len(counts) == 1 else f"{count} x {name}" for name, count in counts.most_common())
        bits = 8 * sum(group.nbytes for group in groups) / sum(group.weights for group in groups)
        table.add_row(kind, stored, f"{bits:.2f}", f"{sum(group.kl for group in groups):.2g}")
    print_table(table)


def stored_as(storage: Storage) -> str:
    """Scheme and rounding in a word or two."""
    name = storage.scheme.name
    return name if storage.rounding == "nearest" else f"{name} {storage.rounding}"
