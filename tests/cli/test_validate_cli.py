"""`edgepack validate` as a build step: edgepack.toml, exit codes, the reason on the first line, reports."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest

import edgepack
from edgepack.cli.validating import validate as verb
from edgepack.errors import EdgepackError
from edgepack.report.write import require_writable
from edgepack.validation.verdict.baseline import append_history
from tests.support.paths import ROOT
from tests.support.report_sample import failing
from tests.support.tiny import save

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


# The console script puts the folder of the script on the path, never the one that the user is in.
COMMAND = [sys.executable, "-P", "-m", "edgepack.cli.main", "validate"]


PATH_OPTIONS = ("--config", "--reference", "--text", "--golden", "--baseline", "--history", "--report")


def environment_of(repo: Path) -> dict[str, str]:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "converters", ROOT / "runtimes")))
    return {**os.environ, "PYTHONPATH": paths, "EDGEPACK_CACHE": str(repo / "cache")}


def default_hangup() -> None:
    """The tests may run below nohup, which the command would obey."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def run(repo: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    called: dict[str, Any] = {"cwd": repo, "env": environment_of(repo), "capture_output": True, "text": True}
    return subprocess.run([*COMMAND, *arguments], check=False, timeout=120, **called)


def test_without_arguments_it_obeys_the_file(repo: Path) -> None:
    done = run(repo, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["target"]["limit_bytes"], report["prompt_tokens"], report["repetitions"]) == (10**9, [16], 1)
    assert (report["config"], report["config_text"]) == ("edgepack.toml", CONFIG)
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
        (
            ("--golden", "missing.jsonl"),
            "--golden 'missing.jsonl' is no file: expected golden prompts (JSON lines)",
        ),
        (("--text", "/tmp", "--reference", "checkpoint"), "--text '/tmp' is no file: expected a text file"),
        (
            ("--max-regression", "3%"),
            "--max-regression is for the comparison with a baseline, and none was given: add --baseline FILE or ba",
        ),
        (
            ("--force",),
            "--force is for the comparison with a baseline, and none was given: add --baseline FILE or base",
        ),
        (("--repeat", "9" * 20), "Invalid value for '--repeat': Input should be less than or equal to 1000"),
        (("",), "PACKAGE is empty: name a file or folder, or leave it out"),
        *(((option, ""), f"{option} is empty: name a file or folder, or leave it out") for option in PATH_OPTIONS),
        (("nowhere",), "nowhere is not a package"),
        (("--timeout", "1e10", "--golden", "missing.jsonl"), "--timeout is 1e+10: expected more than 0 seconds and at"),
        (("--report", "edgepack.toml/x"), "reports cannot be written to edgepack.toml/x: Not a directory; choose"),
        (("--report", "/proc/nope"), "reports cannot be written to /proc/nope: "),
        (("--history", "package"), "history package cannot be written: Is a directory; choose another file"),
        (
            ("--history", "edgepack.toml/x/h"),
            "history cannot be written to edgepack.toml/x: Not a directory",
        ),
    ],
)
def test_unusable_input_is_exit_code_2_and_one_line(repo: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(repo, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('golden = "nope"', "config edgepack.toml: validate.golden 'nope' is no file: expected golden prompts"),
        ('text = "nope"', "config edgepack.toml: validate.text 'nope' is no file: expected a text file"),
        ('reference = "nope"', "config edgepack.toml: validate.reference: nope: no such folder"),
        ('baseline = "nope"', "config edgepack.toml: validate.baseline nope cannot be read: No such file"),
        ('runtime = "nope"', "config edgepack.toml: validate.runtime 'nope' is not known: expected one of onnx"),
        ('report = "edgepack.toml/x"', "config edgepack.toml: validate.report: reports cannot be written to"),
        ('history = "edgepack.toml/x/y"', "config edgepack.toml: validate.history: the history cannot be written to"),
        ('max_regression = "some"', "config edgepack.toml: validate.max_regression 'some' is not understood"),
        (
            'prompt_tokens = [9]\n[thresholds]\n"ttft_ms@7" = 1',
            "config edgepack.toml: thresholds.ttft_ms@7: ttft_ms@7 <= 1.00 ms needs a prompt of 7 tokens",
        ),
        ('max_regression = "5%"', "edgepack.toml: validate.max_regression is for the comparison with a baseline"),
    ],
)
def test_a_setting_of_the_file_is_named(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("edgepack.toml").write_text(f"[validate]\n{setting}\n")
    with pytest.raises(EdgepackError) as caught:
        verb.command(repo / "package")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('[validate]\npackage = "nope"', "config edgepack.toml: validate.package: nope is not a package"),
        ('[export]\nout = "nope"', "config edgepack.toml: export.out: nope is not a package"),
    ],
)
def test_a_package_of_the_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("edgepack.toml").write_text(setting)
    with pytest.raises(EdgepackError, match=message):
        verb.command()


def test_the_command_line_is_named_where_both_give_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("edgepack.toml").write_text('[validate]\nmax_regression = "5%"\nbaseline = "x"\n[thresholds]\nkl_p99 = 1\n')
    with pytest.raises(EdgepackError, match=r"^--max-regression 'a lot' is not understood"):
        verb.command(tmp_path, max_regression="a lot")
    with pytest.raises(EdgepackError, match=r"^--baseline y cannot be read"):
        verb.command(tmp_path, baseline=Path("y"))


def test_a_terminal_sees_how_far_it_is_and_a_file_does_not(repo: Path) -> None:
    outside, inside = pty.openpty()
    options = ["--golden", str(repo / "golden.jsonl"), "--repeat", "2"]
    (repo / "golden.jsonl").write_text('{"prompt": "Once", "max_new_tokens": 2, "must_not_contain": ["never"]}')
    called: dict[str, Any] = {"cwd": repo, "env": {**environment_of(repo), "TERM": "xterm", "COLUMNS": "100"}}
    seen = b""
    with subprocess.Popen([*COMMAND, *options], stdout=subprocess.DEVNULL, stderr=inside, **called) as process:
        os.close(inside)
        with suppress(OSError):  # the end of a terminal that nobody holds any more
            while piece := os.read(outside, 4096):
                seen += piece
    os.close(outside)
    assert process.returncode == 2, "the model of these tests has no tokenizer"
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode()).replace("\r", "\n")
    for told in ("1 of 7: verify", "2 of 7: first load", "4 of 7: run 1: decode", "6 of 7: run 2: load"):
        assert told in lines
    assert re.search(r"5 of 7: cold load 2 0:00:\d\d at least 0:00:\d\d left", lines)
    assert " of 7: " not in run(repo, *options).stderr


def test_a_history_that_breaks_off_gets_a_line_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text('{"verdict": true}')
    append_history(failing(), file)
    append_history(failing(), file)
    assert [json.loads(line)["verdict"] for line in file.read_text().splitlines()] == [True, False, False]


@pytest.mark.parametrize("signals", [["SIGINT"], ["SIGHUP"], ["SIGTERM"] * 40])
def test_whoever_stops_it_finds_nothing_left(repo: Path, signals: list[str]) -> None:
    called: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    called |= {"cwd": repo, "env": environment_of(repo), "preexec_fn": default_hangup}
    with subprocess.Popen([*COMMAND, "--repeat", "50"], **called) as process:
        started = psutil.Process(process.pid)
        deadline = monotonic() + 60
        while not (workers := started.children(recursive=True)):
            assert process.poll() is None and monotonic() < deadline
            sleep(0.05)
        sleep(0.5)
        for name in signals:
            process.send_signal(getattr(signal, name))
            sleep(0.002)  # some of many meet the cleaning up
        _, said = process.communicate(timeout=60)
        code = process.returncode
    assert said == "interrupted: nothing was judged and no report was written\n"
    assert code == 128 + getattr(signal, signals[0])
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []
    assert not list(Path("/sys/fs/cgroup").glob(f"**/edgepack.{process.pid}.*"))


def test_places_are_tried_without_a_trace(repo: Path, tmp_path: Path) -> None:
    assert run(repo, "nowhere", "--report", str(tmp_path / "a/b"), "--history", str(tmp_path / "c/h")).returncode == 2
    require_writable("reports", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("json_output", [False, True])
def test_the_verdict_outlives_a_report_that_cannot_be_written(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], json_output: bool
) -> None:
    def validated(*arguments: object, **options: object) -> object:
        (tmp_path / "report").write_text("in the way now")
        return failing()

    monkeypatch.setattr(verb, "validate", validated)
    with pytest.raises(EdgepackError, match="reports cannot be written"):
        verb.command(
            repo / "package",
            report=tmp_path / "report",
            history=tmp_path / "history.jsonl",
            json_output=json_output,
        )
    said = capsys.readouterr().out.splitlines()[0]
    assert json.loads(said)["verdict"] is False if json_output else said == failing().reasons[0]
    assert json.loads((tmp_path / "history.jsonl").read_text())["verdict"] is False


def test_modules_of_the_working_folder_take_no_part(repo: Path, tmp_path: Path) -> None:
    for name in ("random", "json", "numpy", "tempfile"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of the user ran')\n")
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "converters", ROOT / "runtimes")))
    # A cache of its own: the process that fills it is one of those that are started.
    environment = {**os.environ, "PYTHONPATH": paths, "EDGEPACK_CACHE": str(tmp_path / "cache")}
    options = ["--prompt-tokens", "8", "--new-tokens", "2", "--repeat", "1", "--threads", "1"]
    command = [sys.executable, "-P", "-m", "edgepack.cli.main", "validate", str(repo / "package"), *options]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "cache").iterdir()), "nothing was prepacked"
