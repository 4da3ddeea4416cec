"""What is said about installing works: one form, extras that exist, a wheel that runs, each Python that is named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import edgepack
from edgepack.errors import install_hint, not_installed
from edgepack.loading import RUNTIMES
from edgepack.planning.backends import BACKENDS
from tests.support.scratch import PIP_OFFLINE, ROOT, clean_environment, copy_source, install, make_environment

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SKIPPED = {".git", ".venv", "node_modules", "build", "dist"}
# A clone, the wheel, or a path to a clone; an index has none of it.
EXTRAS = re.compile(r"""(?:['" ]\.|\.whl|/edgepack)\[([\w,{}-]+)\]""")


def pages() -> list[Path]:
    """Everything in the repository that tells people what to do."""
    kinds = {".md", ".py", ".yml", ".yaml", ".toml", ".txt", ".sh", ".cfg"}
    found = [path for path in ROOT.rglob("*") if path.suffix in kinds or path.name == "Makefile"]
    files = [path for path in found if path.is_file() and not SKIPPED & set(path.relative_to(ROOT).parts)]
    # What pip writes beside a clone that is installed in place.
    return [path for path in files if not any(part.endswith(".egg-info") for part in path.parts)]


def test_an_error_names_a_clone_and_the_wheel() -> None:
    assert install_hint("onnx") == (
        "pip install -c constraints.txt '.[onnx]' in a clone of edgepack, "
        f"or pip install 'edgepack-{edgepack.__version__}-py3-none-any.whl[onnx]' with its wheel"
    )
    assert not_installed("numpy", "run") == f"numpy is not installed: {install_hint('run')}"


def test_nothing_names_a_package_index() -> None:
    ours = "tests/project/test_install.py"
    for page in pages():
        text = page.read_text("utf-8", errors="replace")
        where = page.relative_to(ROOT).as_posix()
        if where != ours and where != "pyproject.toml":  # where [dev] takes the other extras
            assert not re.search(r"""(?<![\w/.-])edgepack\[""", text), where
        assert where == ours or not re.search(r"pip install (?:-\S+ )*edgepack\b", text), where


def test_every_extra_that_is_named_exists() -> None:
    known = PROJECT["optional-dependencies"].keys()
    named: dict[str, str] = {}
    for page in pages():
        where = page.relative_to(ROOT).as_posix()
        for extras in (
            EXTRAS.findall(page.read_text("utf-8", errors="replace")) if not where.startswith("tests") else ()
        ):
            named |= {extra: where for extra in extras.split(",") if "{" not in extra}
    assert {"onnx", "run", "litert", "run-litert", "reference", "optimum"} <= named.keys()
    assert named.keys() <= known, named


def test_every_extra_in_an_error_exists() -> None:
    used = {row.extra for row in RUNTIMES.values()} | {backend.extra for backend in BACKENDS.values()}
    for folder in ("edgepack", "runtimes", "converters", "integrations"):
        for file in (ROOT / folder).rglob("*.py"):
            used |= set(re.findall(r'not_installed\([^()]*"([a-z-]+)"\)', file.read_text("utf-8")))
            used |= set(re.findall(r"not_installed\([^()]*'([a-z-]+)'\)", file.read_text("utf-8")))
    assert used >= {"run", "run-litert", "reference"}
    assert used <= PROJECT["optional-dependencies"].keys()


def test_the_wheel_is_the_command(tmp_path: Path) -> None:
    source = copy_source(tmp_path / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "dist", "."]
    environment = clean_environment() | PIP_OFFLINE
    done = subprocess.run(
        command, cwd=source, capture_output=True, text=True, env=environment, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    wheel = source / "dist" / f"edgepack-{edgepack.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"edgepack-{edgepack.__version__}.dist-info/METADATA").decode()
    assert f"Version: {edgepack.__version__}" in metadata and "LiteRT" in metadata.split("Summary: ")[1].splitlines()[0]
    python = make_environment(tmp_path / "environment")
    install(python, f"{wheel}[onnx,run]")
    for start in ([str(python.parent / "edgepack")], [str(python), "-m", "edgepack"]):
        said = subprocess.run(
            [*start, "--version"], cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, check=False
        )
        assert (said.returncode, said.stdout) == (0, f"edgepack {edgepack.__version__}\n"), said.stderr


def python_of(version: str) -> Path | None:
    """An interpreter of this version: this one, of the PATH, or of pyenv."""
    ask = "import sys; print(sys.executable if '%d.%d' % sys.version_info[:2] == sys.argv[1] else '')"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))  # its python3.12 on the PATH may lead nowhere
    for name in (sys.executable, f"python{version}", *sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"))):
        try:
            done = subprocess.run([name, "-c", ask, version], capture_output=True, text=True, check=False, timeout=60)
        except OSError:
            continue
        if done.returncode == 0 and done.stdout.strip():
            return Path(done.stdout.strip())
    return None


VERSIONS = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", line)]


def test_the_pythons_that_are_named() -> None:
    assert VERSIONS == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={VERSIONS[0]}"


@pytest.mark.parametrize("version", VERSIONS)
def test_each_python_that_is_named_compiles_all_and_imports_what_it_can(version: str, tmp_path: Path) -> None:
    python = python_of(version)
    if python is None:
        pytest.skip(f"no python{version} on PATH or in pyenv: nothing was tried in it")
    script = (
        "import compileall, importlib, sys\n"
        "folders = sys.argv[1:]\n"
        "for folder in folders:\n"
        "    assert compileall.compile_dir(folder, quiet=1), folder\n"
        "sys.path[:0] = [__import__('os').path.dirname(folders[0])]\n"
        "for name in ('edgepack', 'edgepack.units', 'edgepack.errors', 'edgepack.builtin'):\n"
        "    importlib.import_module(name)\n"
        "import edgepack\n"
        "print(edgepack.__version__)\n"
        "try:\n"
        "    import numpy, pydantic\n"
        "except ImportError:\n"
        "    print('no libraries')\n"
        "else:\n"
        "    from edgepack.planning.planner import make_plan\n"
        "    print('planner')\n"
    )
    folders = [str(ROOT / folder) for folder in ("edgepack", "converters", "runtimes", "integrations")]
    environment = clean_environment() | {"PYTHONPYCACHEPREFIX": str(tmp_path)}
    command = [str(python), "-W", "error::SyntaxWarning", "-c", script, *folders]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    said, libraries = done.stdout.splitlines()
    assert said == edgepack.__version__
    if python != Path(sys.executable) and libraries == "no libraries":
        pytest.skip(f"python{version} has no libraries: all compiles in it, and the planner was not imported")
    assert libraries == "planner"
