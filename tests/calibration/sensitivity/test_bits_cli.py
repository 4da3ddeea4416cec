"""From the command line: measure, plan and export with a number of bits; and what is refused."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from edgepack.calibration.sensitivity.file import read_sensitivity
from edgepack.package.folder import open_package
from edgepack.planning.mix import bits_per_weight
from edgepack.quant import load_recipe
from tests.calibration.commands import command, run
from tests.calibration.small import calibrated


def refused(*arguments: str, cwd: Path) -> str:
    code, out, err = run(*arguments, cwd=cwd)
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1, (code, out, err)
    return err


MEASURE = ("--text", "text.txt", "--tokens", "48", "--sequence", "24")


def test_measured_planned_and_exported(small: Path) -> None:
    folder, known = small.parent, calibrated(small).path.name
    code, out, err = run(
        "calibrate", "small", "--calibration", known, "--sensitivity", "costs.json", *MEASURE, cwd=folder
    )
    assert code == 0, err
    assert out.startswith("KL by scheme, 24 positions, onnx") or "KL by scheme, 24 positions, onnx" in out
    assert "ffn_down" in out and "costs.json: written in " in err
    costs = read_sensitivity(folder / "costs.json")
    assert {group.kind for group in costs.groups} >= {"head", "ple", "laurel", "altup_projection", "ffn_down"}
    bits = ("--bits", "6.5", "--sensitivity", "costs.json")
    code, out, err = run("plan", "small", *bits, "--save-recipe", "free.json", cwd=folder)
    assert code == 0 and " bits a weight, expected KL " in out and not load_recipe(folder / "free.json").calibrated
    code, out, err = run(
        "export", "small", *bits, "--calibration", known, "--out", "pkg", "--save-recipe", "mix.json", cwd=folder
    )
    assert code == 0, err
    assert " bits a weight, expected KL " in out and "pkg: " in out
    plan = open_package(folder / "pkg").manifest.plan
    assert plan.recipe == load_recipe(folder / "mix.json") and plan.recipe.calibrated
    assert plan.recipe.folds == load_recipe("int4-calibrated").folds != ()
    assert bits_per_weight(plan.tensors, plan.spec) <= 6.5
    assert "a sensitivity for backend onnx: expected litert" in refused(
        "plan", "small", "--to", "litert", *bits, cwd=folder
    )
    few = ("--text", "text.txt", "--tokens", "20", "--sequence", "24")
    said = refused("calibrate", "small", "--calibration", known, "--sensitivity", "c.json", *few, cwd=folder)
    assert "tokens is 20: expected at least 24" in said
    said = refused("calibrate", "small", "--calibration", known, "--sensitivity", "costs.json", *MEASURE, cwd=folder)
    assert "output costs.json exists: choose another, or pass --overwrite" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "demo", "--bits", "4.3"], "pass --sensitivity FILE; measure with `edgepack calibrate"),
        (["plan", "demo", "--bits", "4.3", "--sensitivity", "none.json"], "sensitivity none.json cannot be read"),
        (["plan", "demo", "--head-bits", "8"], "--head-bits goes with --bits"),
        (["plan", "demo", "--save-recipe", "r.json"], "--save-recipe goes with --bits"),
        (["plan", "demo", "--bits", "4", "--recipe", "int8"], "pass either --bits or --recipe"),
        (["export", "demo", "--bits", "4", "--recipe", "int8", "--out", "x"], "pass either --bits or --recipe"),
        (["export", "demo", "--bits", "4", "--plan", "p.json", "--out", "x"], "pass either --plan or these options"),
        (["calibrate", "demo"], "pass --out FILE to collect statistics, or --calibration FILE --sensitivity FILE"),
        (["calibrate", "demo", "--out", "a", "--sensitivity", "b"], "pass --out FILE to collect statistics, or"),
        (["calibrate", "demo", "--sensitivity", "b"], "--sensitivity and --calibration go together"),
        (["calibrate", "demo", "--out", "a", "--calibration", "c"], "--sensitivity and --calibration go together"),
        (["calibrate", "demo", "--sensitivity", "b", "--calibration", "none"], "none"),
        (["calibrate", "demo", "--sensitivity", "no/b", "--calibration", "none"], "none"),
    ],
)
def test_what_is_refused(arguments: list[str], said: str, tmp_path: Path) -> None:
    assert said in refused(*arguments, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(small: Path) -> None:
    folder, known = small.parent, calibrated(small).path.name
    before = sorted(folder.iterdir())
    process = command(
        "calibrate", "small", "--calibration", known, "--sensitivity", "costs.json", "--text", "text.txt", cwd=folder
    )
    while process.poll() is None and sorted(folder.iterdir()) == before:
        pass
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted: costs.json was not written" in err, err
    assert sorted(folder.iterdir()) == before


def test_one_document_for_programs(small: Path) -> None:
    folder, known = small.parent, calibrated(small).path.name
    code, out, _ = run(
        "calibrate", "small", "--calibration", known, "--sensitivity", "c.json", *MEASURE, "--json", cwd=folder
    )
    assert code == 0 and json.loads(out) == json.loads((folder / "c.json").read_text("utf-8"))
