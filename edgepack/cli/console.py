"""What all verbs share: where output goes, progress, and the exit codes.

Results go to stdout, everything else to stderr. Exit codes: 0 good; 1 the answer is no; 2 unusable input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

ANSWER_NO = 1
UNUSABLE = 2
INTERRUPTED = 130
TERMINATED = 143

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def fail(message: str, code: int = UNUSABLE) -> None:
    """Print one error line on stderr and leave with `code`."""
    line = " ".join(message.split())
    err.print(f"[red]error:[/red] {line}" if err.is_terminal else f"error: {line}", markup=err.is_terminal)
    sys.exit(code)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr if that is a terminal; the body gets a function of (done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *times, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
