"""The checkpoint that comes along with edgepack, by its name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

DEMO = "demo"
DEMO_FOLDER = Path(str(resources.files("edgepack") / "assets" / DEMO))


def builtin_checkpoint(source: str | Path) -> Path | None:
    """The folder of the built-in checkpoint that `source` names; None for everything else.

    What has that name in the working directory wins, as it does over a hub id. Only a text is a name: a `Path` is none.
    """
    if source != DEMO or Path(DEMO).exists():
        return None
    return DEMO_FOLDER
