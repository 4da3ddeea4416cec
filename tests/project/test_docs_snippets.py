"""The pages about build steps: blocks parse and name what exists, and their commands run on the demo checkpoint."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from edgepack.package.folder import open_package
from tests.support.paths import DEMO
from tests.support.scratch import ROOT, clean_environment

PAGES = ("github-action.md", "ci-gitlab.md", "android-assets.md", "optimum.md")


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def gitlab_job() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(blocks("ci-gitlab.md", "yaml")[0])
    job: dict[str, Any] = document["edgepack"]
    return job


def gitlab_lines() -> list[str]:
    return [line for line in gitlab_job()["script"] if line.startswith("edgepack ")]


def gradle_lines() -> list[str]:
    calls = re.findall(r"commandLine\((.*?)\)", blocks("android-assets.md", "kotlin")[0])
    return [shlex.join(re.findall(r'"(.*?)"', call)) for call in calls]


def test_yaml_and_toml_blocks_parse() -> None:
    for page in PAGES:
        assert all(yaml.safe_load(block) for block in blocks(page, "yaml"))
        assert all(tomllib.loads(block) for block in blocks(page, "toml"))


def test_the_workflow_uses_inputs_and_outputs_of_the_action() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    block = blocks("github-action.md", "yaml")[0]
    steps = yaml.safe_load(block)["jobs"]["fits"]["steps"]
    used = next(step for step in steps if "edgepack" in step.get("uses", ""))
    assert used["with"].keys() <= action["inputs"].keys()
    assert set(re.findall(r"outputs\.([\w-]+)", block)) <= action["outputs"].keys()


def test_the_page_of_the_action_lists_every_input_and_output() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    text = (ROOT / "docs/github-action.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`([\w-]+)`", " ".join(rows))) == action["inputs"].keys() | action["outputs"].keys()


def run(lines: list[str], page: str, folder: Path) -> None:
    """Run shell lines in `folder` with the page's edgepack.toml, whose checkpoint is the demo."""
    config = blocks(page, "toml")[0]
    named = re.sub(r'^checkpoint = ".*"$', f'checkpoint = "{DEMO}"\ncontext = 256', config, flags=re.MULTILINE)
    assert named != config
    quick = "\n[validate]\nrepeat = 1\nnew_tokens = 4\nprompt_tokens = [16]\nthreads = 1\n"
    (folder / "edgepack.toml").write_text(named + quick)
    paths = ":".join(str(ROOT / part) for part in (".", "converters", "runtimes"))
    script = f'edgepack() {{ "{sys.executable}" -m edgepack.cli.main "$@"; }}\n' + "\n".join(lines)
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=folder,
        env=clean_environment() | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr + done.stdout


def test_gitlab_lines_leave_the_artifacts_that_the_job_keeps(tmp_path: Path) -> None:
    lines, artifacts = gitlab_lines(), gitlab_job()["artifacts"]
    assert [line.split()[1] for line in lines] == ["export", "validate"]
    run(lines, "ci-gitlab.md", tmp_path)
    assert all((tmp_path / path).is_dir() for path in artifacts["paths"])
    root = ElementTree.parse(tmp_path / artifacts["reports"]["junit"]).getroot()
    assert root.tag in ("testsuites", "testsuite") and list(root.iter("testcase"))


def test_gradle_commands_leave_the_file_that_is_split(tmp_path: Path) -> None:
    lines, split = gradle_lines(), blocks("android-assets.md", "sh")[1].strip()
    assert [line.split()[1] for line in lines] == ["export", "validate"] and "1400M" in split
    assert 1400 * 2**20 < 1.5e9
    run([*lines, split.replace("1400M", "2M"), "cat model.litertlm.part? > whole"], "android-assets.md", tmp_path)
    model = tmp_path / "edgepack-package/litert/model.litertlm"
    assert sorted(file.name for file in tmp_path.glob("*.part*")) == ["model.litertlm.part1", "model.litertlm.part2"]
    assert (tmp_path / "whole").read_bytes() == model.read_bytes()
    assert str(model.relative_to(tmp_path)) in blocks("android-assets.md", "sh")[0]
    outputs = re.findall(r'outputs\.dir\(modelFolder\.resolve\("(.*?)"\)\)', blocks("android-assets.md", "kotlin")[0])
    assert len(outputs) == 2 and all((tmp_path / name).is_dir() for name in outputs)
    assert open_package(tmp_path / outputs[0]).file("decoder") == model
