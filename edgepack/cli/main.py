"""Entry point of the `edgepack` command."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, NoReturn

import typer

from edgepack.cli import cache, calibrate, demo, export, generate, inspect, plan, synth
from edgepack.cli.console import (
    INTERNAL,
    SIGNALLED,
    Interrupted,
    fail,
    keep_stderr,
    keep_stdout,
    open_standard_streams,
    say_interrupted,
)
from edgepack.cli.validating import validate
from edgepack.errors import EdgepackError
from edgepack.shown import shown
from edgepack.version import __version__

# Ctrl-C, a build that is cancelled, a terminal that is closed.
LEAVING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Until an exit that was dropped is tried again.
_MOMENT_S = 0.01

# Shells complete this name, so messages use it even where the command was started as `python -m edgepack`.
PROGRAM = "edgepack"

COMPLETION = {"--install-completion", "--show-completion"}

app = typer.Typer(
    name=PROGRAM,
    help="Put Gemma 3n on a phone or a Raspberry Pi and know that it fits.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (inspect, plan, calibrate, export, generate, validate, synth, demo):
    app.command(name=verb.__name__.rpartition(".")[2])(verb.command)
app.add_typer(cache.app)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"edgepack {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def _leave(number: int, frame: FrameType | None) -> None:
    # An exit, not the default action: open packages, workers and their memory limits are cleaned up on the way out,
    # and a second signal must not stop that half way.
    for other in LEAVING:
        signal.signal(other, signal.SIG_IGN)
    raise Interrupted(SIGNALLED + number)


def _raise_again(dropped: sys.UnraisableHookArgs) -> None:
    """Leave a moment later where Python drops the exit: in the callback of a weak reference, such as an import has."""
    raised = dropped.exc_value
    if not isinstance(raised, Interrupted):
        sys.__unraisablehook__(dropped)
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise Interrupted(raised.code)

    signal.signal(signal.SIGALRM, leave)
    signal.setitimer(signal.ITIMER_REAL, _MOMENT_S)


def _require_utf8(arguments: Sequence[str]) -> None:
    """Refuse an argument that is no text: neither runtimes nor JSON can hold the name of such a file."""
    for argument in arguments:
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            raise EdgepackError(
                f"argument {shown(argument, 300)} is not UTF-8: rename that file or folder, or make a link with a "
                "plain name; a text has to be written in UTF-8"
            ) from None


def main() -> None:
    """Run the command line; unusable input becomes one line on stderr and exit code 2, a mistake of ours 70."""
    open_standard_streams()
    for number in LEAVING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup asks to stay
            signal.signal(number, _leave)
    sys.unraisablehook = _raise_again
    keep_stdout()
    keep_stderr()
    try:
        _require_utf8(sys.argv[1:])
        code = app(args=sys.argv[1:] or ["--help"], prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
    except EdgepackError as error:
        fail(str(error))
    except Interrupted as signalled:
        say_interrupted(signalled.said)
        raise
    except Exception as error:  # noqa: BLE001 - Python would end with 1, which is an answer
        _tell(error)
    else:
        if code == 1 and COMPLETION & set(sys.argv):  # typer's answer, which says no to nothing
            fail("completion is for bash, zsh, fish and PowerShell: run this in one of them")
        sys.exit(code if isinstance(code, int) else 0)


def _tell(error: Exception) -> NoReturn:
    """Wrong usage is one line; everything else that comes here is a mistake of ours, told with its place."""
    # Typer keeps its usage errors in a private module; all of them, and nothing else, format themselves.
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else PROGRAM
        fail(f"{format_message().rstrip('.')}. See {command} --help.")
    if isinstance(error, OSError) and "--install-completion" in sys.argv:  # typer writes to the user's home
        fail(f"completion cannot be installed: {error}; keep the output of edgepack --show-completion yourself")
    traceback.print_exception(error)
    fail(f"a mistake of edgepack itself, please report it: {type(error).__name__}: {error}", INTERNAL)


if __name__ == "__main__":
    main()
