"""Every Python process that we start, in a folder whose files are named like modules of Python's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgepack
from tests.support.paths import DEMO, ROOT

VALIDATE = ("validate", "package", "--prompt-tokens=8", "--new-tokens=2", "--repeat=1", "--threads=1")
TRAPS = ("random.py", "json.py", "struct.py", "numpy.py")


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    for name in TRAPS:
        (tmp_path / name).write_text("raise SystemExit('a file of the user was imported')\n")
    shutil.copytree(DEMO, tmp_path / "demo")
    return tmp_path


# As `python -m edgepack` and a script in that folder leave it; this process has imported its own before.
START = (
    "import json, random, struct, sys, numpy\n"
    "from edgepack.cli.main import main\n"
    "sys.path.insert(0, sys.argv.pop())\n"
    "main()"
)


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT), str(ROOT / "converters"), str(ROOT / "runtimes")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "EDGEPACK_CACHE": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, "-P", "-c", START, *words, str(folder)],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip


@pytest.mark.parametrize("to", ["onnx", "litert"])
def test_no_child_imports_from_the_folder_that_the_user_is_in(to: str, trapped: Path) -> None:
    tokenizer = trapped / "demo" / "tokenizer.json"
    # Large enough for a process of its own, which converts it.
    tokenizer.write_text(tokenizer.read_text().rstrip().removesuffix("}") + " " * 4_000_000 + "}")
    (trapped / "golden.jsonl").write_text('{"name": "any", "prompt": "Hi", "must_match": ".", "max_new_tokens": 2}\n')
    for words in (
        ("export", "demo", "--to", to, "--out", "package", "--context", "64", "--threads", "1"),
        ("generate", "package", "--prompt", "Hi", "--max-new-tokens", "2", "--threads", "1"),
        (*VALIDATE, "--golden", "golden.jsonl", "--reference", "package"),
        *([(*VALIDATE, "--runtime", "litert-lm")] if to == "litert" else []),
    ):
        done = run(trapped, *words)
        assert done.returncode == 0, done.stderr
        assert "was imported" not in done.stdout + done.stderr


def test_the_working_folder_is_handed_on_only_where_edgepack_lies_in_it(
    trapped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgepack.system.child import child_environment

    monkeypatch.setattr(sys, "path", [str(trapped), *sys.path])
    monkeypatch.chdir(trapped)
    assert str(trapped) not in child_environment()["PYTHONPATH"].split(os.pathsep)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    assert str(ROOT) in child_environment()["PYTHONPATH"].split(os.pathsep)


def test_no_child_imports_from_the_folder_of_the_script_that_was_started(trapped: Path) -> None:
    (trapped / "onnx.py").write_text("raise SystemExit('a file of the user was imported')\n")  # of no use to the script
    for name in TRAPS:
        (trapped / name).unlink()
    script, elsewhere = trapped / "run.py", trapped / "elsewhere"
    script.write_text("from edgepack.cli.main import main\nmain()\n")
    elsewhere.mkdir()
    paths = [str(ROOT), str(ROOT / "converters"), str(ROOT / "runtimes")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "EDGEPACK_CACHE": str(trapped / "cache")}
    edgepack.export(DEMO, out=trapped / "package", context=64, threads=1)
    words = ["generate", str(trapped / "package"), "--prompt", "Hi", "--max-new-tokens", "2", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, str(script), *words],
        cwd=elsewhere, env=environment, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
