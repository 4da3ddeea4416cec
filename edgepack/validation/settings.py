"""What a validation is asked for: one value, made by the table [validate], by the command line and in Python.

Its parts are what single stages need. Types and bounds are looked at here; what needs a file to be looked at is in
`request`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from pydantic import BeforeValidator, Field, ValidationError

from edgepack.errors import SettingError, about
from edgepack.planning.plan import Target
from edgepack.shown import shown
from edgepack.system.threads import require_threads
from edgepack.validation.machine import usable_cores
from edgepack.validation.processes.job import Step, plan_steps
from edgepack.validation.thresholds import Threshold, parse_threshold
from edgepack.values import Frozen

DEFAULT_PROMPT_TOKENS = (128, 1024)
# The longest prompt by default: the context less this, so that the answer ends well within it.
LEFT_TOKENS = 256
DEFAULT_NEW_TOKENS = 128
DEFAULT_REPETITIONS = 3
# Far more than any figure needs; a number with a typing mistake would measure for days.
MOST_REPETITIONS = 1000
# A first load packs gigabytes, and a small board reads them from an SD card.
DEFAULT_TIMEOUT_S = 1800.0
# What waits longer is no check of a build any more, and far longer than that no system call takes.
MOST_TIMEOUT_S = 7 * 86400.0
# Long prompts are repeated as far as this allows; the first repetition always has all of them.
DEFAULT_TIME_BUDGET_S = 180.0
DEFAULT_MAX_REGRESSION = "5%"

BaselineMissing = Literal["error", "ok"]
Count = Annotated[int, Field(strict=True, ge=1)]
Name = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]

_NUMBER = "a whole number of at least 1, such as"
# What each setting takes, for messages.
EXPECTED = {
    "target": 'a size or a device, such as "2GB"',
    "runtime": 'a runtime, such as "onnx"',
    "threads": f"{_NUMBER} 4",
    "prompt_tokens": "a list of whole numbers of at least 1, such as [128, 1024]",
    "new_tokens": f"{_NUMBER} 128",
    "repeat": f"a whole number of 1 to {MOST_REPETITIONS}, such as 3",
    "thresholds": 'a list of limits, such as "decode_tokens_per_s >= 10"',
    "reference": 'a checkpoint or a package, such as "google/gemma-3n-E2B-it"',
    "text": 'a text file, such as "text.txt"',
    "golden": 'a file of prompts, such as "prompts.jsonl"',
    "baseline": 'a file, such as "baseline/report.json"',
    "baseline_missing": '"ok" for a first run that has no baseline yet, or "error"',
    "max_regression": 'a share as a text, such as "5%"',
    "force": "true or false",
    "enforce_limit": "true or false",
    "timeout_s": f"more than 0 seconds and at most {MOST_TIMEOUT_S:,.0f}, which is a week",
    "time_budget_s": "more than 0 seconds",
}


class RunSettings(Frozen):
    """How every process runs.

    Attributes:
        runtime: as in `edgepack.load`.
        threads: CPU threads; None takes every core that this process may use.
        timeout_s: limit for each process.
    """

    runtime: str | None = None
    threads: Count | None = None
    timeout_s: float = Field(default=DEFAULT_TIMEOUT_S, gt=0, le=MOST_TIMEOUT_S)

    @property
    def used_threads(self) -> int:
        """The threads that a process gets."""
        return self.threads or usable_cores()


class MeasureSettings(RunSettings):
    """How to measure.

    Attributes:
        prompt_tokens: lengths of the prompts; by default 128, 1024 and the context less 256 where they fit.
        new_tokens: decode steps behind the shortest and the longest prompt, at most half the context.
        repeat: measured processes; long prompts are repeated as far as `time_budget_s` allows.
        time_budget_s: time for all measured processes, as far as one of each allows.
        enforce_limit: keep the memory limit by the kernel where the system allows it, else only watch.
    """

    prompt_tokens: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    new_tokens: Count = DEFAULT_NEW_TOKENS
    repeat: Annotated[Count, Field(le=MOST_REPETITIONS)] = DEFAULT_REPETITIONS
    time_budget_s: float = Field(default=DEFAULT_TIME_BUDGET_S, gt=0)
    enforce_limit: bool = True

    def steps(self, context_tokens: int) -> tuple[tuple[Step, ...], int]:
        """Prompts and length of the decode phases for a package of this context."""
        new_tokens = min(self.new_tokens, context_tokens // 2)
        return plan_steps(context_tokens, self.prompt_tokens or default_lengths(context_tokens), new_tokens), new_tokens


class QualityRequest(RunSettings):
    """What to compare and to ask; None leaves it out.

    Attributes:
        reference: a checkpoint or package to compare the quality with.
        text: a text file for that, in place of the built-in texts.
        golden: a file of prompts with properties that their answers must have.
    """

    reference: Name | None = None
    text: Path | None = None
    golden: Path | None = None


class ValidationSettings(MeasureSettings, QualityRequest):
    """Everything that a validation is asked for.

    Attributes:
        target: the memory limit, a size or a device; by default the target that the package was planned for.
        thresholds: limits on metrics.
        baseline: the JSON report of an earlier validation.
        baseline_missing: ``ok`` for a first run: a baseline that is not there, or not given, is no error then. Nothing
            is compared, and a check that is not judged says so.
        max_regression: how much worse than the baseline a metric may be; None takes `DEFAULT_MAX_REGRESSION`.
        force: compare with a baseline of another machine or model.
    """

    target: str | int | Target | None = None
    thresholds: tuple[Threshold, ...] = ()
    baseline: Path | None = None
    baseline_missing: BaselineMissing = "error"
    max_regression: str | None = None
    force: bool = False


class GivenSettings(TypedDict, total=False):
    """What Python may give for the fields of `ValidationSettings`."""

    target: str | int | Target | None
    runtime: str | None
    threads: int | None
    prompt_tokens: int | Sequence[int] | None
    new_tokens: int
    repeat: int
    thresholds: Sequence[str | Threshold]
    reference: str | Path | None
    text: str | Path | None
    golden: str | Path | None
    baseline: str | Path | None
    max_regression: str | None
    baseline_missing: BaselineMissing
    force: bool
    enforce_limit: bool
    timeout_s: float
    time_budget_s: float


def settings_of(given: Mapping[str, Any]) -> ValidationSettings:
    """The settings that are `given` by name, such as `GivenSettings`.

    Raises:
        SettingError: there is no such setting, or its value has a wrong type or is out of bounds.
    """
    values = dict(given)
    with about("threads"):
        require_threads(values.get("threads"))
    if isinstance(values.get("prompt_tokens"), int):
        values["prompt_tokens"] = (values["prompt_tokens"],)
    limits = values.get("thresholds", ())
    with about("threshold"):
        limits = [limits] if isinstance(limits, str) else limits  # one, not its letters
        values["thresholds"] = [parse_threshold(limit) if isinstance(limit, str) else limit for limit in limits]
    try:
        return ValidationSettings.model_validate(values)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        if name not in EXPECTED:
            raise SettingError(name, f": no such setting; expected {', '.join(EXPECTED)}") from error
        value = given[name]
        told = f"{value:g}" if isinstance(value, float) else shown(value)
        raise SettingError(name, f" is {told}: expected {EXPECTED[name]}") from error


def default_lengths(context_tokens: int) -> tuple[int, ...]:
    """Lengths of the prompts for a package of this context."""
    longest = context_tokens - LEFT_TOKENS
    return (
        DEFAULT_PROMPT_TOKENS[0],
        *(length for length in (*DEFAULT_PROMPT_TOKENS[1:], longest) if DEFAULT_PROMPT_TOKENS[0] < length <= longest),
    )
