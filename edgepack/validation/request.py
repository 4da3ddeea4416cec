"""What a validation is asked for, checked before the minutes that it takes. What cannot be used names its setting."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgepack.checkpoint.folder import open_checkpoint
from edgepack.checkpoint.hub import is_hub_id
from edgepack.errors import SettingError, about
from edgepack.package.folder import MANIFEST, open_package
from edgepack.planning.planner import Target
from edgepack.planning.targets import as_target
from edgepack.shown import shown
from edgepack.system.threads import require_threads
from edgepack.validation.answers import Asked
from edgepack.validation.figures.schedule import Measuring
from edgepack.validation.golden.file import read_goldens
from edgepack.validation.machine import usable_cores
from edgepack.validation.metrics import GOLDEN_RATE, METRICS
from edgepack.validation.processes.helper import check_timeout
from edgepack.validation.processes.job import Step
from edgepack.validation.quality.compare import require_reference_libraries
from edgepack.validation.result import Report
from edgepack.validation.thresholds import Threshold, parse_threshold
from edgepack.validation.verdict import baseline as baselines

DEFAULT_MAX_REGRESSION = "5%"
BaselineMissing = Literal["error", "ok"]


@dataclass(frozen=True, slots=True)
class Comparing:
    """What to compare with.

    Attributes:
        file: the earlier report; None where nothing is compared.
        before: what it holds.
        first_run: why nothing is compared although it was asked, in words; None where it is, or was not asked.
        allowed_percent: how much worse a metric may be.
        forced: compare whatever is different.
    """

    file: str | None = None
    before: Report | None = None
    first_run: str | None = None
    allowed_percent: float = 0.0
    forced: bool = False


def measuring_of(
    threads: int | None,
    prompt_tokens: Sequence[int] | None,
    new_tokens: int,
    repeat: int,
    timeout_s: float,
    time_budget_s: float,
    enforce_limit: bool,
) -> Measuring:
    """How to measure.

    Raises:
        SettingError: a number is too small, or a time no machine can wait for.
    """
    with about("threads"):
        require_threads(threads)
    counts = {"new_tokens": new_tokens, "repeat": repeat}
    counts |= {"prompt_tokens": min(prompt_tokens)} if prompt_tokens else {}
    for name, value in counts.items():
        if value < 1:
            raise SettingError(name, f" is {value}: expected at least 1")
    if not time_budget_s > 0:
        raise SettingError("time_budget_s", f" is {time_budget_s:g}: expected more than 0 seconds")
    with about("timeout_s"):
        check_timeout("timeout_s", timeout_s)
    return Measuring(
        threads=threads or usable_cores(),
        prompt_tokens=tuple(prompt_tokens) if prompt_tokens else None,
        new_tokens=new_tokens,
        repetitions=repeat,
        timeout_s=timeout_s,
        time_budget_s=time_budget_s,
        enforce_limit=enforce_limit,
    )


def limits_of(thresholds: Sequence[str | Threshold]) -> list[Threshold]:
    """The thresholds, read.

    Raises:
        SettingError: one names no metric, or no limit.
    """
    thresholds = (thresholds,) if isinstance(thresholds, str) else thresholds  # one, not its letters
    with about("threshold"):
        return [limit if isinstance(limit, Threshold) else parse_threshold(limit) for limit in thresholds]


def target_of(target: str | int | Target | None) -> Target | None:
    """The target, read.

    Raises:
        SettingError: it is no size and no device.
    """
    with about("target"):
        return as_target(target)


def inputs_of(reference: str | Path | None, text: str | Path | None, golden: str | Path | None) -> Asked:
    """What to compare the quality with.

    Raises:
        SettingError: a file is not there, a text has no reference, the golden prompts or the reference are none.
    """
    for name, file, expected in (("text", text, "a text file"), ("golden", golden, "golden prompts (JSON lines)")):
        if file is not None and not os.path.isfile(file):
            raise SettingError(name, f" {shown(str(file))} is no file: expected {expected}")
    if text is not None and reference is None:
        raise SettingError("text", f" {shown(str(text))} is for the comparison with a reference, and none was given")
    if golden is not None:
        with about("golden"):
            read_goldens(Path(golden))
    if reference is not None:
        with about("reference"):
            _require_reference(reference)
    return Asked(reference, text, golden)


def _require_reference(reference: str | Path) -> None:
    """Refuse a reference of which a look at its headers shows that nothing can be compared with it."""
    folder = Path(reference)
    if os.path.isfile(folder / MANIFEST):
        open_package(folder)
        return
    if os.path.exists(folder) or not is_hub_id(str(reference)):
        open_checkpoint(str(reference)).close()
    require_reference_libraries()


def comparing_of(
    baseline: str | Path | None, max_regression: str | None, baseline_missing: str, force: bool
) -> Comparing:
    """What to compare with, read.

    Args:
        baseline_missing: ``ok`` for a first run, which has nothing to compare with yet.

    Raises:
        SettingError: the baseline cannot be used, or what belongs to a comparison is given without one.
    """
    if baseline_missing not in ("error", "ok"):
        raise SettingError("baseline_missing", f" is {shown(baseline_missing)}: expected ok or error")
    with about("max_regression"):
        allowed = baselines.parse_share(max_regression or DEFAULT_MAX_REGRESSION)
    if baseline is None:
        return _without_baseline(max_regression, baseline_missing, force)
    if baseline_missing == "ok" and not os.path.exists(baseline):
        return Comparing(first_run=f"{shown(str(baseline), 300)} is not there yet")
    with about("baseline"):
        before = baselines.load_baseline(Path(baseline))
    return Comparing(str(baseline), before, None, allowed, force)


def _without_baseline(max_regression: str | None, baseline_missing: str, force: bool) -> Comparing:
    needed = " is for the comparison with a baseline, and none was given: add --baseline FILE or baseline in [validate]"
    if force:  # it is for one baseline, which the user has seen refused
        raise SettingError("force", needed)
    if baseline_missing == "ok":
        return Comparing(first_run="no baseline was given")
    if max_regression is not None:
        raise SettingError("max_regression", f"{needed}; for a first run that has none yet, --baseline-missing ok")
    return Comparing()


def require_measurable(limits: Sequence[Threshold], steps: Sequence[Step], given: Asked) -> None:
    """Refuse a threshold on what this validation does not measure.

    Raises:
        SettingError: with what to give.
    """
    lengths = [step.prompt_tokens for step in steps]
    for limit in limits:
        base, _, length = limit.metric.partition("@")
        missing = None
        if base == GOLDEN_RATE:
            missing = None if given.golden else "golden answers: give --golden FILE"
        elif METRICS[base].subject == "quality":
            missing = None if given.reference else "a reference: give --reference with a checkpoint or a package"
        elif length and int(length) not in lengths:
            missing = f"a prompt of {length} tokens: those are of {', '.join(map(str, lengths))}; give --prompt-tokens"
        elif base.startswith("long_") and len(steps) == 1:
            missing = "a second, longer prompt: give --prompt-tokens with two lengths"
        if missing is not None:
            raise SettingError("threshold", f" {limit} needs {missing}", key=limit.metric)
