"""`edgepack` in a process of its own, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.scratch import ROOT, clean_environment


def command(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """A verb with its arguments, under way."""
    paths = os.pathsep.join([*(str(ROOT / part) for part in (".", "converters", "runtimes")), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-m", "edgepack", *arguments],
        cwd=cwd,
        env=clean_environment() | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str, cwd: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    process = command(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err
