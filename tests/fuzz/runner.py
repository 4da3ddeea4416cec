"""Make cases, run them in worker processes or each in a process of its own, and collect what went wrong."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.fuzz import checkpoints, commands, files, packages
from tests.fuzz.bases import Bases, discard
from tests.fuzz.case import Case, Result
from tests.fuzz.judge import faults
from tests.support.paths import ROOT

MAKERS: dict[str, Callable[[int, int, Path, Bases], Case]] = {
    "checkpoints": checkpoints.make,
    "packages": packages.make,
    "files": files.make,
    "commands": commands.make,
}
WORKER = (sys.executable, "-m", "tests.fuzz.worker")
TIMEOUT_S = 40.0
# Native libraries keep memory; and what one case leaves behind is not what another one meets.
CASES_OF_A_WORKER = 400
# Every so many cases one runs in a process of its own, to see what the shared one hides.
ALONE_EVERY = 100
# No process can be started with a longer argument (MAX_ARG_STRLEN of Linux, 4 bytes a character).
MOST_WORD = 30_000


@dataclass
class Outcome:
    """What came of all cases: how they ended, by kind, a text for each fault, and seconds by number."""

    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: dict[int, float] = field(default_factory=dict)

    @property
    def cases(self) -> int:
        return self.codes.total()


class Worker:
    """The process that runs command lines, started anew where it died."""

    def __init__(self, scratch: Path, command: Sequence[str] = WORKER) -> None:
        self._command = list(command)
        self._environment = _environment(scratch)
        self._process: subprocess.Popen[bytes] | None = None
        self._left = 0

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def run(self, arguments: Iterable[str], folder: Path) -> Result:
        """How ``edgepack ARGUMENTS`` ends there."""
        if self._process is None or not self._left:
            self.stop()
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdin=pipe, stdout=pipe, stderr=pipe
            )
            self._left = CASES_OF_A_WORKER
        self._left -= 1
        begin = time.monotonic()
        order = json.dumps({"arguments": list(arguments), "folder": str(folder)}) + "\n"
        self._process.stdin.write(order.encode())
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], TIMEOUT_S)
        line = self._process.stdout.readline() if ready else b""
        if line:
            answer = json.loads(line)
            texts = (answer[name].encode("latin-1") for name in ("output", "errors"))
            if answer["code"] not in (0, 1, 2):  # a fault may leave something behind that others fail of
                self.stop()
            return Result(answer["code"], *texts, answer["seconds"])
        if not ready:
            self._process.kill()
        _, errors = self._process.communicate()
        code = self._process.returncode if ready else None
        self._process = None
        return Result(code, b"", errors[-2000:], time.monotonic() - begin)


def run_alone(arguments: Iterable[str], folder: Path, scratch: Path) -> Result:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "edgepack.cli.main", *arguments]
    begin = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=folder, env=_environment(scratch), capture_output=True, check=False, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        return Result(None, error.stdout or b"", error.stderr or b"", TIMEOUT_S)
    return Result(done.returncode, done.stdout, done.stderr, time.monotonic() - begin)


def _environment(scratch: Path) -> dict[str, str]:
    """No network, caches of our own, and the tree that is tested."""
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "converters", "runtimes"))
    own = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch / "hub"), "EDGEPACK_CACHE": str(scratch / "cache")}
    return os.environ | own | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def run_cases(
    kind: str, seed: int, numbers: Iterable[int], bases: Bases, told: Callable[[str], None] = lambda line: None
) -> Outcome:
    """Run these cases of one kind; `told` gets a line for each fault as it is found."""
    outcome = Outcome()
    with Worker(bases.scratch) as worker:
        for number in numbers:
            folder = bases.scratch / f"{kind}-{number}"
            case = MAKERS[kind](seed, number, folder, bases)
            possible = not any("\x00" in word or len(word) >= MOST_WORD for word in case.arguments)
            alone = number % ALONE_EVERY == ALONE_EVERY - 1 and possible
            result = run_alone(case.arguments, folder, bases.scratch) if alone else worker.run(case.arguments, folder)
            outcome.codes[kind, _ending(result)] += 1
            outcome.seconds[number] = result.seconds
            if wrong := faults(case, result):
                outcome.faults.append(_told(case, wrong))
                told(outcome.faults[-1])
            discard(folder)
            if number % 50 == 0:
                discard(bases.scratch / "cache")
    return outcome


def _told(case: Case, wrong: list[str]) -> str:
    command = " ".join(["edgepack", *map(_short, case.arguments)])
    return "\n  ".join([case.told, command, "; ".join(wrong), case.again])


def _ending(result: Result) -> str:
    if result.code is None:
        return "no end"
    return f"exit {result.code}" if result.code >= 0 else f"signal {-result.code}"


def _short(word: str) -> str:
    text = ascii(word) if not word.isprintable() or " " in word or not word else word
    return text if len(text) <= 120 else f"{text[:100]}...({len(word)})"
