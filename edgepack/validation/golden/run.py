"""Golden answers: prompts of known answers, so that a quantized fine-tune is held to its behaviour, not only to its KL.

The answers are made and judged in a process of their own: a crash, a hang and a regular expression that never ends all
stop there.
"""

from __future__ import annotations

from edgepack.package.folder import Package
from edgepack.validation.golden.file import GoldenJob, read_goldens
from edgepack.validation.identity import file_sha256
from edgepack.validation.processes.helper import run_helper
from edgepack.validation.processes.protocol import FailedRunError, OnPhase
from edgepack.validation.quality.compare import require_tokenizer
from edgepack.validation.result import GoldenAnswer, GoldenReport
from edgepack.validation.settings import QualityRequest

WORKER = "edgepack.validation.golden.worker"


def run_golden(package: Package, asked: QualityRequest, *, on_phase: OnPhase = lambda phase: None) -> GoldenReport:
    """Answer the prompts of the golden file greedily, and judge each answer; docs/quality.md tells of the file.

    The time limit is for all prompts together.

    Args:
        on_phase: called with ``golden load``, then ``golden 1/3`` and so on.

    Raises:
        FailedRunError: the package died, hung or did not answer all of it, which is a result of its own.
        EdgepackError: a broken file, or a package that cannot answer it (no tokenizer, no chat template for messages,
            a prompt that is too long).
    """
    assert asked.golden is not None  # nothing is asked without one
    require_tokenizer(package)
    file, goldens = asked.golden, read_goldens(asked.golden)
    folder = str(package.path.resolve())
    job = GoldenJob(package=folder, runtime=asked.runtime, threads=asked.used_threads, goldens=goldens)
    whose = f"the golden prompts of {file} were not all answered"
    output = run_helper(WORKER, job, whose=whose, timeout_s=asked.timeout_s, on_phase=on_phase)
    answers = tuple(GoldenAnswer.model_validate(result) for result in output.results)
    if [answer.name for answer in answers] != [golden.name for golden in goldens]:
        raise FailedRunError(f"{whose}: {len(answers)} of {len(goldens)} answers came")
    share = sum(answer.passed for answer in answers) / len(answers)
    return GoldenReport(file=str(file), sha256=file_sha256(file), pass_rate=share, answers=answers)
