"""`edgepack validate` as a build step: edgepack.toml, exit codes, the reason on the first line, reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import edgepack
from tests.tiny import save

ROOT = Path(__file__).parent.parent
CONFIG = """
target = "1GB"
[export]
out = "package"
[validate]
prompt_tokens = [16]
new_tokens = 4
repeat = 1
threads = 1
report = "report"
history = "history.jsonl"
"""


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repo")
    save("shared", root / "checkpoint")
    edgepack.export(root / "checkpoint", to="onnx", out=root / "package", recipe="int8", context=64)
    (root / "edgepack.toml").write_text(CONFIG)
    return root


def run(repo: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "converters", ROOT / "runtimes")))
    environment = {**os.environ, "PYTHONPATH": paths, "EDGEPACK_CACHE": str(repo / "cache")}
    command = [sys.executable, "-m", "edgepack.cli.main", "validate", *arguments]
    return subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_without_arguments_it_obeys_the_file(repo: Path) -> None:
    done = run(repo, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["target"]["limit_bytes"], report["prompt_tokens"], report["repetitions"]) == (10**9, [16], 1)
    assert report["config"] == "edgepack.toml"
    names = {file.name for file in (repo / "report").iterdir()}
    assert names == {"report.json", "report.md", "report.junit.xml", "report.html"}
    assert json.loads((repo / "report/report.json").read_text()) == report
    assert json.loads((repo / "history.jsonl").read_text().splitlines()[-1])["verdict"] is True


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--target", "5MB", "--no-limit"), "is over the target 5MB (5,000,000 bytes) by "),
        (("--threshold", "peak_rss_bytes <= 1MB"), "peak RSS (peak_rss_bytes) "),
        (("--threshold", "decode_tokens_per_s >= 1e9"), "decode (decode_tokens_per_s) "),
    ],
)
def test_a_no_is_exit_code_1_and_its_reason_the_first_line(repo: Path, arguments: tuple[str, ...], reason: str) -> None:
    done = run(repo, *arguments)
    assert done.returncode == 1
    assert reason in done.stdout.splitlines()[0]
    suite = next(ElementTree.parse(repo / "report/report.junit.xml").iter("testsuite"))
    assert int(suite.attrib["failures"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--threshold", "speed >= 1"), "'speed' is no metric: expected one of package_bytes, peak_rss_bytes"),
        (("--baseline", "missing.json"), "missing.json cannot be read"),
        (("--config", "missing.toml"), "missing.toml cannot be read"),
        (("--golden", "missing.jsonl"), "missing.jsonl"),
        (("nowhere",), "nowhere is not a package"),
    ],
)
def test_unusable_input_is_exit_code_2_and_one_line(repo: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(repo, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
