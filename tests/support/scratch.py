"""A copy of the source tree and an environment of its own, for what must be tried as it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tests.support.paths import ROOT

PACKAGED = ("edgepack", "converters", "runtimes", "integrations")
FILES = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "action.yml")
# No network: build with the setuptools that is here, take every dependency from here. (pip reads this `no` as "do it".)
PIP_OFFLINE = {"PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "no", "PIP_CONSTRAINT": ""}


def copy_source(folder: Path) -> Path:
    """Copy what a wheel is built from, and the action. A build leaves files behind, and tests run side by side."""
    folder.mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in PACKAGED:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copytree(ROOT / "tools/ci", folder / "tools/ci", ignore=ignored)
    for name in FILES:
        shutil.copy2(ROOT / name, folder / name)
    return folder


def make_environment(folder: Path) -> Path:
    """A virtual environment that also sees the libraries of this one, but not its edgepack; return its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin/python"
    show = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(show, capture_output=True, text=True, check=True).stdout.strip())
    # A folder named in a .pth file is searched, but its own .pth files, the editable edgepack among them, are not read.
    libraries = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "zz-libraries.pth").write_text("\n".join(libraries) + "\n")
    return python


def install(python: Path, *arguments: object) -> None:
    """`pip install` into the environment of `python`."""
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
    command = [*map(str, pip), *map(str, arguments)]
    environment = clean_environment() | PIP_OFFLINE
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def clean_environment() -> dict[str, str]:
    """This process's variables, without those that would lead to the source tree."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
