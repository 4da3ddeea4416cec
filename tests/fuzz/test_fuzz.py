"""A few hundred mutated inputs, always the same; `benchmarks/fuzz.py` runs thousands. And the judge is judged."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fuzz.bases import Bases, discard, make_bases
from tests.fuzz.case import Case, Result
from tests.fuzz.judge import faults
from tests.fuzz.runner import MAKERS, Worker, run_cases

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="devices, pipes and limits of a process")
COUNTS = {"checkpoints": 130, "packages": 50, "files": 90, "commands": 90}
SEED = 11


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return make_bases(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", COUNTS)
def test_mutated_inputs_end_in_an_answer_or_in_one_line(kind: str, bases: Bases) -> None:
    outcome = run_cases(kind, SEED, range(COUNTS[kind]), bases)
    assert not outcome.faults, "\n\n".join(outcome.faults)
    endings = {ending: count for (_, ending), count in outcome.codes.items()}
    assert outcome.cases == COUNTS[kind]
    # Inputs that all work, or are all refused at the first look, would try nothing.
    assert min(endings["exit 0"], endings["exit 2"]) >= COUNTS[kind] // 20, endings


# Faults of longer runs: a side file whose name no package takes, and libraries that said more than our one line.
FOUND = [
    ("checkpoints", 11, 125),
    ("packages", 3, 415),
    ("packages", 4, 306),
    ("files", 5, 273),
    ("packages", 6, 488),
    ("commands", 6, 1044),
]


@pytest.mark.parametrize(("kind", "seed", "number"), FOUND)
def test_inputs_that_were_answered_otherwise_once(kind: str, seed: int, number: int, bases: Bases) -> None:
    outcome = run_cases(kind, seed, [number], bases)
    assert not outcome.faults, "\n\n".join(outcome.faults)


@pytest.mark.parametrize("kind", COUNTS)
def test_a_seed_and_a_number_make_the_same_case_again(kind: str, bases: Bases) -> None:
    folder = bases.scratch / "again"
    cases = []
    for seed in (1, 1, 2):
        cases.append([MAKERS[kind](seed, 7, folder, bases), _content(folder)])
        discard(folder)
    assert cases[0] == cases[1] != cases[2]


def _content(folder: Path) -> dict[str, bytes | None]:
    found = sorted(path for path in folder.rglob("*") if not path.is_dir())
    small = [path for path in found if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 24]
    return {str(path): path.read_bytes() if path in small else None for path in found}


EXPORT = Case("files", 0, 0, "", ("export", "ckpt", "--json"))
REFUSED = Result(2, b"", b"note: so\nerror: ckpt: no config.json\n", 0.1)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"code": 70}, "exit code 70"),
        ({"code": -11}, "ended by signal 11"),
        ({"code": None}, "no end"),
        ({"code": 0, "output": b'{"a": 1}\n', "errors": b"error: x\n"}, "exit code 0 with an error"),
        ({"errors": b"Traceback (most recent call last):\n  File\nerror: x\n"}, "traceback"),
        ({"errors": b"error: one\nerror: two\n"}, "2 lines of error"),
        ({"errors": b"error: one\nnote: two\n"}, "1 lines of error"),
        ({"errors": b"[ERROR] native\nerror: one\n"}, "other lines on stderr"),
        ({"errors": b""}, "0 lines of error"),
        ({"errors": b"error: \x1b[31mred\n"}, "control characters"),
        ({"errors": "error: \u202eturned\n".encode()}, "control characters"),
        ({"errors": b"error: " + b"x" * 2_500 + b"\n"}, "a message of 2507 characters"),
        ({"output": b"banner\n{}\n"}, "not one JSON document"),
        ({"output": b'{"a": NaN}\n'}, "not one JSON document"),
        ({"code": 0, "errors": b""}, "no document"),
    ],
)
def test_the_judge_sees(changes: dict[str, object], fault: str | None) -> None:
    found = faults(EXPORT, replace(REFUSED, **changes))  # type: ignore[arg-type]
    assert found == [] if fault is None else any(fault in line for line in found), found


def test_the_judge_sees_half_a_package_and_what_was_left_behind(bases: Bases, tmp_path: Path) -> None:
    case = replace(EXPORT, out=tmp_path / "out")
    done = Result(0, b"{}", b"", 0.1)
    assert faults(case, REFUSED) == []
    assert faults(case, done) == ["exit code 0 and no folder"]
    (tmp_path / "out.partial-123").mkdir()
    assert faults(case, REFUSED) == ["left behind: ['out.partial-123']"]
    (tmp_path / "out.partial-123").rename(tmp_path / "out")
    assert any("half a folder" in line for line in faults(case, done))
    whole = replace(EXPORT, out=bases.packages["onnx int4"])
    assert faults(whole, done) == []
    assert faults(whole, REFUSED) == ["exit code 2 and a folder"]


def test_a_worker_that_crashes_is_told_from_its_case_and_followed_by_another(tmp_path: Path) -> None:
    crash = "import os, sys; sys.stdin.readline(); os.kill(os.getpid(), 11)"
    with Worker(tmp_path, [sys.executable, "-S", "-c", crash]) as worker:
        assert [worker.run(["plan"], tmp_path).code for _ in range(2)] == [-11, -11]


def test_a_worker_runs_one_command_after_the_other(tmp_path: Path) -> None:
    with Worker(tmp_path) as worker:
        results = [worker.run(words, tmp_path) for words in (["plan", "nowhere"], ["--help"], ["plan", "nowhere"])]
    assert [result.code for result in results] == [2, 0, 2]
    assert results[0].errors == results[2].errors
    assert results[0].errors.startswith(b"error: nowhere: no such folder")
    assert b"Usage:" in results[1].output and b"Usage:" not in results[2].output
