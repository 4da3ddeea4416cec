"""The process that fills a cache entry of the LiteRT-LM runtime: one load, in which the engine packs its weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import litert_lm

from edgepack.errors import PackageError
from edgepack.package.folder import Package
from edgepack.package.interface import DECODER
from edgepack.system.threads import available_cores
from edgepack_runtimes.cache_fill import fill
from edgepack_runtimes.guards.litertlm import check_bundle
from edgepack_runtimes.native.log import captured_log


def open_engine(bundle: Path, cache: Path, threads: int | None) -> litert_lm.Engine:
    """Load a bundle on the CPU.

    Raises:
        PackageError: the engine refuses it.
    """
    try:
        with captured_log() as log:
            backend = litert_lm.Backend.CPU(thread_count=threads or available_cores())
            return litert_lm.Engine(str(bundle), backend=backend, cache_dir=str(cache), enable_benchmark=True)
    except RuntimeError as error:
        raise PackageError(f"{bundle} cannot be loaded by LiteRT-LM: {log.reason_of(error)}") from error


def main(arguments: Sequence[str]) -> int:
    """Check a package and pack it: see `edgepack_runtimes.cache_fill`."""

    def write_entry(package: Package, folder: Path) -> None:
        open_engine(package.file(DECODER), folder, None).close()

    return fill(check_bundle, write_entry, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
