"""LiteRT-LM: a bundle, run by Google's engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack_runtimes.native.arm import require_lse_atomics

if TYPE_CHECKING:
    from edgepack.package.folder import Package
    from edgepack_runtimes.litert_lm.runtime import LitertLmRuntime


def open_runtime(package: Package, *, threads: int | None, rebuild_cache: bool) -> LitertLmRuntime:
    """Load an opened package: see `edgepack.loading.load`."""
    require_lse_atomics()  # before the library, which would end the process
    from edgepack_runtimes.litert_lm.runtime import LitertLmRuntime

    return LitertLmRuntime(package, threads=threads, rebuild_cache=rebuild_cache)
