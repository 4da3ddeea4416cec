"""`edgepack calibrate`: statistics of a checkpoint's activations, for exports that round by them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from edgepack.calibration.run import CalibrationRun, calibrate, output_file, refuse_output
from edgepack.calibration.sensitivity.run import DEFAULT_SEQUENCE as MEASURED_SEQUENCE
from edgepack.calibration.sensitivity.run import DEFAULT_TOKENS as MEASURED_TOKENS
from edgepack.calibration.sequences import DEFAULT_SEQUENCE, DEFAULT_TOKENS
from edgepack.calibration.texts import BUILTIN
from edgepack.calibration.work import partial_folder
from edgepack.checkpoint.folder import Checkpoint, open_checkpoint
from edgepack.cli.console import err, nothing_written, out, progress_bar, stdout_to_stderr, told_of_interruption
from edgepack.cli.mixing.measuring import Run, measure, require_one_output
from edgepack.cli.options import (
    BackendOption,
    CheckpointArgument,
    JsonOption,
    OfflineOption,
    RevisionOption,
    ThreadsOption,
    TokenOption,
    not_empty,
)
from edgepack.units import format_bytes

OutFileOption = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE|DIR", parser=not_empty("--out"), help="File to write, or a folder that is there."
    ),
]
SensitivityOption = Annotated[
    Path | None,
    typer.Option(
        "--sensitivity",
        metavar="FILE",
        parser=not_empty("--sensitivity"),
        help="Measure what each group of tensors costs in KL at each scheme, for --bits, and write that.",
    ),
]
KnownOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        parser=not_empty("--calibration"),
        help="Statistics to measure with: what --out wrote.",
    ),
]
TextOption = Annotated[
    str,
    typer.Option("--text", metavar=f"FILE|{BUILTIN}", parser=not_empty("--text", str), help="Text to run, in UTF-8."),
]
TokensOption = Annotated[
    int | None,
    typer.Option(
        "--tokens",
        metavar="N",
        help=f"Tokens in all; default: {DEFAULT_TOKENS:,}, or what the text has; {MEASURED_TOKENS} to measure.",
    ),
]
SequenceOption = Annotated[
    int | None,
    typer.Option(
        "--sequence",
        metavar="N",
        help=f"Tokens at once; default: {DEFAULT_SEQUENCE} ({MEASURED_SEQUENCE} to measure), or the context.",
    ),
]
OverwriteFileOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing file, or unfinished work with other settings.")
]


def command(
    checkpoint: CheckpointArgument,
    out_file: OutFileOption = None,
    sensitivity: SensitivityOption = None,
    calibration: KnownOption = None,
    to: BackendOption = None,
    text: TextOption = BUILTIN,
    tokens: TokensOption = None,
    sequence: SequenceOption = None,
    threads: ThreadsOption = None,
    overwrite: OverwriteFileOption = False,
    json_output: JsonOption = False,
    revision: RevisionOption = None,
    token: TokenOption = None,
    offline: OfflineOption = False,
) -> None:
    """Collect statistics of what every matrix is multiplied with. A run that was ended goes on when it is repeated."""
    require_one_output(out_file, sensitivity, calibration)
    run = Run(
        text=text, tokens=tokens, sequence=sequence, threads=threads, overwrite=overwrite, json_output=json_output
    )
    opening = partial(open_checkpoint, checkpoint, revision=revision, token=token, offline=offline)
    if sensitivity is not None and calibration is not None:
        measure(opening, sensitivity, calibration, to, run)
    elif out_file is not None:
        _collect(checkpoint, opening, out_file, run)


def _collect(checkpoint: str, opening: Callable[[], Checkpoint], out_file: Path, run: Run) -> None:
    """Collect the statistics, and print where they are."""
    start = time.perf_counter()
    file: Path | None = None

    def outcome() -> str:
        kept = None if file is None else partial_folder(file.resolve())
        if kept is not None and kept.exists():
            return f"what is done stays in {kept}, the same command goes on with it"
        return nothing_written(checkpoint)

    with told_of_interruption(outcome), opening() as source:
        file = output_file(out_file, source)
        refuse_output(file, overwrite=run.overwrite)
        with progress_bar("calibrating") as progress, stdout_to_stderr():
            done = calibrate(source, out=file, progress=progress, **run.given())
    seconds = time.perf_counter() - start
    if run.json_output:
        typer.echo(json.dumps(_facts(done, seconds)))
        return
    out.print(
        Text.assemble(
            (str(done.path), "bold green"),
            f": {format_bytes(done.size_bytes)}, {done.header.tokens:,} tokens in sequences of "
            f"{done.header.sequence_tokens:,}",
        )
    )
    err.print(f"written in {seconds:.1f} s with a peak RSS of {format_bytes(done.peak_rss_bytes)}")


def _facts(done: CalibrationRun, seconds: float) -> dict[str, Any]:
    return {
        "calibration": str(done.path),
        "size_bytes": done.size_bytes,
        "tokens": done.header.tokens,
        "sequence_tokens": done.header.sequence_tokens,
        "text": done.header.text,
        "seconds": round(seconds, 3),
        "peak_rss_bytes": done.peak_rss_bytes,
    }
