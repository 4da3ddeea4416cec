"""`optimum-cli export edge`, from a wheel and from an editable installation, each in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import edgepack
from edgepack.package.folder import open_package
from tests.support.paths import DEMO
from tests.support.scratch import PIP_OFFLINE, ROOT, clean_environment, copy_source, install, make_environment

REGISTERED = "optimum/commands/register/register_edge.py"
Optimum = Callable[..., subprocess.CompletedProcess[str]]


def optimum_cli(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "optimum.commands.optimum_cli", *arguments]
    return subprocess.run(
        list(map(str, command)),
        cwd=python.parent,
        env=clean_environment() | {"COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_source(tmp_path_factory.mktemp("optimum") / "source")


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    out = source.parent / "wheels"
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(out), str(source)]
    environment = clean_environment() | PIP_OFFLINE
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return next(out.glob("edgepack-*.whl"))


@pytest.fixture(scope="module")
def optimum(wheel: Path) -> Optimum:
    python = make_environment(wheel.parent.parent / "environment")
    install(python, wheel)
    return lambda *arguments: optimum_cli(python, *arguments)


def test_the_wheel_adds_to_the_namespace_and_takes_nothing_from_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if name.startswith("optimum/")] == [REGISTERED]


def test_the_command_stands_beside_those_of_others(optimum: Optimum) -> None:
    done = optimum("export", "--help")
    assert done.returncode == 0 and "edge" in done.stdout and "edgepack" in done.stdout
    assert {"export", "env"} <= set(
        optimum("--help").stdout.replace(",", " ").replace("{", " ").replace("}", " ").split()
    )


def test_help_has_the_options_of_edgepack_export(optimum: Optimum) -> None:
    from typer.main import get_command

    from edgepack.cli.main import app

    shown = optimum("export", "edge", "--help").stdout
    export = get_command(app).commands["export"]  # type: ignore[attr-defined]
    ours = {name: option.help for option in export.params for name in option.opts if name.startswith("--")}
    left_out = {"--out", "--plan", "--config", "--json", "--help"}  # --out is the argument OUT
    left_out |= {"--bits", "--head-bits", "--sensitivity", "--save-recipe"}  # `edgepack plan --bits` writes a recipe
    for name in ours.keys() - left_out:
        assert f"{name} " in shown
        assert " ".join(ours[name].split()) in " ".join(shown.split())
    assert "CHECKPOINT OUT" in shown


@pytest.mark.parametrize("backend", ["onnx", "litert"])
def test_export_writes_a_package(optimum: Optimum, tmp_path: Path, backend: str) -> None:
    out = tmp_path / "package"
    done = optimum("export", "edge", DEMO, out, "--to", backend, "--recipe", "int4", "--target", "300MB",
                   "--context", 256, "--prefill", "64,128")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{out}: " in done.stdout and "fits 300MB" in done.stdout
    assert "peak RSS" in done.stderr
    with edgepack.load(out, threads=1) as model:
        assert model.logits([2, 5, 9]).shape[0] == 3
    plan = open_package(out).manifest.plan
    assert (plan.backend, plan.recipe.name, plan.context_tokens, plan.prefill_tokens) == (
        backend,
        "int4",
        256,
        (64, 128),
    )


def test_a_missed_target_is_answer_1_and_writes_nothing(optimum: Optimum, tmp_path: Path) -> None:
    done = optimum("export", "edge", DEMO, tmp_path / "out", "--target", "1MB")
    assert done.returncode == 1
    assert done.stdout.startswith("does not fit 1MB")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/no/such/folder", "out"], "no such folder"),
        ([DEMO, "out", "--prefill", "x"], "--prefill 'x'"),
        ([DEMO, "out", "--to", "gguf"], "gguf"),
        ([DEMO, ROOT], "exists"),
    ],
)
def test_unusable_input_is_one_line_and_code_2(optimum: Optimum, arguments: list[object], said: str) -> None:
    done = optimum("export", "edge", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0]


def test_an_editable_installation_registers_too(source: Path) -> None:
    python = make_environment(source.parent / "editable")
    install(python, "--editable", source)
    done = optimum_cli(python, "export", "edge", "--help")
    assert done.returncode == 0 and "CHECKPOINT OUT" in done.stdout, done.stderr
