"""The process that fills a cache entry of the LiteRT-LM runtime: one load, in which the engine packs its weights.

Run as ``python -m edgepack_runtimes.litert_lm.prepack BUNDLE FOLDER``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import litert_lm

from edgepack.errors import EdgepackError, PackageError
from edgepack.system.threads import available_cores
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


def main() -> int:
    """Fill the folder that is the last argument."""
    bundle, folder = sys.argv[1:]
    try:
        open_engine(Path(bundle), Path(folder), None).close()
    except (OSError, EdgepackError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - the parent reads the last line
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
