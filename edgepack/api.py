"""The Python interface: the verbs of the command line as functions."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib import metadata
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.checkpoint.folder import Checkpoint, open_checkpoint
from edgepack.errors import CheckpointError, EdgepackError, broken_library
from edgepack.export_phases import (
    HASHES,
    TEMPLATE,
    TOKENIZER,
    WEIGHTS,
    WEIGHTS_A_HASHED_BYTE,
    WEIGHTS_A_TEMPLATE,
    WEIGHTS_A_TOKENIZER_BYTE,
    Phases,
    Progress,
)
from edgepack.install import not_installed
from edgepack.model.read import read_model
from edgepack.model.tensors import head_doubt
from edgepack.package.folder import Manifest, Package, Source, list_files, open_package, package_folder, write_manifest
from edgepack.planning.backends import backend_named
from edgepack.planning.memory import EXPORT_THREADS
from edgepack.planning.planner import DEFAULT_RECIPE, Plan, Target, check_plan, load_plan, make_plan
from edgepack.planning.targets import as_target
from edgepack.quant.recipes import Recipe
from edgepack.shown import printable, shown
from edgepack.system.peak_memory import PeakWatch
from edgepack.system.threads import available_cores, require_threads
from edgepack.text.codec import check_text_files, read_chat_template, read_stop_token_ids, read_tokenizer
from edgepack.text.start_token import StartToken, read_start_token
from edgepack.text.templates import ChatTemplates
from edgepack.user_folders import require_utf8
from edgepack.validation import validate as validate
from edgepack_runtimes.native.arm import require_lse_atomics
from edgepack_runtimes.sampling import SamplingParams as SamplingParams

if TYPE_CHECKING:
    from edgepack_converters.litert import backend as litert
    from edgepack_runtimes.base import Runtime


def plan(
    checkpoint: str | Path | Checkpoint,
    *,
    to: str = "onnx",
    target: str | int | Target | None = None,
    recipe: str | Path | Recipe = DEFAULT_RECIPE,
    context: int | None = None,
    prefill: Sequence[int] | None = None,
) -> Plan:
    """Plan the memory of `checkpoint` (folder, Hugging Face id or an opened one): see `planning.planner.make_plan`."""
    with _opened(checkpoint) as source:
        chosen = as_target(target)
        return make_plan(
            read_model(source), backend=to, recipe=recipe, context_tokens=context, prefill_tokens=prefill, target=chosen
        )


def require_fit(plan: Plan) -> None:
    """Raise `EdgepackError` if `plan` misses its target."""
    if plan.target is not None and not plan.fits:
        raise EdgepackError(
            f"the plan needs {plan.total_bytes:,} bytes, the target {printable(plan.target.name)} has "
            f"{plan.target.limit_bytes:,}; largest: {plan.blame}; `edgepack plan` lists what would fit"
        )


def _opened(checkpoint: str | Path | Checkpoint) -> AbstractContextManager[Checkpoint]:
    return nullcontext(checkpoint) if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)


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
    to: str = "onnx",
    out: str | Path,
    target: str | int | Target | None = None,
    recipe: str | Path | Recipe = DEFAULT_RECIPE,
    plan: Plan | str | Path | None = None,
    context: int | None = None,
    prefill: Sequence[int] | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Progress = lambda done, total, phase: None,
) -> Export:
    """Convert `checkpoint` into a package folder `out`, whole or not at all.

    Args:
        plan: a plan made before, or the file of one, in place of `target`, `recipe`, `context` and `prefill`.
        threads: threads that quantize; by default one a core, up to eight.
        progress: called with what is done, what there is in all, and the name of the phase that runs.

    Raises:
        EdgepackError: unusable input, a plan of another checkpoint, a target that would be missed, an existing `out`,
            or a full disk.
    """
    require_threads(threads)
    if plan is not None and (
        target is not None or context is not None or prefill is not None or recipe != DEFAULT_RECIPE
    ):
        raise EdgepackError("a plan has its own target, recipe, context and prefill: pass either the plan or these")
    with _opened(checkpoint) as source:
        spec = read_model(source)
        if plan is None:
            chosen = as_target(target)
            plan = make_plan(
                spec, backend=to, recipe=recipe, context_tokens=context, prefill_tokens=prefill, target=chosen
            )
            require_fit(plan)
        elif not isinstance(plan, Plan):
            plan = load_plan(Path(plan))
        check_plan(plan, spec, source.path)
        if plan.backend != backend_named(to).name:
            raise EdgepackError(
                f"the plan is for backend {plan.backend}, the export for {to}: pass --to {plan.backend}, or plan again"
            )
        check_text_files(source.path)
        workers = threads or min(available_cores(), EXPORT_THREADS)
        with PeakWatch() as watch, package_folder(Path(out), overwrite=overwrite) as folder:
            notes = _fill(folder, plan, source, workers, progress)
    return Export(open_package(out), watch.peak_bytes, notes)


def _fill(folder: Path, plan: Plan, source: Checkpoint, threads: int, progress: Progress) -> tuple[str, ...]:
    """Write all files of a package; return what the user should know."""
    phases = Phases(progress, _costs(plan, source))
    start = read_start_token(source.path, source.config)
    doubts = (start.doubt, head_doubt(source, plan.spec), _tokenizer_doubt(source.path))
    notes = [*(doubt for doubt in doubts if doubt is not None), *plan.exceptions()]
    graphs, spans, versions = _emit(plan, source, folder, start, threads, phases, notes)
    phases.begin(HASHES)
    for file in source.side_files():
        copy = folder / file.relative_to(source.path)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)
    manifest = Manifest(
        source=Source(repo_id=source.source.repo_id, revision=source.source.revision),
        plan=plan,
        graphs=graphs,
        spans=spans,
        versions=_versions("edgepack", "numpy", *versions),
        files=list_files(folder, threads),
    )
    write_manifest(folder, manifest)
    phases.end()
    return tuple(notes)


def _tokenizer_doubt(folder: Path) -> str | None:
    if os.path.isfile(folder / "tokenizer.json"):
        return None
    return "no tokenizer.json: the package takes and gives token ids only, and LiteRT-LM does not load it"


def _costs(plan: Plan, source: Checkpoint) -> dict[str, float]:
    """Phases of an export, with what each costs in weights that are quantized in that time."""
    tokenizer = sum(file.stat().st_size for file in source.side_files() if file.name.startswith("tokenizer."))
    costs: dict[str, float] = {}
    if plan.backend == "litert" and tokenizer:
        costs[TOKENIZER] = WEIGHTS_A_TOKENIZER_BYTE * tokenizer
        if read_chat_template(source.path) is not None:
            costs[TEMPLATE] = WEIGHTS_A_TEMPLATE
    costs[WEIGHTS] = sum(prod(tensor.shape) for tensor in plan.tensors)
    costs[HASHES] = WEIGHTS_A_HASHED_BYTE * (tokenizer + plan.disk_bytes)
    return costs


def _emit(
    plan: Plan, source: Checkpoint, folder: Path, start: StartToken, threads: int, phases: Phases, notes: list[str]
) -> tuple[dict[str, str], dict[str, tuple[int, int]], tuple[str, ...]]:
    """Run the plan's converter: paths of the models by role, their spans where they share a file, libraries used.

    What the user should know comes to `notes`.
    """
    try:
        if plan.backend == "onnx":
            from edgepack_converters import onnx

            phases.begin(WEIGHTS)
            return onnx.emit(plan, source, folder, threads=threads, progress=phases.advance), {}, ("onnx_ir",)
        from edgepack_converters.litert import backend as litert

        text = _text_facts(plan, source.path, start)
        choice = None
        if text.tokenizer is not None:
            phases.begin(TOKENIZER)  # first, while little else is in memory
            choice = litert.choose_apart(text.tokenizer, text.tokenizer_model)
        if text.tokenizer is not None and text.chat_template is not None:
            phases.begin(TEMPLATE)
            text = _checked_by_engine(plan, source.path, start, text)
        phases.begin(WEIGHTS)
        bundle, emission = litert.emit(plan, source, folder, text, choice, threads=threads, progress=phases.advance)
        spans = emission.spans()
        if emission.tokenizer_reason is not None:
            notes.append(
                "the bundle has tokenizer.json, which costs LiteRT-LM more memory than a SentencePiece model: "
                f"{emission.tokenizer_reason}"
            )
        return dict.fromkeys(spans, bundle), spans, ("ai_edge_litert", "litert_lm_builder", "sentencepiece")
    except ModuleNotFoundError as error:
        raise EdgepackError(not_installed(error.name, plan.backend)) from error
    except ImportError as error:
        raise broken_library(error) from error


def _text_facts(plan: Plan, checkpoint: Path, start: StartToken) -> litert.TextFacts:
    """What a bundle says about texts.

    Raises:
        EdgepackError: there is no stop token.
    """
    from edgepack_converters.litert import backend as litert

    text = litert.TextFacts(
        tokenizer=read_tokenizer(checkpoint),
        stop_token_ids=sorted(read_stop_token_ids(checkpoint) or plan.spec.eos_token_ids),
        chat_template=read_chat_template(checkpoint),
        tokenizer_model=read_tokenizer(checkpoint, "tokenizer.model"),
        start_token_id=start.token_id if start.before_texts else None,
    )
    if text.tokenizer is not None and not text.stop_token_ids:
        raise CheckpointError(
            f"{checkpoint}: no stop token, which LiteRT-LM needs: name eos_token_id in generation_config.json"
        )
    return text


def _checked_by_engine(plan: Plan, checkpoint: Path, start: StartToken, text: litert.TextFacts) -> litert.TextFacts:
    """`text`, once LiteRT-LM renders its chat template as Transformers does.

    Raises:
        UnsupportedError: it does not.
    """
    from edgepack_converters.litert import backend as litert

    template = text.chat_template or ""
    chat = ChatTemplates(checkpoint)
    if not start.before_texts and start.text and chat.begins_with(start.text):
        # The engine leaves `bos_token` empty, so that it has to put the token before the text by itself.
        text = replace(text, start_token_id=start.token_id)
    litert.check_template(
        plan.spec,
        template,
        chat.render,
        bos_token=start.text if text.start_token_id is not None else "",
        always=start.before_texts or text.start_token_id is None,
        names=chat.special_tokens,
        where=checkpoint,
    )
    return text


def _versions(*names: str) -> dict[str, str]:
    """Versions of installed distributions; a source tree on the path is none."""
    installed = {distribution.metadata["Name"].replace("-", "_") for distribution in metadata.distributions()}
    return {name: metadata.version(name) for name in names if name in installed}


RUNTIMES = ("onnx", "litert", "litert-lm")


def load(
    package: str | Path, *, runtime: str | None = None, threads: int | None = None, rebuild_cache: bool = False
) -> Runtime:
    """Open a package for inference; use it as a context manager.

    Args:
        runtime: ``onnx``, ``litert`` or ``litert-lm``; by default what the package was exported for.
        threads: CPU threads; None takes all cores.
        rebuild_cache: build what the runtime keeps of the package anew, as a first load on another machine would.

    Raises:
        EdgepackError: the package is not usable, or the runtime is not known, not installed or not the package's.
    """
    if runtime is not None and runtime not in RUNTIMES:
        raise EdgepackError(f"runtime {shown(runtime)} is not known: expected one of {', '.join(RUNTIMES)}")
    opened = open_package(package)
    require_utf8(opened.path, "the package")
    chosen = runtime or opened.manifest.plan.backend
    try:
        if chosen == "onnx":
            from edgepack_runtimes.onnx.runtime import OnnxRuntime

            return OnnxRuntime(opened, threads=threads, rebuild_cache=rebuild_cache)
        if chosen == "litert":
            from edgepack_runtimes.litert.runtime import LitertRuntime

            return LitertRuntime(opened, threads=threads, rebuild_cache=rebuild_cache)
        require_lse_atomics()
        from edgepack_runtimes.litert_lm.runtime import LitertLmRuntime

        return LitertLmRuntime(opened, threads=threads, rebuild_cache=rebuild_cache)
    except ModuleNotFoundError as error:
        raise EdgepackError(not_installed(error.name, "run" if chosen == "onnx" else "run-litert")) from error
    except ImportError as error:
        raise broken_library(error) from error
