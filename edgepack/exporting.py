"""Export: checkpoint and plan go to the converter that the plan's backend names, and come out as a whole package."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from edgepack.calibration.file import Calibration, open_calibration
from edgepack.calibration.planned import PlannedWeights
from edgepack.checkpoint.folder import Checkpoint, opened
from edgepack.errors import EdgepackError, broken_library, not_installed
from edgepack.model.read import read_model
from edgepack.model.tensors import head_doubt
from edgepack.package.folder import (
    CalibrationSource,
    Manifest,
    Package,
    Source,
    list_files,
    open_package,
    package_folder,
    write_manifest,
)
from edgepack.planning.backends import backend_named
from edgepack.planning.plan import Plan, Target, load_plan
from edgepack.planning.planner import DEFAULT_RECIPE, check_plan, make_plan
from edgepack.planning.runtime_costs import EXPORT_THREADS
from edgepack.planning.targets import as_target
from edgepack.quant.recipes import Recipe
from edgepack.shown import printable
from edgepack.system.peak_memory import PeakWatch
from edgepack.system.threads import available_cores, require_threads
from edgepack.text.codec import check_text_files
from edgepack.text.start_token import read_start_token
from edgepack_converters.contract import Emitted
from edgepack_converters.phases import HASHES, WEIGHTS_A_HASHED_BYTE, Phases, Progress, tokenizer_bytes


def require_fit(plan: Plan) -> None:
    """Raise `EdgepackError` if `plan` misses its target."""
    if plan.target is not None and not plan.fits:
        raise EdgepackError(
            f"the plan needs {plan.total_bytes:,} bytes, the target {printable(plan.target.name)} has "
            f"{plan.target.limit_bytes:,}; largest: {plan.blame}; `edgepack plan` lists what would fit"
        )


@dataclass(frozen=True, slots=True)
class Export:
    """A finished export.

    Attributes:
        package: what was written.
        peak_rss_bytes: the most memory that this process and those it started had at one time, mapped pages included.
        notes: what is not as good as it could be, a line each.
    """

    package: Package
    peak_rss_bytes: int
    notes: tuple[str, ...] = ()


def export(
    checkpoint: str | Path | Checkpoint,
    *,
    to: str | None = None,
    runtime: str | None = None,
    out: str | Path,
    target: str | int | Target | None = None,
    recipe: str | Path | Recipe = DEFAULT_RECIPE,
    plan: Plan | str | Path | None = None,
    calibration: str | Path | None = None,
    context: int | None = None,
    prefill: Sequence[int] | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Progress = lambda done, total, phase: None,
) -> Export:
    """Convert `checkpoint` into a package folder `out`, whole or not at all.

    Args:
        to: the backend; by default the one of the plan, or that `runtime` runs, else ``onnx``.
        runtime: the one that is to run the package, and whose memory counts; by default the first of the backend.
        plan: a plan made before, or the file of one, in place of `runtime`, `target`, `recipe`, `context` and
            `prefill`.
        calibration: a file that `edgepack.calibrate` has made of this checkpoint, for recipes that take one.
        threads: threads that quantize; by default one a core, up to eight.
        progress: called with what is done, what there is in all, and the name of the phase that runs.

    Raises:
        EdgepackError: unusable input, a plan of another checkpoint, a target that would be missed, an existing `out`,
            or a full disk.
    """
    require_threads(threads)
    chosen = (runtime, target, context, prefill)
    if plan is not None and (any(value is not None for value in chosen) or recipe != DEFAULT_RECIPE):
        raise EdgepackError(
            "a plan has its own runtime, target, recipe, context and prefill: pass either the plan or these"
        )
    with opened(checkpoint) as source:
        spec = read_model(source)
        if plan is None:
            plan = make_plan(
                spec,
                backend=to,
                runtime=runtime,
                recipe=recipe,
                context_tokens=context,
                prefill_tokens=prefill,
                target=as_target(target),
            )
            require_fit(plan)
        elif not isinstance(plan, Plan):
            plan = load_plan(Path(plan))
        check_plan(plan, spec, source.path)
        _require_backend(plan, to)
        check_text_files(source.path)
        require_calibration(plan, calibration)
        workers = threads or min(available_cores(), EXPORT_THREADS)
        with (
            PeakWatch() as watch,
            _opened(calibration) as known,
            package_folder(Path(out), overwrite=overwrite) as folder,
        ):
            if known is not None:
                known.require_for(source, spec)
            notes = _fill(folder, plan, source, known, workers, progress)
    return Export(open_package(out), watch.peak_bytes, notes)


def require_calibration(plan: Plan, calibration: str | Path | None) -> None:
    """Raise `EdgepackError` unless a calibration is given where the recipe of `plan` takes one, and only there."""
    name = printable(plan.recipe.name)
    if plan.recipe.calibrated and calibration is None:
        raise EdgepackError(
            f"recipe {name} rounds by what the inputs of the matrices are like: pass --calibration FILE, which "
            "`edgepack calibrate` makes, or take another recipe"
        )
    if calibration is not None and not plan.recipe.calibrated:
        raise EdgepackError(
            f"recipe {name} makes no use of a calibration: leave it out, or take a recipe with the rounding gptq"
        )


def _opened(calibration: str | Path | None) -> AbstractContextManager[Calibration | None]:
    return nullcontext() if calibration is None else open_calibration(calibration)


def _require_backend(plan: Plan, to: str | None) -> None:
    if to is not None and plan.backend != backend_named(to).name:
        raise EdgepackError(
            f"the plan is for backend {plan.backend}, the export for {to}: pass --to {plan.backend}, or plan again"
        )


def _fill(
    folder: Path, plan: Plan, source: Checkpoint, known: Calibration | None, threads: int, progress: Progress
) -> tuple[str, ...]:
    """Write all files of a package; return what the user should know."""
    emitter = _converter(plan)
    hashing = WEIGHTS_A_HASHED_BYTE * (tokenizer_bytes(source) + plan.disk_bytes)
    phases = Phases(progress, {**emitter.costs(plan, source), HASHES: hashing})
    start = read_start_token(source.path, source.config)
    doubts = (start.doubt, head_doubt(source, plan.spec), _tokenizer_doubt(source.path))
    weights = PlannedWeights(source, plan.spec, plan.recipe.folds, known)
    try:
        emitted: Emitted = emitter.emit(plan, source, weights, folder, threads=threads, phases=phases)
    except ImportError as error:  # some libraries are imported when they are first used
        raise _unusable(error, plan) from error
    phases.begin(HASHES)
    for file in source.side_files():
        copy = folder / file.relative_to(source.path)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)
    manifest = Manifest(
        source=Source(repo_id=source.source.repo_id, revision=source.source.revision),
        plan=plan,
        calibration=None if known is None else _calibration_source(known),
        graphs=emitted.graphs,
        spans=emitted.spans,
        versions=_versions("edgepack", "numpy", *emitted.libraries),
        files=list_files(folder, threads),
    )
    write_manifest(folder, manifest)
    phases.end()
    return (*(doubt for doubt in doubts if doubt is not None), *plan.exceptions(), *emitted.notes)


def _calibration_source(known: Calibration) -> CalibrationSource:
    header = known.header
    return CalibrationSource(
        sha256=known.sha256,
        text=header.text,
        text_sha256=header.text_sha256,
        tokens=header.tokens,
        sequence_tokens=header.sequence_tokens,
    )


def _converter(plan: Plan) -> Any:
    """The module that emits for the plan's backend: see `edgepack_converters.contract`."""
    try:
        return import_module(backend_named(plan.backend).converter)
    except ImportError as error:
        raise _unusable(error, plan) from error


def _unusable(error: ImportError, plan: Plan) -> EdgepackError:
    if isinstance(error, ModuleNotFoundError):
        return EdgepackError(not_installed(error.name, backend_named(plan.backend).extra))
    return broken_library(error)


def _tokenizer_doubt(folder: Path) -> str | None:
    if os.path.isfile(folder / "tokenizer.json"):
        return None
    return "no tokenizer.json: the package takes and gives token ids only, and LiteRT-LM does not load it"


def _versions(*names: str) -> dict[str, str]:
    """Versions of installed distributions; a source tree on the path is none."""
    installed = {distribution.metadata["Name"].replace("-", "_") for distribution in metadata.distributions()}
    return {name: metadata.version(name) for name in names if name in installed}
