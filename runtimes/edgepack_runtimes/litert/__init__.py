"""LiteRT: a bundle's graphs, run by its interpreter."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepack.package.folder import Package
    from edgepack_runtimes.litert.runtime import LitertRuntime


def open_runtime(package: Package, *, threads: int | None, rebuild_cache: bool) -> LitertRuntime:
    """Load an opened package: see `edgepack.loading.load`."""
    from edgepack_runtimes.litert.runtime import LitertRuntime

    return LitertRuntime(package, threads=threads, rebuild_cache=rebuild_cache)
