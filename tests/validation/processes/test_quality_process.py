"""The helper processes of quality and golden answers: every end of one is one line, and nothing gets in between."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgepack.errors import EdgepackError
from edgepack.system.child import import_folders
from edgepack.validation.processes import protocol
from edgepack.validation.processes.helper import run_helper
from edgepack.validation.processes.protocol import FailedRunError
from edgepack.validation.quality.texts import Piece
from tests.support.paths import ROOT

JOB = Piece(name="p", ids=(0, 1, 2))


def write_helper(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str, before: str = "") -> str:
    """A helper whose `run` has this body; its name is that of the module."""
    (folder / "stub_helper.py").write_text(
        f"{before}\n"
        "import json, os, sys, time\n"
        "from edgepack.errors import EdgepackError, PackageError\n"
        "from edgepack.validation.processes.protocol import child_main\n"
        f"def run(line, channel):\n    channel.begin('work')\n    {body}\n"
        "sys.exit(child_main(run))\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    return "stub_helper"


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (
            "os.kill(os.getpid(), 9)",
            r"it did not run: killed by signal 9 \(SIGKILL\), which is how .* in phase work",
            FailedRunError,
        ),
        (
            "sys.exit('first\\nlast words')",
            "it did not run: exited with code 1 in phase work: last words",
            FailedRunError,
        ),
        ("raise RuntimeError('two\\nlines')", "it did not run: RuntimeError: two lines", FailedRunError),
        ("raise EdgepackError('no such thing')", "^no such thing$", EdgepackError),
        ("raise PackageError('the step was refused')", "^the step was refused$", FailedRunError),
        ("os._exit(0)", "it did not run: it left in phase work without a word", FailedRunError),
        (
            "print('noise'); time.sleep(60)",
            "it did not run: no result within 3 s, stopped in phase work",
            FailedRunError,
        ),
    ],
)
def test_every_end_of_a_helper_is_one_line(
    code: str, message: str, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = write_helper(tmp_path, monkeypatch, code)
    with pytest.raises(EdgepackError, match=message) as caught:
        run_helper(helper, JOB, whose="it did not run", timeout_s=3.0, on_phase=lambda phase: None)
    assert caught.type is kind, "what a package does is a result, what cannot be asked is not"
    assert "\n" not in str(caught.value)


def test_a_helper_gets_its_job_and_reports_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = write_helper(tmp_path, monkeypatch, "print('noise'); channel.give(got=json.loads(line)['ids'])")
    answer = run_helper(helper, JOB, whose="x", timeout_s=30.0, on_phase=lambda phase: None)
    assert answer.results == [{"got": [0, 1, 2]}]
    assert answer.peak_rss_bytes is None or 5e6 < answer.peak_rss_bytes < 500e6


def test_what_is_printed_before_the_first_line_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = "import os; os.write(1, b'a library says hello\\n[1, 2]\\n\\xff\\n' + b'[' * 100_000 + b'\\n')"
    helper = write_helper(tmp_path, monkeypatch, "channel.give(got=1)", before=noise)
    assert run_helper(helper, JOB, whose="x", timeout_s=30.0, on_phase=lambda phase: None).results == [{"got": 1}]


def test_a_line_without_end_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MOST_LINE_BYTES", 1000)
    noise = "import os; os.write(1, b'x' * 300_000 + b'\\n')"
    helper = write_helper(tmp_path, monkeypatch, "channel.give(got=1); channel.give(long='x' * 200_000)", before=noise)
    assert run_helper(helper, JOB, whose="x", timeout_s=30.0, on_phase=lambda phase: None).results == [{"got": 1}]


def test_modules_of_the_working_folder_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, users = tmp_path / "own", tmp_path / "users"
    own.mkdir()
    users.mkdir()
    for name in ("random", "json", "tempfile"):
        (users / f"{name}.py").write_text("raise SystemExit('a module of the user ran')\n")
    helper = write_helper(own, monkeypatch, "channel.give(got=1)")
    monkeypatch.chdir(users)
    monkeypatch.syspath_prepend(str(users))  # as `python -m edgepack.cli.main` does
    monkeypatch.syspath_prepend("")
    assert str(users) in sys.path and str(users) not in import_folders() and "" not in import_folders()
    assert run_helper(helper, JOB, whose="x", timeout_s=30.0, on_phase=lambda phase: None).results == [{"got": 1}]


def test_the_working_folder_is_searched_where_edgepack_lies_there(monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = ROOT
    monkeypatch.chdir(checkout)
    monkeypatch.syspath_prepend(str(checkout))
    assert str(checkout) in import_folders()
