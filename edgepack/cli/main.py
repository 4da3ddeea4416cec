"""Entry point of the `edgepack` command."""

from __future__ import annotations

import io
import signal
import sys
import traceback
from importlib import metadata
from types import FrameType
from typing import Annotated, NoReturn

import typer

from edgepack.cli import cache, demo, export, generate, inspect, plan, synth, validate
from edgepack.cli.console import INTERNAL, SIGNALLED, SafeStdout, fail, open_standard_streams
from edgepack.errors import EdgepackError

# Ctrl-C, a build that is cancelled, a terminal that is closed.
LEAVING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

app = typer.Typer(
    name="edgepack",
    help="Put Gemma 3n on a phone or a Raspberry Pi and know that it fits.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (inspect, plan, export, generate, validate, synth, demo):
    app.command(name=verb.__name__.rpartition(".")[2])(verb.command)
app.add_typer(cache.app)


def _version(value: bool) -> None:
    if value:
        try:
            typer.echo(f"edgepack {metadata.version('edgepack')}")
        except metadata.PackageNotFoundError as error:
            raise EdgepackError("edgepack is not installed here, so it has no version: pip install it first") from error
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def _leave(number: int, frame: FrameType | None) -> None:
    # SystemExit, not the default action: open packages, workers and their memory limits are cleaned up on the way out,
    # and a second signal must not stop that half way.
    for other in LEAVING:
        signal.signal(other, signal.SIG_IGN)
    sys.exit(SIGNALLED + number)


def main() -> None:
    """Run the command line; unusable input becomes one line on stderr and exit code 2, a mistake of ours 70."""
    open_standard_streams()
    for number in LEAVING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup asks to stay
            signal.signal(number, _leave)
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding, errors = sys.stdout.encoding, sys.stdout.errors
        sys.stdout = SafeStdout(sys.stdout.detach(), encoding=encoding, errors=errors, line_buffering=True)
    try:
        code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
        sys.stdout.flush()
    except EdgepackError as error:
        fail(str(error))
    except Exception as error:  # noqa: BLE001 - Python would end with 1, which is an answer
        _tell(error)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _tell(error: Exception) -> NoReturn:
    """Wrong usage is one line; everything else that comes here is a mistake of ours, told with its place."""
    # Typer keeps its usage errors in a private module; all of them, and nothing else, format themselves.
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        fail(f"{format_message()} See edgepack --help.")
    traceback.print_exception(error)
    fail(f"a mistake of edgepack itself, please report it: {type(error).__name__}: {error}", INTERNAL)


if __name__ == "__main__":
    main()
