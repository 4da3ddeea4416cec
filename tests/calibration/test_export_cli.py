"""`export --calibration` and `--calibrate`, on the command line and in edgepack.toml, and what `plan` says of them."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from edgepack.cli.export import _calibrations
from edgepack.config import read_config
from edgepack.errors import EdgepackError
from edgepack.planning.planner import make_plan
from tests.calibration.commands import command, run
from tests.calibration.recipes import decoder_recipe
from tests.support.specs import E2B, preset_spec

STORY = "Once upon a time there was a boat. "
NEEDS = "the export needs a calibration: --calibrate builtin, or --calibration FILE of `calibrate`"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.json").write_text(decoder_recipe("onnx", "gptq").model_dump_json(), "utf-8")
    (tmp_path / "text").write_text(STORY * 60, "utf-8")
    return tmp_path


def test_a_plan_needs_none_and_says_that_the_export_will(folder: Path) -> None:
    code, out, err = run("plan", "demo", "--recipe", "mine.json", "--save", "plan.json", cwd=folder)
    assert (code, out.splitlines()[-1]) == (0, NEEDS), err
    code, out, _ = run("plan", "demo", cwd=folder)
    assert code == 0 and "calibrat" not in out
    code, out, err = run("export", "demo", "--plan", "plan.json", "--out", "package", cwd=folder)
    assert (code, out) == (2, "") and "pass --calibrate builtin, or --calibration FILE" in err
    code, out, err = run("export", "demo", "--plan", "plan.json", "--out", "package", "--calibrate", "text", cwd=folder)
    assert code == 0 and out.splitlines()[1].startswith("calibration: text, 512 tokens in sequences of 512, sha256 ")
    assert sorted(path.name for path in folder.iterdir()) == ["mine.json", "package", "plan.json", "text"]


def test_json_has_the_facts(folder: Path) -> None:
    asked = ("export", "demo", "--recipe", "mine.json", "--out", "package", "--json")
    code, out, err = run(*asked, "--calibrate", "text", "--calibration", "kept", cwd=folder)
    assert code == 0, err
    facts = json.loads(out)["calibration"]
    assert (facts["text"], facts["sequence_tokens"]) == ("text", 512) and (folder / "kept").is_file()
    assert facts == json.loads((folder / "package/manifest.json").read_text())["calibration"]
    shutil.rmtree(folder / "package")
    code, out, _ = run("export", "demo", "--out", "package", "--json", cwd=folder)
    assert code == 0 and json.loads(out)["calibration"] is None


def test_edgepack_toml_says_it_too(folder: Path) -> None:
    (folder / "edgepack.toml").write_text(
        '[export]\ncheckpoint = "demo"\nrecipe = "mine.json"\ncalibrate = "text"\nout = "package"\n'
    )
    other = folder / "elsewhere"
    other.mkdir()
    code, out, err = run("export", "--config", "../edgepack.toml", cwd=other)
    assert code == 0 and "calibration: text, 512 tokens" in out, err
    assert (folder / "package/manifest.json").is_file() and not list(other.iterdir())
    code, out, err = run("export", "--recipe", "int8", "--overwrite", cwd=folder)  # which takes none
    assert code == 0 and "calibration" not in out, err


def test_an_interrupted_export_keeps_the_calibration_so_far(folder: Path) -> None:
    asked = ("export", "demo", "--recipe", "mine.json", "--out", "package", "--calibrate", "text", "--threads", "1")
    (folder / "text").write_text(STORY * 900, "utf-8")
    process = command(*asked, cwd=folder)
    partial = folder / "package.calibration.safetensors.partial"
    while not (partial / "progress.json").exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    said = f"no package was written; the calibration so far stays in {partial}, the same command goes on with it"
    assert (process.returncode, out, err) == (128 + signal.SIGINT, "", f"interrupted: {said}\n")
    code, _, err = run(*asked, cwd=folder)
    assert code == 0, err
    assert sorted(path.name for path in folder.iterdir()) == ["mine.json", "package", "text"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "calibration = 3",
            'export.calibration: expected a calibration, such as "gemma.calibration.safetensors", got 3',
        ),
        ("calibrate = true", 'export.calibrate: expected builtin or a text file, such as "builtin", got true'),
        ('calibrate = ""', 'export.calibrate is empty: expected builtin or a text file, such as "builtin"'),
    ],
)
def test_settings_that_are_wrong_are_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "edgepack.toml"
    file.write_text(f"[export]\n{text}\n")
    with pytest.raises(EdgepackError) as caught:
        read_config(file)
    assert str(caught.value) == f"config {file}: {said}"


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "edgepack.toml"
    file.write_text('[export]\ncalibration = "kept"\ncalibrate = "builtin"\n')
    settings, spec = read_config(file), preset_spec(E2B)
    takes, takes_none = (make_plan(spec, recipe=decoder_recipe("onnx", how)) for how in ("gptq", "nearest"))
    of_file = (tmp_path / "kept", "builtin")
    assert _calibrations(settings, takes, None, None, own_recipe=False) == of_file
    assert _calibrations(settings, takes, None, "text", own_recipe=True) == (None, "text")
    assert _calibrations(settings, takes, Path("other"), None, own_recipe=True) == (Path("other"), None)
    assert _calibrations(settings, takes_none, None, None, own_recipe=False) == (None, None)
    assert _calibrations(settings, takes_none, None, None, own_recipe=True) == of_file  # refused: it says both
