"""`edgepack demo`: plan, export, generate and validate the small trained Gemma 3n that edgepack brings along."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from edgepack.api import export, load, plan, validate
from edgepack.builtin import DEMO, DEMO_FOLDER
from edgepack.cli.console import ANSWER_NO, out, told_of_interruption
from edgepack.cli.export import print_notes
from edgepack.cli.invocation import command_name
from edgepack.cli.plan import print_plan
from edgepack.cli.validating.validate import print_report
from edgepack.package.folder import MANIFEST
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
    name = command_name()

    def outcome() -> str:
        kept = out_folder is not None and (out_folder / MANIFEST).is_file()
        return f"the package in {out_folder} is whole" if kept else "nothing is kept"

    with told_of_interruption(outcome), tempfile.TemporaryDirectory(prefix="edgepack-demo-") as scratch:
        fits = run(name, out_folder or Path(scratch) / "demo-int4")
    done = (f"\ndone in {time.perf_counter() - start:.0f} s.", "bold")
    out.print(Text.assemble(done, " Next, with your own Gemma 3n:"))
    for line in (
        "plan google/gemma-3n-E2B-it --to onnx --target 2GB",
        "export google/gemma-3n-E2B-it --to onnx --target 2GB --out gemma-e2b",
        "generate gemma-e2b --chat --prompt 'Hello!'",
        "validate gemma-e2b --target 2GB",
    ):
        out.print(f"  {name} {line}")
    out.print(f"Without the gated weights: {name} synth --preset gemma-3n-e2b --out e2b-random")
    if not fits:
        raise typer.Exit(ANSWER_NO)


def run(name: str, package: Path) -> bool:
    """The four steps, each under its command line, which begins with `name`; returns the verdict."""
    _step(f"{name} plan {DEMO} --to onnx --target {TARGET} --context {CONTEXT}")
    planned = plan(DEMO_FOLDER, target=TARGET, context=CONTEXT)
    print_plan(planned)
    _step(f"{name} export {DEMO} --to onnx --target {TARGET} --context {CONTEXT} --out {package.name}")
    done = export(DEMO_FOLDER, out=package, plan=planned)
    size = sum(entry.size_bytes for entry in done.package.manifest.files)
    out.print(f"{format_bytes(size)} written, peak RSS {format_bytes(done.peak_rss_bytes)}")
    print_notes(done)
    _step(f"{name} generate {package.name} --prompt '{PROMPT}'")
    with load(package) as model:
        for piece in model.generate_text(PROMPT, max_new_tokens=128):
            out.print(piece, end="")
    out.print()
    _step(f"{name} validate {package.name} --target {TARGET}")
    report = validate(package, target=TARGET)
    print_report(report)
    return planned.fits and report.verdict


def _step(command: str) -> None:
    out.print(f"\n$ {command}", style="bold cyan")
