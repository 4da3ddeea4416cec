"""The Python interface: the verbs of the command line as functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from edgepack.calibration.run import calibrate as calibrate
from edgepack.checkpoint.folder import Checkpoint, opened
from edgepack.exporting import Export as Export
from edgepack.exporting import export as export
from edgepack.loading import load as load
from edgepack.model.read import read_model
from edgepack.planning.plan import Plan, Target
from edgepack.planning.planner import DEFAULT_RECIPE, make_plan
from edgepack.planning.targets import as_target
from edgepack.quant.recipes import Recipe
from edgepack.validation import run as validation
from edgepack.validation.progress import OnProgress
from edgepack.validation.result import Report
from edgepack.validation.settings import GivenSettings, settings_of
from edgepack_runtimes.sampling import SamplingParams as SamplingParams


def plan(
    checkpoint: str | Path | Checkpoint,
    *,
    to: str | None = None,
    runtime: str | None = None,
    target: str | int | Target | None = None,
    recipe: str | Path | Recipe = DEFAULT_RECIPE,
    context: int | None = None,
    prefill: Sequence[int] | None = None,
) -> Plan:
    """Plan the memory of `checkpoint` (folder, Hugging Face id or an opened one): see `planning.planner.make_plan`."""
    with opened(checkpoint) as source:
        chosen = as_target(target)
        return make_plan(
            read_model(source),
            backend=to,
            runtime=runtime,
            recipe=recipe,
            context_tokens=context,
            prefill_tokens=prefill,
            target=chosen,
        )


def validate(
    package: str | Path, *, on_phase: OnProgress = lambda progress: None, **settings: Unpack[GivenSettings]
) -> Report:
    """Run `package` in fresh processes and report memory, times, quality and a verdict: see `validation.run.validate`.

    The settings are those of `validation.settings.ValidationSettings`, which tells what each is.
    """
    return validation.validate(package, settings_of(settings), on_phase=on_phase)
