"""The Python interface: the verbs of the command line as functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from edgepack.calibration.run import Progress, refuse_output
from edgepack.calibration.run import calibrate as calibrate
from edgepack.calibration.sensitivity.file import Sensitivity, read_sensitivity
from edgepack.calibration.sensitivity.run import measure_sensitivity
from edgepack.calibration.texts import BUILTIN
from edgepack.checkpoint.folder import Checkpoint, opened
from edgepack.exporting import Export as Export
from edgepack.exporting import export as export
from edgepack.loading import load as load
from edgepack.model.read import read_model
from edgepack.planning.backends import backend_for
from edgepack.planning.candidates import candidates_of
from edgepack.planning.mix import Mix, choose_mix
from edgepack.planning.plan import Plan, Target
from edgepack.planning.planner import DEFAULT_RECIPE, default_recipe, make_plan
from edgepack.planning.targets import as_target
from edgepack.quant.recipes import Recipe, load_recipe
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


def sensitivity(
    checkpoint: str | Path | Checkpoint,
    *,
    calibration: str | Path,
    out: str | Path,
    to: str | None = None,
    text: str | Path = BUILTIN,
    tokens: int | None = None,
    sequence: int | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress = lambda done, total, phase: None,
) -> Sensitivity:
    """Measure what each group of tensors costs at each scheme of backend `to`, and write that to the file `out`.

    See `calibration.sensitivity.run.measure_sensitivity`, which tells what the settings are.
    """
    backend = backend_for(to)
    refuse_output(Path(out), overwrite=overwrite)
    with opened(checkpoint) as source:
        spec = read_model(source)
        return measure_sensitivity(
            source,
            spec,
            candidates_of(spec, backend),
            backend=backend.name,
            calibration=calibration,
            out=Path(out),
            text=text,
            tokens=tokens,
            sequence=sequence,
            threads=threads,
            progress=progress,
        )


def mix(
    checkpoint: str | Path | Checkpoint,
    bits: float,
    *,
    sensitivity: str | Path,
    to: str | None = None,
    runtime: str | None = None,
    head_bits: float | None = None,
    calibrated: bool = False,
) -> Mix:
    """Choose the recipe of least expected KL for so many bits a weight: see `planning.mix.choose_mix`.

    Args:
        sensitivity: the file that `edgepack.sensitivity` has written for this checkpoint and backend.
    """
    backend = backend_for(to, runtime)
    costs = read_sensitivity(sensitivity)
    with opened(checkpoint) as source:
        spec = read_model(source)
        costs.require_for(source, spec, backend.name, Path(sensitivity))
    base = load_recipe(default_recipe(calibrated=calibrated), backend.name)
    return choose_mix(spec, backend, costs, bits, base=base, head_bits=head_bits, calibrated=calibrated)


def validate(
    package: str | Path, *, on_phase: OnProgress = lambda progress: None, **settings: Unpack[GivenSettings]
) -> Report:
    """Run `package` in fresh processes and report memory, times, quality and a verdict: see `validation.run.validate`.

    The settings are those of `validation.settings.ValidationSettings`, which tells what each is.
    """
    return validation.validate(package, settings_of(settings), on_phase=on_phase)
