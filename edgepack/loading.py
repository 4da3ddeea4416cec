"""Load: a package goes to a runtime, which its backend names or the caller chooses."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgepack.errors import EdgepackError, broken_library, not_installed
from edgepack.package.folder import open_package
from edgepack.planning.backends import RuntimeName, runtime_named
from edgepack.user_folders import require_utf8

if TYPE_CHECKING:
    from edgepack_runtimes.base import TextRuntime


class RuntimeRow(NamedTuple):
    """Where a runtime is.

    Attributes:
        module: has ``open_runtime(package, *, threads, rebuild_cache)``.
        extra: what to install for it.
        library: the distribution that computes, whose version a validation tells.
        logits_from: the runtime that gives the logits of the same models, where this one gives texts alone.
    """

    module: str
    extra: str
    library: str
    logits_from: RuntimeName | None = None


RUNTIMES: dict[RuntimeName, RuntimeRow] = {
    "onnx": RuntimeRow("edgepack_runtimes.onnx", "run", "onnxruntime"),
    "litert": RuntimeRow("edgepack_runtimes.litert", "run-litert", "ai-edge-litert"),
    "litert-lm": RuntimeRow("edgepack_runtimes.litert_lm", "run-litert", "litert-lm-api", logits_from="litert"),
}


def load(
    package: str | Path, *, runtime: str | None = None, threads: int | None = None, rebuild_cache: bool = False
) -> TextRuntime:
    """Open a package for inference; use it as a context manager.

    Args:
        runtime: a name in `RUNTIMES`; by default what the package was exported for.
        threads: CPU threads; None takes all cores.
        rebuild_cache: build what the runtime keeps of the package anew, as a first load on another machine would.

    Raises:
        EdgepackError: the package is not usable, or the runtime is not known, not installed or not the package's.
    """
    if runtime is not None:
        runtime_named(runtime)  # before the package is looked at
    opened = open_package(package)
    require_utf8(opened.path, "the package")
    row = RUNTIMES[runtime_named(opened.runtime(runtime))]
    try:
        found: TextRuntime = import_module(row.module).open_runtime(
            opened, threads=threads, rebuild_cache=rebuild_cache
        )
        return found
    except ModuleNotFoundError as error:
        raise EdgepackError(not_installed(error.name, row.extra)) from error
    except ImportError as error:
        raise broken_library(error) from error
