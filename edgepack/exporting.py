"""Export: checkpoint and plan go to the converter that the plan's backend names, and come out as a whole package."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from edgepack.calibration.file import Calibration, open_calibration
from edgepack.calibration.planned import PlannedWeights
from edgepack.calibration.run import SUFFIX
from edgepack.calibration.run import calibrate as collect
from edgepack.calibration.texts import BUILTIN
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
from edgepack.planning.planner import check_plan, default_recipe, make_plan
from edgepack.planning.runtime_costs import EXPORT_THREADS
from edgepack.planning.targets import as_target
from edgepack.quant.recipes import Recipe
from edgepack.shown import printable
from edgepack.system.peak_memory import PeakWatch
from edgepack.system.threads import available_cores, one_blas_thread, require_threads
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
    recipe: str | Path | Recipe | None = None,
    plan: Plan | str | Path | None = None,
    calibration: str | Path | None = None,
    calibrate: str | Path | None = None,
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
        recipe: by default ``int4``, with a calibration ``int4-calibrated``.
        plan: a plan made before, or the file of one, in place of `runtime`, `target`, `recipe`, `context` and
            `prefill`.
        calibration: a file that `edgepack.calibrate` has made of this checkpoint, for recipes that take one.
        calibrate: ``builtin`` or a file of UTF-8, from which such a file is made first. It is `calibration` where that
            is given, and used as it is where it has been made of the same before; else it stands beside `out` and goes
            once that is whole.
        threads: threads that quantize; by default one a core, up to eight.
        progress: called with what is done, what there is in all, and the name of the phase that runs.

    Raises:
        EdgepackError: unusable input, a plan of another checkpoint, a target that would be missed, an existing `out`,
            or a full disk.
    """
    require_threads(threads)
    chosen = (runtime, target, recipe, context, prefill)
    if plan is not None and any(value is not None for value in chosen):
        raise EdgepackError(
            "a plan has its own runtime, target, recipe, context and prefill: pass either the plan or these"
        )
    calibrated = calibration is not None or calibrate is not None
    with opened(checkpoint) as source:
        spec = read_model(source)
        if plan is None:
            plan = make_plan(
                spec,
                backend=to,
                runtime=runtime,
                recipe=recipe or default_recipe(calibrated=calibrated),
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
        require_calibration(plan, calibrated)
        workers = threads or min(available_cores(), EXPORT_THREADS)
        with (
            PeakWatch() as watch,
            package_folder(Path(out), overwrite=overwrite) as folder,
            _calibration(source, Path(out), calibration, calibrate, threads, progress) as known,
        ):
            if known is not None:
                known.require_for(source, spec)
            notes = _fill(folder, plan, source, known, workers, progress)
    return Export(open_package(out), watch.peak_bytes, notes)


def require_calibration(plan: Plan, given: bool) -> None:
    """Raise `EdgepackError` unless a calibration is `given` where the recipe of `plan` takes one, and only there."""
    name = printable(plan.recipe.name)
    if plan.recipe.calibrated and not given:
        raise EdgepackError(
            f"recipe {name} rounds by what the inputs of the matrices are like: pass --calibrate {BUILTIN}, or "
            "--calibration FILE, which `edgepack calibrate` makes, or take another recipe"
        )
    if given and not plan.recipe.calibrated:
        raise EdgepackError(
            f"recipe {name} makes no use of a calibration: leave it out, or take a recipe with the rounding gptq"
        )


def calibration_beside(out: Path) -> Path:
    """Where a calibration stands that is made for one export alone."""
    real = out.resolve()
    return real.with_name(f"{real.name}{SUFFIX}")


@contextmanager
def _calibration(
    source: Checkpoint,
    out: Path,
    file: str | Path | None,
    text: str | Path | None,
    threads: int | None,
    progress: Progress,
) -> Iterator[Calibration | None]:
    """The open calibration in `file`, made of `text` first where there is one; None where there is neither."""
    path = file
    if text is not None:
        made = collect(
            source,
            out=calibration_beside(out) if file is None else file,
            text=text,
            threads=threads,
            overwrite=file is None,  # what stands there is of an export that was ended
            reuse=True,
            progress=progress,
        )
        path = made.path
    if path is None:
        yield None
        return
    with open_calibration(path) as known:
        yield known
    if file is None:
        made.path.unlink(missing_ok=True)


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
        with one_blas_thread() if known is not None or plan.recipe.folds else nullcontext():
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
        calibration_sketch=None if known is None else known.header.sketch,
        graphs=emitted.graphs,
        spans=emitted.spans,
        versions=_versions("edgepack", "numpy", *emitted.libraries),
        files=list_files(folder, threads),
    )
    write_manifest(folder, manifest)
    phases.end()
    return (*(doubt for doubt in doubts if doubt is not None), *plan.exceptions(), *emitted.notes, *weights.notes())


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
