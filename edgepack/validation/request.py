"""What the settings of a validation name: files, checkpoints and packages, looked at before the minutes that it takes.

What cannot be used is refused under the name of its setting.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepack.checkpoint.folder import open_checkpoint
from edgepack.checkpoint.hub import is_hub_id
from edgepack.errors import SettingError, about
from edgepack.loading import RUNTIMES
from edgepack.package.folder import MANIFEST, open_package
from edgepack.shown import shown
from edgepack.validation.golden.file import read_goldens
from edgepack.validation.metrics import GOLDEN_RATE, METRICS
from edgepack.validation.processes.job import Step
from edgepack.validation.quality.compare import require_reference_libraries
from edgepack.validation.quality.texts import builtin_texts
from edgepack.validation.settings import DEFAULT_MAX_REGRESSION, QualityRequest, ValidationSettings
from edgepack.validation.verdict.baseline import Baseline, load_baseline, parse_share


@dataclass(frozen=True, slots=True)
class Comparing:
    """What to compare with.

    Attributes:
        first_run: why nothing is compared although it was asked, in words; None where it is, or was not asked.
    """

    baseline: Baseline | None = None
    first_run: str | None = None


def require_runtime(runtime: str | None) -> None:
    """Raise `SettingError` unless there is such a runtime: the worker that loads it comes after the package's sums."""
    if runtime is not None and runtime not in RUNTIMES:
        raise SettingError("runtime", f" {shown(runtime)} is not known: expected one of {', '.join(RUNTIMES)}")


def require_inputs(asked: QualityRequest) -> None:
    """Refuse what the quality cannot be compared with.

    Raises:
        SettingError: a file is not there, a text has no reference, the golden prompts or the reference are none.
    """
    files = (("text", asked.text, "a text file"), ("golden", asked.golden, "golden prompts (JSON lines)"))
    for name, file, expected in files:
        if file is not None and not os.path.isfile(file):
            raise SettingError(name, f" {shown(str(file))} is no file: expected {expected}")
    if asked.text is not None and asked.reference is None:
        text = shown(str(asked.text))
        raise SettingError("text", f" {text} is for the comparison with a reference, and none was given")
    if asked.golden is not None:
        with about("golden"):
            read_goldens(asked.golden)
    if asked.reference is not None:
        with about("reference"):
            _require_reference(asked.reference)


def _require_reference(reference: str) -> None:
    """Refuse a reference of which a look at its headers shows that nothing can be compared with it."""
    folder = Path(reference)
    if os.path.isfile(folder / MANIFEST):
        open_package(folder)
        return
    if os.path.exists(folder) or not is_hub_id(reference):
        open_checkpoint(reference).close()
    require_reference_libraries()


def comparing_of(settings: ValidationSettings) -> Comparing:
    """What to compare with, read.

    Raises:
        SettingError: the baseline cannot be used, or what belongs to a comparison is given without one.
    """
    with about("max_regression"):
        allowed = parse_share(settings.max_regression or DEFAULT_MAX_REGRESSION)
    file = settings.baseline
    if file is None:
        return _without_baseline(settings)
    if settings.baseline_missing == "ok" and not os.path.exists(file):
        return Comparing(first_run=f"{shown(str(file), 300)} is not there yet")
    with about("baseline"):
        return Comparing(Baseline(str(file), load_baseline(file), allowed, settings.force))


def _without_baseline(settings: ValidationSettings) -> Comparing:
    needed = " is for the comparison with a baseline, and none was given: add --baseline FILE or baseline in [validate]"
    if settings.force:  # it is for one baseline, which the user has seen refused
        raise SettingError("force", needed)
    if settings.baseline_missing == "ok":
        return Comparing(first_run="no baseline was given")
    if settings.max_regression is not None:
        raise SettingError("max_regression", f"{needed}; for a first run that has none yet, --baseline-missing ok")
    return Comparing()


def require_measurable(settings: ValidationSettings, steps: Sequence[Step]) -> None:
    """Refuse a threshold on what this validation does not measure.

    Raises:
        SettingError: with what to give.
    """
    lengths = [step.prompt_tokens for step in steps]
    for limit in settings.thresholds:
        base, _, of = limit.metric.partition("@")
        missing = None
        if base == GOLDEN_RATE:
            missing = None if settings.golden else "golden answers: give --golden FILE"
        elif METRICS[base].category == "quality":
            missing = None if settings.reference else "a reference: give --reference with a checkpoint or a package"
            missing = missing or _missing_text(settings, of)
        elif of and int(of) not in lengths:
            missing = f"a prompt of {of} tokens: those are of {', '.join(map(str, lengths))}; give --prompt-tokens"
        elif base.startswith("long_") and len(steps) == 1:
            missing = "a second, longer prompt: give --prompt-tokens with two lengths"
        if missing is not None:
            raise SettingError("threshold", f" {limit} needs {missing}", key=limit.metric)


def _missing_text(settings: ValidationSettings, name: str) -> str | None:
    """Why nothing is measured on the text called `name`; None where it is, or where all of them are meant."""
    names = [text.name for text in builtin_texts()]
    if not name or (settings.text is None and name in names):
        return None
    if settings.text is not None:
        return "the built-in texts, and --text gives another one: leave one of the two out"
    return f"a text of that name: the built-in ones are {', '.join(names)}"
