"""Arguments and options that several verbs take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from edgepack.errors import EdgepackError
from edgepack.quant.recipes import builtin_recipes

CheckpointArgument = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="Checkpoint folder or Hugging Face id (org/name).")
]
PackageArgument = Annotated[Path, typer.Argument(metavar="PACKAGE", help="Package folder that `export` wrote.")]
BackendOption = Annotated[str, typer.Option("--to", metavar="BACKEND", help="Backend: onnx or litert.")]
TargetOption = Annotated[
    str | None, typer.Option("--target", metavar="SIZE|DEVICE", help="Memory target: 2GB, 3GB, bytes, or a device.")
]
RecipeOption = Annotated[
    str, typer.Option("--recipe", metavar="NAME|FILE", help=f"{', '.join(builtin_recipes())}, or a JSON file.")
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
    typer.Option("--runtime", metavar="NAME", help="onnx, litert or litert-lm; default: what the package is for."),
]


def parse_prefill(text: str | None) -> tuple[int, ...] | None:
    """Lengths in ``128,1024``; None where there is no text.

    Raises:
        EdgepackError: it is no list of whole numbers.
    """
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.replace(",", " ").split()) or _no_prefill(text)
    except ValueError:
        return _no_prefill(text)


def _no_prefill(text: str) -> NoReturn:
    raise EdgepackError(f"--prefill {text!r} is not understood: expected lengths such as 128 or 128,1024")


PrefillOption = Annotated[
    str | None,
    typer.Option("--prefill", metavar="N,N", help="Lengths of the pieces in which a prompt is taken; default: 128."),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing package when the new is done.")]
