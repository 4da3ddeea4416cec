"""How far a validation is, as a line on a terminal while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic

from rich.progress import Progress as Display
from rich.progress import ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from edgepack.cli.console import err
from edgepack.validation.progress import OnProgress, Progress

# Once a second: what is drawn takes CPU time of the machine that is being measured.
REFRESHES_PER_S = 1


class LeftColumn(ProgressColumn):
    """What is left, counted down from what the last phase told; nothing as long as that is not known."""

    def render(self, task: Task) -> Text:
        """``about 0:00:40 left``, or ``at least`` so much where some stages cannot be told yet."""
        left_s = task.fields["left_s"]
        if left_s is None:
            return Text("")
        rest = timedelta(seconds=round(max(0.0, left_s - (monotonic() - task.fields["told_at"]))))
        if not rest and not task.fields["whole"]:
            return Text("")
        return Text(f"{'about' if task.fields['whole'] else 'at least'} {rest} left")


@contextmanager
def shown_progress() -> Iterator[OnProgress]:
    """A line on stderr if that is a terminal; the body gets what takes each `Progress`."""
    columns = (SpinnerColumn("line"), TextColumn("{task.description}", markup=False), TimeElapsedColumn(), LeftColumn())
    with Display(
        *columns, console=err, transient=True, disable=not err.is_terminal, refresh_per_second=REFRESHES_PER_S
    ) as display:
        task = display.add_task("starting", total=None, left_s=None, whole=False, told_at=0.0)

        def tell(progress: Progress) -> None:
            display.update(
                task,
                description=f"{progress.stage} of {progress.stages}: {progress.phase}",
                left_s=progress.left_s,
                whole=progress.whole,
                told_at=monotonic(),
                refresh=True,
            )

        yield tell
