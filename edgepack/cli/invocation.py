"""How this command line was started, for lines that a user can copy."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

NAME = "edgepack"


def command_name() -> str:
    """What a user types for `edgepack` from the working directory: the bare name only where it leads to this one."""
    script = Path(sys.argv[0])
    if script.name == NAME and script.is_file():
        return NAME if _leads_to(NAME, script) else shlex.quote(_shortest(script))
    python = Path(sys.executable)
    name = python.name if _leads_to(python.name, python) else shlex.quote(_shortest(python))
    return f"{name} -m {NAME}"


def _leads_to(name: str, file: Path) -> bool:
    """Whether the shell finds `file` under this name. Links count as they are: those of two environments may be one."""
    found = shutil.which(name)
    return found is not None and os.path.abspath(found) == os.path.abspath(file)


def _shortest(file: Path) -> str:
    """The path from the working directory where the file is inside it, else the whole path."""
    path, here = Path(os.path.abspath(file)), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
