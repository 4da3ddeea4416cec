"""What a package folder must be before anything in it is used: it may come from a stranger who wrote the manifest too.

Plain arithmetic and `stat`, no framework: the formats of the models are checked by the runtimes, before they open one.
The folder is taken as it is at this moment: who can change it between the check and the use is not kept out.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from edgepack.errors import PackageError, UnsupportedError
from edgepack.model.families import family_of
from edgepack.model.spec import ModelSpec
from edgepack.planning.plan import Plan
from edgepack.planning.planner import check_options
from edgepack.shown import printable, shown
from edgepack.text.files import TEMPLATE_FOLDER, kind_in_words, require_file

# That of Gemma 3n E2B has 0.2 MB.
MOST_MANIFEST_BYTES = 16_000_000
# No size of a known model comes near: products of three of them stay below 2 ** 72, and Python counts on from there.
MOST = 1 << 24
MOST_LAYERS = 1024
MOST_PREFILL_LENGTHS = 64
# Files beside the models that a runtime looks for by name. One of these that the manifest does not list was put there
# later, by somebody else or for another model: it is refused, not skipped, so that nobody wonders why it has no effect.
READ_BY_NAME = (
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def is_inside(path: str) -> bool:
    """Whether `path` is a plain relative path, written in the one shortest way."""
    parts = PurePosixPath(path)
    plain = path.isprintable() and "\\" not in path and parts.as_posix() == path
    return plain and bool(parts.parts) and not parts.is_absolute() and ".." not in parts.parts


def read_regular(path: Path, most_bytes: int) -> bytes:
    """The content of a file that is itself one, no link, and not too large: a pipe or device would never end.

    Raises:
        PackageError: it is something else, too large, or cannot be read.
    """
    try:
        require_file(path, most_bytes, links=False, way_out="export or copy the package again")
        return path.read_bytes()
    except OSError as error:
        raise PackageError(f"{path} cannot be read: {error.strerror}") from error


def check_file(root: Path, path: str, size_bytes: int) -> None:
    """Check that ``root/path`` is a file of this size inside `root`, whatever links lead to it.

    Raises:
        PackageError: it is not, or `root` itself is not resolved.
    """
    file = root / path
    try:
        real = file.resolve(strict=True)
        status = real.lstat()
    except FileNotFoundError as error:
        raise PackageError(f"{file} is missing; export or copy the package again") from error
    except (OSError, RuntimeError) as error:  # a circle of links
        raise PackageError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not real.is_relative_to(root):
        raise PackageError(f"{file} leads outside the package: refusing to open it")
    if not stat.S_ISREG(status.st_mode):
        raise PackageError(
            f"{file} is {kind_in_words(status.st_mode)}: expected a file; export or copy the package again"
        )
    if status.st_size != size_bytes:
        raise PackageError(
            f"{file}: expected {size_bytes} bytes, got {status.st_size}; export or copy the package again"
        )


def check_list(manifest: Path, paths: Collection[str]) -> None:
    """Check the manifest's list of files: every file once, and every file that a runtime reads by name.

    Raises:
        PackageError: one is listed twice, or stands in the folder and is not listed.
    """
    path, count = Counter(paths).most_common(1)[0] if paths else ("", 0)
    if count > 1:
        raise PackageError(
            f"{manifest}: {printable(path)} is listed {count} times, expected once; export the package again"
        )
    folder = manifest.parent
    templates = sorted(f"{TEMPLATE_FOLDER}/{file.name}" for file in (folder / TEMPLATE_FOLDER).glob("*.jinja"))
    for name in (*READ_BY_NAME, *templates):
        if name not in paths and os.path.lexists(folder / name):
            raise PackageError(
                f"{folder / name} is not in the manifest, but a runtime would read it: remove it, or export "
                "the checkpoint again with this file in it"
            )


def check_plan_numbers(plan: Plan, manifest: Path, files_bytes: int) -> None:
    """Check that the plan's numbers are possible and that the files are large enough for its weights.

    Runtimes allocate caches and buffers by these numbers. Those that no weight has a share in, the lengths of context
    and window, are compared with the models themselves by the runtimes.

    Raises:
        PackageError: a number is absurd, or the plan is that of another model than its spec or its files.
        UnsupportedError: the family is not known, or the model or the backend cannot have the runtime, the context or
            the prefill lengths.
    """
    spec = plan.spec
    try:
        family_of(spec)
    except UnsupportedError as error:
        raise UnsupportedError(f"{manifest}: plan.spec: {error}") from error
    for name, number, most in _numbers(spec):
        if not 1 <= number <= most:
            raise PackageError(f"{manifest}: plan.spec.{name} is {_short(number)}: expected 1 to {most}")
    for i, layer in enumerate(spec.layers):
        owner = spec.layers[layer.kv_owner] if 0 <= layer.kv_owner <= i else None
        if owner is None or (owner.kv_owner, owner.kind) != (layer.kv_owner, layer.kind):
            raise PackageError(
                f"{manifest}: plan.spec.layers.{i}.kv_owner is {_short(layer.kv_owner)}: expected a layer up to {i} "
                f"with keys and values of its own, of kind {layer.kind}"
            )
    if plan.context_tokens > MOST or len(plan.prefill_tokens) > MOST_PREFILL_LENGTHS:
        raise PackageError(
            f"{manifest}: plan has a context of {_short(plan.context_tokens)} tokens and {len(plan.prefill_tokens)} "
            f"prefill lengths: expected at most {MOST} and {MOST_PREFILL_LENGTHS}"
        )
    check_options(plan)
    _check_tensors(plan, manifest, files_bytes)


def _numbers(spec: ModelSpec) -> Iterator[tuple[str, int, int]]:
    """Name, value and limit of all sizes."""
    yield "layers (their number)", len(spec.layers), MOST_LAYERS
    for name in ("vocab_size", "hidden_size", "max_context_tokens"):
        yield name, getattr(spec, name), MOST
    for kind, attention in spec.attention.items():
        for name in ("num_heads", "num_kv_heads", "head_dim", "window"):
            if (number := getattr(attention, name)) is not None:
                yield f"attention.{kind}.{name}", number, MOST
    for i, layer in enumerate(spec.layers):
        yield f"layers.{i}.ffn_width", layer.ffn_width, MOST
    if spec.ple is not None:
        yield "ple.vocab_size", spec.ple.vocab_size, MOST
        yield "ple.dim", spec.ple.dim, MOST
    if spec.altup is not None:
        yield "altup.num_inputs", spec.altup.num_inputs, MOST_LAYERS
    if spec.laurel_rank is not None:
        yield "laurel_rank", spec.laurel_rank, MOST


def _check_tensors(plan: Plan, manifest: Path, files_bytes: int) -> None:
    table = {tensor.name: tensor.shape for tensor in family_of(plan.spec).tensor_table(plan.spec)}
    planned = {tensor.name: tensor.shape for tensor in plan.tensors}
    if len(plan.tensors) != len(table):
        raise PackageError(f"{manifest}: plan has {len(plan.tensors)} tensors: expected {len(table)}, one for each")
    for name, shape in table.items():
        if planned.get(name) != shape:
            raise PackageError(
                f"{manifest}: plan.tensors has {name} as {shown(planned.get(name))}: plan.spec expects {shape}; "
                "export the package again"
            )
    needed = sum(tensor.scheme.nbytes(tensor.shape) for tensor in plan.tensors)
    if needed > files_bytes:
        raise PackageError(
            f"{manifest}: the plan's weights need {needed} bytes, all files together have {files_bytes}; "
            "export the package again"
        )


def _short(number: int) -> str:
    """`number` as it is, or its size where it would fill the screen."""
    return str(number) if abs(number) < 10**30 else f"a number of {number.bit_length()} bits"
