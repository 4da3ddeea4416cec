"""The process that fills a cache entry of the LiteRT-LM runtime: one load, in which the engine packs its weights.

Run as ``python -m edgepack_runtimes.litert_lm.prepack BUNDLE FOLDER``.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    """Fill the folder that is the last argument."""
    from edgepack.errors import EdgepackError
    from edgepack_runtimes.litert_lm.runtime import open_engine

    bundle, folder = sys.argv[1:]
    try:
        open_engine(Path(bundle), Path(folder), None).close()
    except (OSError, EdgepackError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - the parent reads the last line
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
