"""Arguments and options that several verbs take."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from edgepack.api import plan
from edgepack.calibration.texts import BUILTIN
from edgepack.checkpoint.folder import Checkpoint
from edgepack.config import Config, first_set
from edgepack.errors import EdgepackError
from edgepack.loading import RUNTIMES
from edgepack.planning.backends import BACKENDS, BackendName, backend_named
from edgepack.planning.plan import Plan
from edgepack.planning.planner import DEFAULT_CALIBRATED_RECIPE, DEFAULT_RECIPE, default_recipe
from edgepack.planning.targets import device_names
from edgepack.quant.recipes import Recipe, builtin_recipes
from edgepack.shown import shown
from edgepack.values import Frozen


def not_empty(name: str, kind: type = Path) -> Callable[[str], Any]:
    """Reader of the path or name after the option `name`; an empty one would be the working folder."""

    def read(text: str) -> Any:
        if not text.strip():
            raise EdgepackError(f"{name} is empty: name a file or folder, or leave it out")
        return kind(text)

    return read


def among(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Completion of a word from `names`, which is called when a shell asks; files are offered where none fits."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return complete


CheckpointArgument = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        parser=not_empty("CHECKPOINT", str),
        help="Checkpoint folder, Hugging Face id (org/name), or demo.",
    ),
]
ConfiguredCheckpoint = Annotated[
    str | None,
    typer.Argument(
        metavar="CHECKPOINT",
        parser=not_empty("CHECKPOINT", str),
        help="Checkpoint folder, Hugging Face id (org/name), or demo; default: that of edgepack.toml.",
    ),
]
PackageArgument = Annotated[
    Path,
    typer.Argument(metavar="PACKAGE", parser=not_empty("PACKAGE"), help="Package folder that `export` wrote."),
]
BackendOption = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="BACKEND",
        help=f"Backend: {', '.join(BACKENDS)}; default: that of the runtime, or onnx.",
        autocompletion=among(lambda: get_args(BackendName)),
    ),
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="SIZE|DEVICE",
        help="Memory target: 2GB, 3GB, bytes, or a device.",
        autocompletion=among(device_names),
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        parser=not_empty("--recipe", str),
        help=f"{', '.join(builtin_recipes())}, or a JSON file; default: {DEFAULT_RECIPE}, "
        f"with a calibration {DEFAULT_CALIBRATED_RECIPE}.",
        autocompletion=among(builtin_recipes),
    ),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        parser=not_empty("--calibration"),
        help="Calibration that `calibrate` made of the checkpoint, for a recipe that takes one.",
    ),
]
CalibrateOption = Annotated[
    str | None,
    typer.Option(
        "--calibrate",
        metavar=f"{BUILTIN}|FILE",
        parser=not_empty("--calibrate", str),
        help="Make that calibration first, of the built-in text or one in UTF-8. It goes once the package is whole; "
        "with --calibration it stays in that file, and is not made twice.",
    ),
]
ContextOption = Annotated[
    int | None,
    typer.Option(
        "--context", metavar="N", help="Tokens that the cache must hold; default: 4096, or all the model can."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", metavar="REF", help="Branch, tag or commit of a Hugging Face id.")
]
TokenOption = Annotated[
    str | None, typer.Option("--token", metavar="TOKEN", help="Hugging Face access token, for gated models.")
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Use the local Hugging Face cache only.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; default: all cores.")]
RuntimeOption = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        metavar="NAME",
        help=f"{', '.join(RUNTIMES)}; default: what the package is for.",
        autocompletion=among(lambda: RUNTIMES),
    ),
]
PlannedRuntimeOption = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        metavar="NAME",
        help=f"What is to run it, and whose memory counts: {', '.join(RUNTIMES)}; default: that of the backend.",
        autocompletion=among(lambda: RUNTIMES),
    ),
]


def parse_lengths(text: str | None, option: str) -> tuple[int, ...] | None:
    """Lengths in ``128,1024``; None where there is no text.

    Raises:
        EdgepackError: it is no list of whole numbers.
    """
    if text is None:
        return None
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isdecimal() and part.isascii() and int(part) for part in parts):
        raise EdgepackError(f"{option} {shown(text)} is not understood: expected lengths such as 128 or 128,1024")
    return tuple(map(int, parts))


PrefillOption = Annotated[
    str | None,
    typer.Option("--prefill", metavar="N,N", help="Lengths of the pieces in which a prompt is taken; default: 128."),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing package when the new is done.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        parser=not_empty("--config"),
        help="Settings; default: edgepack.toml of the working folder.",
    ),
]


class Choices(Frozen):
    """What to plan or export: the command line first, then ``edgepack.toml``, then the defaults."""

    checkpoint: str
    to: str | None
    runtime: str | None
    target: str | None
    recipe: str
    context: int | None
    prefill: tuple[int, ...] | None
    revision: str | None

    def plan(self, source: Checkpoint, recipe: Recipe | None = None) -> Plan:
        """The plan of `source` with these choices, or with `recipe` in place of theirs; see `edgepack.plan`."""
        return plan(
            source,
            to=self.to,
            runtime=self.runtime,
            target=self.target,
            recipe=self.recipe if recipe is None else recipe,
            context=self.context,
            prefill=self.prefill,
        )


def choose(
    config: Config,
    *,
    checkpoint: str | None,
    to: str | None,
    runtime: str | None,
    target: str | None,
    recipe: str | None,
    context: int | None,
    prefill: str | None,
    revision: str | None,
    calibrated: bool = False,
) -> Choices:
    """Merge the command line with `config`.

    Args:
        calibrated: whether there is a calibration, which another recipe is the default for.

    Raises:
        EdgepackError: neither names a checkpoint, or `to` is no backend, or `prefill` no list of lengths.
    """
    table = config.export
    source = first_set(checkpoint, table.checkpoint)
    if source is None:
        raise EdgepackError(
            "no checkpoint was given: name its folder, a Hugging Face id or demo, or set checkpoint in the table "
            "[export] of edgepack.toml"
        )
    # Backend and runtime in the file belong together: one on the command line takes the place of both, if they differ.
    suits = to is None or table.runtime in backend_named(to).runtimes
    return Choices(
        checkpoint=source,
        to=first_set(to, table.to if runtime is None else None),
        runtime=first_set(runtime, table.runtime if suits else None),
        target=first_set(target, config.target),
        recipe=first_set(recipe, table.recipe, default=default_recipe(calibrated=calibrated)),
        context=first_set(context, table.context),
        prefill=first_set(parse_lengths(prefill, "--prefill"), table.prefill),
        # A revision in the file belongs to the checkpoint in the file.
        revision=first_set(revision, table.revision if checkpoint is None else None),
    )
