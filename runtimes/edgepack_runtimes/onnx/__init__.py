"""ONNX Runtime: a package's graphs, over caches bound in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepack.package.folder import Package
    from edgepack_runtimes.onnx.runtime import OnnxRuntime


def open_runtime(package: Package, *, threads: int | None, rebuild_cache: bool) -> OnnxRuntime:
    """Load an opened package: see `edgepack.loading.load`."""
    from edgepack_runtimes.onnx.runtime import OnnxRuntime

    return OnnxRuntime(package, threads=threads, rebuild_cache=rebuild_cache)
