"""Where the command starts: ``edgepack`` and ``python -m edgepack``.

Imports take most of a second, some on a Pi. A signal that comes meanwhile ends with one line, too.
"""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> None:
    """Run the command line."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    from edgepack.cli.main import main as run

    run()


def _leave(number: int, frame: FrameType | None) -> None:
    # Nothing has begun that would have to be cleaned up, and half-imported modules cannot be left in order.
    os.write(2, b"interrupted: nothing was written\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
