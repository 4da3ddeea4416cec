"""The verb: where it writes, what it says, and how it ends."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import edgepack
from edgepack.calibration.file import open_calibration
from tests.calibration.commands import command, run


def test_a_folder_gets_a_file_with_the_name_of_the_checkpoint(tmp_path: Path) -> None:
    code, out, err = run("calibrate", "demo", "--out", ".", "--tokens", "128", "--sequence", "64", cwd=tmp_path)
    file = tmp_path / "demo.calibration.safetensors"
    assert code == 0, err
    assert out.startswith(f"{file.name}: ") and out.endswith("128 tokens in sequences of 64\n")
    assert err.startswith("written in ") and "peak RSS of" in err
    with open_calibration(file) as opened:
        assert opened.header.tokens == 128 and opened.header.text == "builtin"
        assert opened.header.first_weight == 16
    before = file.read_bytes()
    code, out, err = run("calibrate", "demo", "--out", ".", cwd=tmp_path)
    assert (code, out) == (2, "") and err.startswith("error: ") and "exists: choose another, or pass --over" in err
    code, out, err = run(
        "calibrate",
        "demo",
        "--out",
        file.name,
        "--tokens",
        "128",
        "--sequence",
        "64",
        "--overwrite",
        "--json",
        cwd=tmp_path,
    )
    facts = json.loads(out)
    assert (code, facts["calibration"], facts["tokens"]) == (0, file.name, 128)
    assert facts["size_bytes"] == len(before) and file.read_bytes() == before


def test_a_signal_keeps_the_work(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("Once upon a time there was a boat. " * 3000)
    asked = (
        "calibrate",
        "demo",
        "--out",
        "out",
        "--text",
        "text",
        "--tokens",
        "16384",
        "--sequence",
        "64",
        "--threads",
        "1",
    )
    process = command(*asked, cwd=tmp_path)
    progress = tmp_path / "out.partial/progress.json"
    while not progress.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + signal.SIGINT, "")
    partial = tmp_path / "out.partial"
    assert err == f"interrupted: what is done stays in {partial}, the same command goes on with it\n"
    code, _, err = run(*asked, cwd=tmp_path)
    assert code == 0, err
    assert not partial.exists()


def test_the_same_from_python(tmp_path: Path) -> None:
    done = edgepack.calibrate("demo", out=tmp_path, tokens=128, sequence=64)
    assert done.path == tmp_path / "demo.calibration.safetensors" and done.size_bytes == done.path.stat().st_size
