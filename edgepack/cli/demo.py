"""`edgepack demo`: plan, export, generate and validate the small trained Gemma 3n that edgepack brings along."""

from __future__ import annotations

import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from edgepack.api import export, load, plan, validate
from edgepack.cli.console import ANSWER_NO, out
from edgepack.cli.plan import print_plan
from edgepack.cli.validate import print_report
from edgepack.units import format_bytes

PROMPT = "Once upon a time, there was"
TARGET = "300MB"
CONTEXT = 256


def command(
    out_folder: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Keep the package here; default: a temporary folder.")
    ] = None,
) -> None:
    """See the whole job done on a small trained Gemma 3n, in under a minute."""
    start = time.perf_counter()
    assets = resources.files("edgepack") / "assets" / "demo"
    with resources.as_file(assets) as checkpoint, tempfile.TemporaryDirectory(prefix="edgepack-demo-") as scratch:
        fits = run(checkpoint, out_folder or Path(scratch) / "demo-int4")
    done = (f"\ndone in {time.perf_counter() - start:.0f} s.", "bold")
    out.print(Text.assemble(done, " Next, with your own Gemma 3n:"))
    for line in (
        "edgepack plan google/gemma-3n-E2B-it --to onnx --target 2GB",
        "edgepack export google/gemma-3n-E2B-it --to onnx --target 2GB --out gemma-e2b",
        "edgepack generate gemma-e2b --chat --prompt 'Hello!'",
        "edgepack validate gemma-e2b --target 2GB",
    ):
        out.print(f"  {line}")
    out.print("Without the gated weights: edgepack synth --preset gemma-3n-e2b --out e2b-random")
    if not fits:
        raise typer.Exit(ANSWER_NO)


def run(checkpoint: Path, package: Path) -> bool:
    """The four steps, each under its command line; returns the verdict."""
    _step(f"edgepack plan {checkpoint.name} --to onnx --target {TARGET} --context {CONTEXT}")
    planned = plan(checkpoint, target=TARGET, context=CONTEXT)
    print_plan(planned)
    _step(f"edgepack export {checkpoint.name} --to onnx --out {package.name}")
    done = export(checkpoint, out=package, plan=planned)
    size = sum(entry.size_bytes for entry in done.package.manifest.files)
    out.print(f"{format_bytes(size)} written, peak RSS {format_bytes(done.peak_rss_bytes)}")
    _step(f"edgepack generate {package.name} --prompt '{PROMPT}'")
    with load(package) as model:
        for piece in model.generate_text(PROMPT, max_new_tokens=60):
            out.print(piece, end="")
    out.print()
    _step(f"edgepack validate {package.name} --target {TARGET}")
    report = validate(package, target=TARGET)
    print_report(report)
    return planned.fits and report.verdict


def _step(command: str) -> None:
    out.print(f"\n$ {command}", style="bold cyan")
