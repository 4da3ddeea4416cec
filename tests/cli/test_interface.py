"""The package as a module and as a command of a shell: names, reprs, `python -m`, completion, the demo's name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import edgepack
from edgepack.builtin import DEMO_FOLDER
from edgepack.checkpoint.folder import open_checkpoint
from edgepack.cli import invocation
from edgepack.errors import CheckpointError
from edgepack.planning.backends import BackendName
from edgepack.planning.targets import device_names
from edgepack.units import format_bytes
from tests.support.report_sample import failing


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    command = [sys.executable, "-m", "edgepack", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)


def test_public_names() -> None:
    public = [
        "EdgepackError",
        "SamplingParams",
        "calibrate",
        "export",
        "load",
        "mix",
        "plan",
        "sensitivity",
        "validate",
    ]
    assert [name for name in dir(edgepack) if not name.startswith("_")] == public
    assert all(getattr(edgepack, name) is not None for name in public)
    assert "__version__" in dir(edgepack) and re.fullmatch(r"\d+\.\d+\.\d+", edgepack.__version__)
    with pytest.raises(AttributeError, match="no attribute 'convert'"):
        edgepack.convert  # noqa: B018


def test_the_module_is_the_command() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"edgepack {edgepack.__version__}\n", "")
    assert "Usage: edgepack [OPTIONS] COMMAND" in run("--help").stdout
    wrong = run("plan", "--target", "3")
    assert (wrong.returncode, wrong.stdout) == (2, "") and wrong.stderr.startswith("error: ")


def test_reprs_are_a_line(tmp_path: Path) -> None:
    plan = edgepack.plan("demo", target="250MB", context=96)
    size = format_bytes(plan.total_bytes)
    names = "backend='onnx', runtime='onnx', recipe='int4'"
    facts = f"{names}, context_tokens=96, total={size!r}, disk='1.98 MB', target='250MB', fits=True"
    assert repr(plan) == f"Plan({facts})"
    assert "target" not in repr(edgepack.plan("demo", context=96))
    done = edgepack.export("demo", out=tmp_path / "pkg", plan=plan)
    assert repr(plan) in repr(done) and len(repr(done)) < 600
    with edgepack.load(done.package.path) as model:
        assert repr(model) == f"<OnnxRuntime of '{tmp_path / 'pkg'}', 0 of 96 tokens>"
    report = failing()
    assert repr(report).startswith(f"Report(verdict=False, reason={report.reasons[0]!r}, ")
    assert len(repr(report)) < 400


def test_the_demo_is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_checkpoint("demo") as source:
        assert source.path == DEMO_FOLDER
    with pytest.raises(CheckpointError, match=r"Demo: no such folder; .* or demo"):
        open_checkpoint("Demo")
    with pytest.raises(CheckpointError, match="no such folder"):
        open_checkpoint(Path("demo"))  # a path is a path
    (tmp_path / "demo").mkdir()
    with pytest.raises(CheckpointError, match=r"^demo: no config\.json, the folder is empty"):
        open_checkpoint("demo")


def test_the_demo_is_a_reference_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgepack.validation.identity import reference_fingerprint
    from edgepack.validation.quality.compare import Tokens, open_reference
    from edgepack.validation.quality.texts import Piece

    monkeypatch.chdir(tmp_path)
    piece = Piece(name="words", ids=(2, 5, 9))
    found = open_reference("demo", Tokens(pieces=(piece,), probes=(), vocab_size=2176, notes=()))
    assert (found.folder, found.dtype) == (DEMO_FOLDER.resolve(), "float32")
    assert reference_fingerprint("demo") == reference_fingerprint(DEMO_FOLDER)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("edgepack ge", ["generate"]),
        ("edgepack generate x --sam", ["--sample"]),
        ("edgepack plan x --target rpi", [name for name in device_names() if name.startswith("rpi")]),
        ("edgepack export x --recipe in", ["int4", "int4-calibrated", "int8"]),
        ("edgepack export x --to ", list(get_args(BackendName))),
        ("edgepack validate x --runtime litert", ["litert", "litert-lm"]),
        ("edgepack synth --preset gemma-3n-e4", ["gemma-3n-e4b"]),
        ("edgepack plan x --recipe ./my", []),
    ],
)
def test_a_shell_completes(words: str, offered: list[str]) -> None:
    variables = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = run(_EDGEPACK_COMPLETE="complete_bash", **variables)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, offered, "")


def test_completion_for_each_shell_calls_the_command() -> None:
    for shell in ("bash", "zsh", "fish"):
        done = run(_EDGEPACK_COMPLETE=f"source_{shell}")
        assert done.returncode == 0 and f"_EDGEPACK_COMPLETE=complete_{shell}" in done.stdout


def test_completion_that_cannot_be_kept_is_one_line() -> None:
    told = {"HOME": "/dev/null/nowhere", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # what runs the tests
    done = run("--install-completion", "bash", **told)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: completion cannot be installed: ") and "--show-completion" in line


def test_completion_for_a_shell_that_has_none_is_exit_code_2() -> None:
    script = f"'{sys.executable}' -m edgepack --show-completion; exit $?"  # `exit`: else sh would become the command
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: completion is for bash, zsh, fish and PowerShell")


def test_the_name_that_works_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "my env" / "bin" / "edgepack"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("PATH", "/nowhere")
    assert invocation.command_name() == "'my env/bin/edgepack'"
    monkeypatch.setenv("PATH", str(script.parent))
    assert invocation.command_name() == "edgepack"
    other = tmp_path / "other" / "edgepack"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{other.parent}:{script.parent}")  # the bare name would start another one
    assert invocation.command_name() == "'my env/bin/edgepack'"
    monkeypatch.chdir(other.parent)
    assert invocation.command_name() == f"'{script}'"
    monkeypatch.setattr(sys, "argv", ["/x/edgepack/__main__.py"])
    monkeypatch.setattr(sys, "executable", "/opt/python/bin/python3")
    assert invocation.command_name() == "/opt/python/bin/python3 -m edgepack"


def test_the_demo_ends_with_commands_that_can_be_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from typer.main import get_command

    from edgepack.cli import demo
    from edgepack.cli.main import app

    monkeypatch.setattr(demo, "run", lambda name, package: True)
    monkeypatch.setattr(demo, "command_name", lambda: "my/bin/edgepack")
    demo.command(None)
    lines = capsys.readouterr().out.splitlines()
    typed = [line.partition("my/bin/edgepack ")[2] for line in lines if "my/bin/edgepack" in line]
    assert [line.split()[0] for line in typed] == ["plan", "export", "generate", "validate", "synth"]
    assert "edgepack " not in "".join(typed)
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    for line in typed:
        verb, *words = line.split()
        known = {name for option in verbs[verb].params for name in option.opts}
        assert {word for word in words if word.startswith("--")} <= known
