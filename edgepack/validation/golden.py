"""Golden answers: prompts of known answers, so that a quantized fine-tune is held to its behaviour, not only to its KL.

The answers are made and judged in a process of their own: a crash, a hang and a regular expression that never ends all
stop there.
"""

from __future__ import annotations

from pathlib import Path

from edgepack.errors import EdgepackError
from edgepack.package import open_package
from edgepack.validation.golden_file import GoldenJob, read_goldens
from edgepack.validation.quality_process import OnPhase, ask
from edgepack.validation.result import GoldenAnswer, GoldenReport

DEFAULT_TIMEOUT_S = 3600.0
WORKER = "edgepack.validation.golden_worker"


def run_golden(
    package: str | Path,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    file: str | Path,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    on_phase: OnPhase = lambda phase: None,
) -> GoldenReport:
    """Answer the prompts of `file` greedily, and judge each answer.

    Args:
        runtime: as in `edgepack.load`.
        file: JSON lines, see docs/quality.md.
        timeout_s: limit for all prompts together.
        on_phase: called with ``golden load``, then ``golden 1/3`` and so on.

    Raises:
        EdgepackError: a broken file, a package that cannot answer it (no tokenizer, no chat template for messages, a
            prompt that is too long), or a process that did not come to its end.
    """
    if not timeout_s > 0:
        raise EdgepackError(f"timeout_s is {timeout_s:g}: expected more than 0 seconds")
    opened = open_package(package)
    goldens = read_goldens(Path(file))
    job = GoldenJob(package=str(opened.path.resolve()), runtime=runtime, threads=threads, goldens=goldens)
    whose = f"the golden prompts of {file} were not all answered"
    said = ask(WORKER, job, whose=whose, timeout_s=timeout_s, on_phase=on_phase)
    answers = tuple(GoldenAnswer.model_validate(message) for message in said.messages)
    return GoldenReport(file=str(file), pass_rate=sum(a.passed for a in answers) / len(answers), answers=answers)
