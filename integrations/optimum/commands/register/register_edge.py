"""`optimum-cli export edge`: what `edgepack export` does, as a command of Hugging Face Optimum.

Optimum imports every file of the namespace package `optimum.commands.register` whenever `optimum-cli` starts. So none
of the folders above this file may have an `__init__.py`, and nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, get_args

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

NAME = "edge"


class EdgeExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # Optimum ships no types
    """Plans and writes a package. Exit code 1 if it would miss the target, 2 for unusable input."""

    COMMAND = CommandInfo(name=NAME, help="Export Gemma 3n to ONNX or LiteRT within a memory budget (edgepack).")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the options of `edgepack export` to `parser`."""
        # Optimum builds the parsers of all commands for each of them, and reading our options takes 0.3 s.
        if NAME in sys.argv:
            _add_options(parser)

    def run(self) -> None:
        """Export as the arguments say."""
        from edgepack.cli.console import SIGNALLED, fail, say_interrupted
        from edgepack.errors import EdgepackError
        from edgepack.package.folder import MANIFEST

        try:
            _export(**{name: value for name, value in vars(self.args).items() if name != "func"})
        except EdgepackError as error:
            fail(str(error))
        except KeyboardInterrupt:
            say_interrupted(None if os.path.exists(self.args.out / MANIFEST) else "nothing was written")
            sys.exit(SIGNALLED + signal.SIGINT)


def _add_options(parser: ArgumentParser) -> None:
    """Turn the options that `edgepack export` declares for typer into options of argparse."""
    from edgepack.cli import options

    parser.description = "Convert a Gemma 3n checkpoint into a package, whole or not at all, if it fits the target."
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=get_args(options.CheckpointArgument)[1].help)
    parser.add_argument("out", metavar="OUT", type=Path, help="Package folder to write.")
    _add(parser, options.BackendOption)
    _add(parser, options.RecipeOption)
    for option in (
        options.PlannedRuntimeOption,
        options.TargetOption,
        options.ContextOption,
        options.PrefillOption,
        options.CalibrationOption,
        options.CalibrateOption,
        options.ThreadsOption,
        options.RevisionOption,
        options.TokenOption,
        options.OfflineOption,
        options.OverwriteOption,
    ):
        _add(parser, option)


def _add(parser: ArgumentParser, option: Any) -> None:
    """Add one option. `option` is ``Annotated[type, typer.Option(...)]``, its type perhaps with ``| None``."""
    kind, declared = get_args(option)
    names = (declared.default, *declared.param_decls)  # in an Annotated, typer's first argument is a name as well
    help_text = declared.help.replace("%", "%%")
    if kind is bool:
        parser.add_argument(*names, action="store_true", help=help_text)
        return
    kinds = [part for part in get_args(kind) if part is not type(None)] or [kind]
    parser.add_argument(*names, metavar=declared.metavar or "N", type=kinds[0], help=help_text)


def _export(
    checkpoint: str,
    out: Path,
    *,
    to: str | None,
    runtime: str | None,
    recipe: str | None,
    target: str | None,
    context: int | None,
    prefill: str | None,
    calibration: Path | None,
    calibrate: str | None,
    threads: int | None,
    revision: str | None,
    token: str | None,
    offline: bool,
    overwrite: bool,
) -> None:
    from edgepack import api
    from edgepack.checkpoint.folder import open_checkpoint
    from edgepack.cli.console import ANSWER_NO, progress_bar, stdout_to_stderr
    from edgepack.cli.export import print_export
    from edgepack.cli.options import parse_lengths
    from edgepack.cli.plan import print_plan
    from edgepack.package.folder import refuse_existing
    from edgepack.planning.planner import default_recipe

    refuse_existing(out, overwrite=overwrite)
    start = time.perf_counter()
    with open_checkpoint(checkpoint, revision=revision, token=token, offline=offline) as source:
        plan = api.plan(
            source,
            to=to,
            runtime=runtime,
            target=target,
            recipe=recipe or default_recipe(calibrated=calibration is not None or calibrate is not None),
            context=context,
            prefill=parse_lengths(prefill, "--prefill"),
        )
        if not plan.fits:
            print_plan(plan)
            sys.exit(ANSWER_NO)
        with progress_bar("exporting") as progress, stdout_to_stderr():
            done = api.export(
                source,
                to=to,
                out=out,
                plan=plan,
                calibration=calibration,
                calibrate=calibrate,
                overwrite=overwrite,
                threads=threads,
                progress=progress,
            )
    print_export(done, time.perf_counter() - start)


REGISTER_COMMANDS = [(EdgeExportCommand, ExportCommand)]
