"""`action.yml`: its declarations, and its steps run here on the demo checkpoint as a runner would run them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgepack.package.folder import open_package
from tests.support.composite import EXPRESSION, Job, run_action
from tests.support.paths import DEMO
from tests.support.scratch import PIP_OFFLINE, ROOT, clean_environment, copy_source, make_environment
from tools.ci import action as script

ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]
TEXT = (ROOT / "action.yml").read_text(encoding="utf-8")
SETUP, INSTALL, EXPORT, VALIDATE, REPORT, PACKAGE = (step["name"] for step in STEPS)
QUICK = {"context": "256", "prompt-tokens": "16", "new-tokens": "4", "repeat": "1", "threads": "1"}
Run = Callable[..., Job]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run the action in a workspace with given inputs. Its first run installs it; later ones skip that."""
    base = tmp_path_factory.mktemp("action")
    path, temp = copy_source(base / "source"), base / "temp"
    make_environment(temp / "edgepack")
    environment = clean_environment() | PIP_OFFLINE | {"EDGEPACK_CACHE": str(base / "cache")}
    installed: list[str] = []

    def run(folder: Path, **inputs: str) -> Job:
        named = {name.replace("_", "-"): value for name, value in inputs.items()}
        job = run_action(ACTION, folder, inputs=named, temp=temp, path=path, env=environment, skip=(SETUP, *installed))
        installed[:] = [INSTALL]
        return job

    return run


@pytest.fixture(scope="module")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Path]:
    folder = tmp_path_factory.mktemp("workspace with a space")
    quick = {name.replace("-", "_"): value for name, value in QUICK.items()}
    job = run(
        folder, checkpoint=str(DEMO), target="300MB", thresholds="\npeak_rss_bytes <= 300MB\n", upload_package="true",
        **quick,
    )  # fmt: skip
    return job, folder


def test_inputs_are_declared_and_used() -> None:
    used = set(re.findall(r"inputs\.([\w-]+)", TEXT))
    assert used == ACTION["inputs"].keys()
    assert all(about["description"] for about in (*ACTION["inputs"].values(), *ACTION["outputs"].values()))


def test_no_expression_is_in_a_script() -> None:
    for step in STEPS:
        assert not EXPRESSION.search(step.get("run", "")), step["name"]
        assert ("run" in step) == (step.get("shell") == "bash")


def test_every_variable_of_a_step_is_read_and_the_other_way_round() -> None:
    passed = {step["id"]: step["env"].keys() for step in STEPS if "id" in step}
    for verb, options, more in (
        ("export", script.EXPORT_OPTIONS, ("checkpoint", "token")),
        ("validate", script.VALIDATE_OPTIONS, ("package", "token", "thresholds", "report-dir")),
    ):
        read = {"EDGEPACK_" + name.upper().replace("-", "_") for name in (*options, *more)}
        assert passed[verb] - {"ACTION_PATH"} == read


def test_the_script_passes_options_that_edgepack_has() -> None:
    from typer.main import get_command

    from edgepack.cli.main import app

    verbs = get_command(app).commands  # type: ignore[attr-defined]
    for verb, options in (("export", script.EXPORT_OPTIONS), ("validate", script.VALIDATE_OPTIONS)):
        known = {name for option in verbs[verb].params for name in option.opts}
        assert {f"--{name}" for name in options} <= known


def test_other_actions_are_pinned_to_a_major_version() -> None:
    uses = [step["uses"] for step in STEPS if "uses" in step]
    assert uses and all(re.fullmatch(r"actions/[\w-]+@v\d+", name) for name in uses)


def test_export_and_validate_say_yes(exported: tuple[Job, Path]) -> None:
    job, folder = exported
    assert job.exit_code == 0, job.log
    assert job.ran == [INSTALL, EXPORT, VALIDATE, REPORT, PACKAGE]
    assert job.outputs["verdict"] == "yes"
    assert open_package(job.outputs["package"]).manifest.plan.context_tokens == 256
    assert Path(job.outputs["package"]) == folder / "edgepack-package"
    assert 10_000_000 < int(job.outputs["peak-rss-bytes"]) < 300_000_000
    assert int(job.outputs["export-peak-rss-bytes"]) > 10_000_000
    assert float(job.outputs["decode-tokens-per-s"]) > 0
    report = Path(job.outputs["report"])
    assert sorted(file.name for file in report.iterdir()) == sorted(script.REPORT_FILES)
    assert job.summary == (report / "report.md").read_text(encoding="utf-8")
    assert job.used[REPORT]["path"] == str(report)
    assert job.used[PACKAGE] == {
        "name": "edgepack-report-package",
        "path": job.outputs["package"],
        "compression-level": "0",
        "retention-days": "0",
    }


def test_a_package_that_misses_is_answer_1_with_a_summary(run: Run, exported: tuple[Job, Path], tmp_path: Path) -> None:
    job = run(
        tmp_path, package=exported[0].outputs["package"], target="20MB", report_dir="out/report", prompt_tokens="16",
        new_tokens="4", repeat="1", threads="1", upload_package="true",
    )  # fmt: skip
    assert job.exit_code == 1, job.log
    assert job.ran == [VALIDATE, REPORT], "the report goes up, the package does not"
    assert job.outputs["verdict"] == "no"
    assert Path(job.outputs["report"]) == tmp_path / "out/report"
    assert job.summary and job.summary == (tmp_path / "out/report/report.md").read_text(encoding="utf-8")
    assert "::error title=edgepack::" in job.log


def test_a_plan_that_misses_is_answer_1_with_a_summary(run: Run, tmp_path: Path) -> None:
    job = run(tmp_path, checkpoint=str(DEMO), target="1MB")
    assert job.exit_code == 1, job.log
    assert EXPORT in job.ran and VALIDATE not in job.ran and REPORT not in job.ran
    assert job.outputs["verdict"] == "no"
    assert re.search(r"needs [\d,]+ bytes, the target 1MB has 1,000,000", job.summary)
    assert not (tmp_path / "edgepack-package").exists()


@pytest.mark.parametrize("value", ['"; touch hacked; "', "$(touch hacked)", "a\nverdict<<x\nyes\nx"])
def test_unusable_input_is_code_2_with_the_reason_and_no_code(run: Run, tmp_path: Path, value: str) -> None:
    job = run(tmp_path, checkpoint=value)
    assert job.exit_code == 2, job.log
    assert job.outputs["verdict"] == ""
    assert "export stopped" in job.summary and "checkpoint folder" in job.summary
    assert "::error title=edgepack::" in job.log
    assert [file.name for file in tmp_path.iterdir()] == []


def test_edgepack_toml_is_obeyed_without_inputs(run: Run, tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "model/ck")
    config = 'target = "1MB"\n[export]\ncheckpoint = "ck"\nout = "built"\nto = "litert"\n'
    (tmp_path / "model/edgepack.toml").write_text(config)
    job = run(tmp_path, working_directory="model")
    assert job.exit_code == 1 and "the target 1MB" in job.summary, job.log


def test_the_token_is_in_the_environment_and_in_no_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fake = tmp_path / "edgepack"
    fake.write_text('#!/bin/sh\necho "token $HF_TOKEN, inherited ${EDGEPACK_TOKEN-none}" >&2\nexit 3\n')
    fake.chmod(0o755)
    monkeypatch.setattr(script.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("EDGEPACK_TOKEN", "hf_secret")
    monkeypatch.setenv("EDGEPACK_CHECKPOINT", "org/name")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    assert script.export() == 3
    out, err = capfd.readouterr()
    assert "token hf_secret, inherited none" in err and "hf_secret" not in out
    assert "exit code 3" in (tmp_path / "summary").read_text()


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a shell script in the place of `edgepack`; returns the file of the step summary."""

    def pretend(body: str) -> Path:
        fake = tmp_path / "edgepack"
        fake.write_text(f"#!/bin/sh\n{body}\n")
        fake.chmod(0o755)
        monkeypatch.setattr(script.sys, "executable", str(tmp_path / "python"))
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
        monkeypatch.chdir(tmp_path)
        return tmp_path / "summary"

    return pretend


@pytest.mark.parametrize("verb", ["export", "validate"])
@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        ("echo Traceback >&2; exit 1", 1, "exit code 1, see the log"),
        ("exit 0", 2, "exit code 0, see the log"),
        ("echo '[1'; exit 1", 1, "exit code 1, see the log"),
        ("echo 'error: a mistake of edgepack itself' >&2; exit 70", 70, "a mistake of edgepack itself"),
        ("kill -9 $$", 137, "exit code 137, see the log"),
    ],
)
def test_no_answer_is_told_whatever_the_code(
    pretend: Callable[[str], Path], capfd: pytest.CaptureFixture[str], verb: str, body: str, code: int, reason: str
) -> None:
    summary = pretend(body)
    assert {"export": script.export, "validate": script.validate}[verb]() == code
    assert f"::error title=edgepack::{reason}" in capfd.readouterr().out
    assert f"{verb} stopped" in summary.read_text() and reason in summary.read_text()


def test_half_a_report_is_no_answer(pretend: Callable[[str], Path]) -> None:
    summary = pretend("mkdir -p edgepack-report; echo '{\"verdict' > edgepack-report/report.json; exit 1")
    assert script.validate() == 1
    assert "validate stopped" in summary.read_text()


def test_the_folder_of_the_report(pretend: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend("exit 2")
    here = Path.cwd()
    assert script.report_folder() == here / "edgepack-report"
    (here / "ci").mkdir()
    (here / "ci/own.toml").write_text('[validate]\nreport = "of-the-config"\n')
    (here / "edgepack.toml").write_text('[validate]\nreport = "of-the-file"\n')
    assert script.report_folder() == here / "of-the-file"
    monkeypatch.setenv("EDGEPACK_CONFIG", "ci/own.toml")
    assert script.report_folder() == here / "ci/of-the-config"
    monkeypatch.setenv("EDGEPACK_REPORT_DIR", "of-the-input")
    assert script.report_folder() == here / "of-the-input"
    monkeypatch.delenv("EDGEPACK_REPORT_DIR")
    monkeypatch.setenv("EDGEPACK_CONFIG", "missing.toml")
    assert script.report_folder() == here / "edgepack-report", "edgepack says what is wrong with the file"
    assert ACTION["inputs"]["report-dir"].get("default") is None


def test_a_summary_is_cut_before_github_drops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    script.summarize("é" * script.SUMMARY_BYTES)
    text = (tmp_path / "summary").read_text()
    assert len(text.encode()) < 1024 * 1024 and text.endswith("(cut: the whole report is in the artifact)\n")
