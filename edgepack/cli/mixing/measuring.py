"""`edgepack calibrate --sensitivity`: measure, and show by kind of group what each scheme costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from edgepack.api import sensitivity
from edgepack.calibration.sensitivity.file import Choice, Sensitivity
from edgepack.checkpoint.folder import Checkpoint
from edgepack.cli.console import err, progress_bar, stdout_to_stderr, told_of_interruption
from edgepack.cli.tables import print_table
from edgepack.errors import EdgepackError
from edgepack.quant import CALIBRATED, IntScheme, Scheme
from edgepack.system.peak_memory import PeakWatch
from edgepack.units import format_bytes
from edgepack.values import Frozen


def require_one_output(out_file: Path | None, file: Path | None, calibration: Path | None) -> None:
    """Raise `EdgepackError` unless either statistics or a sensitivity are asked for, with what that takes."""
    if (out_file is None) == (file is None):
        raise EdgepackError(
            "pass --out FILE to collect statistics, or --calibration FILE --sensitivity FILE to measure with them"
        )
    if (file is None) != (calibration is None):
        raise EdgepackError(
            "--sensitivity and --calibration go together: what is measured, and the statistics that `edgepack "
            "calibrate CHECKPOINT --out FILE` has collected"
        )


class Run(Frozen):
    """How much text is run, and how, for statistics as for a sensitivity.

    Attributes:
        text: ``builtin``, or a file of UTF-8.
        tokens, sequence: in all, and at once; None takes what is usual.
        threads: None for one a core.
    """

    text: str
    tokens: int | None
    sequence: int | None
    threads: int | None
    overwrite: bool
    json_output: bool

    def given(self) -> dict[str, Any]:
        """The arguments of `edgepack.calibrate` and `edgepack.sensitivity`."""
        return self.model_dump(exclude={"json_output"})


def measure(opening: Callable[[], Checkpoint], file: Path, calibration: Path, to: str | None, run: Run) -> None:
    """Measure the sensitivity of the checkpoint that `opening` gives, write it to `file`, and print it."""
    start = time.perf_counter()
    with (
        told_of_interruption(lambda: f"{file} was not written"),
        opening() as source,
        PeakWatch() as watch,
        progress_bar("measuring") as progress,
        stdout_to_stderr(),
    ):
        found = sensitivity(source, calibration=calibration, out=file, to=to, progress=progress, **run.given())
    if run.json_output:
        typer.echo(found.model_dump_json())
        return
    print_sensitivity(found)
    seconds = time.perf_counter() - start
    err.print(f"{file}: written in {seconds:.1f} s with a peak RSS of {format_bytes(watch.peak_bytes)}")


def print_sensitivity(found: Sensitivity) -> None:
    """KL of each kind of group in all layers, by scheme: rounded without a calibration, and with one."""
    kinds: dict[str, list[dict[str, tuple[float, float | None]]]] = {}
    for group in found.groups:
        kinds.setdefault(group.kind, []).append(_by_scheme(group.choices))
    every = {choice.storage.scheme.name: choice.storage.scheme for group in found.groups for choice in group.choices}
    schemes = sorted(every, key=lambda name: _fineness(every[name]))
    table = Table(title=f"KL by scheme, {found.positions} positions, {found.backend}; with gptq behind the stroke")
    table.add_column("group", no_wrap=True)
    table.add_column("layers", justify="right")
    for name in schemes:
        table.add_column(name, justify="right")
    for kind, groups in kinds.items():
        cells = [_cell([each[name] for each in groups if name in each], len(groups)) for name in schemes]
        table.add_row(kind, str(len(groups)), *cells)
    print_table(table)


def _fineness(scheme: Scheme) -> tuple[int, int]:
    """Few bits first, large blocks first among the same bits."""
    if not isinstance(scheme, IntScheme):
        return 32, 0
    return scheme.bits, -(scheme.block or 1 << 30)


def _by_scheme(choices: tuple[Choice, ...]) -> dict[str, tuple[float, float | None]]:
    """The least KL of a scheme, data-free and calibrated."""
    found: dict[str, tuple[float, float | None]] = {}
    for choice in choices:
        name = choice.storage.scheme.name
        free, calibrated = found.get(name, (float("inf"), None))
        if choice.storage.rounding in CALIBRATED:
            calibrated = choice.kl if calibrated is None else min(calibrated, choice.kl)
        else:
            free = min(free, choice.kl)
        found[name] = free, calibrated
    return found


def _cell(values: list[tuple[float, float | None]], groups: int) -> str:
    if len(values) < groups:
        return ""
    free, calibrated = sum(value for value, _ in values), [value for _, value in values if value is not None]
    return f"{free:.2g}" + (f" / {sum(calibrated):.2g}" if len(calibrated) == groups else "")
