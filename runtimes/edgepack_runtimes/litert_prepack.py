"""The process that fills a cache entry of the LiteRT runtime: models as files of their own, and packed weights.

Run as ``python -m edgepack_runtimes.litert_prepack BUNDLE ROLE:OFFSET:SIZE... FOLDER``. LiteRT opens files, not parts
of files, and names of weights inside a packed file are numbers: it must never meet another model's.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

DECODER = "decoder"
WEIGHTS = "decoder.xnnpack"
COPY_BYTES = 1 << 24


def file_name(role: str) -> str:
    """Name of a model's file in an entry."""
    return f"{role}.tflite"


def usable(threads: int | None) -> int:
    """Threads for LiteRT, which takes 0 for one thread and not for all."""
    return threads or os.cpu_count() or 1


def extract(bundle: Path, offset: int, size: int, out: Path) -> None:
    """Copy `size` bytes of `bundle` to a new file; where the file system can, both share them."""
    with bundle.open("rb") as source, out.open("xb") as target:
        while size:
            count = os.copy_file_range(source.fileno(), target.fileno(), min(size, COPY_BYTES), offset)
            if count == 0:
                raise OSError(f"{bundle} ends before byte {offset + size}")
            offset, size = offset + count, size - count


def main() -> int:
    """Fill the folder that is the last argument."""
    from edgepack.errors import EdgepackError
    from edgepack_runtimes.litert import open_model

    bundle, *parts, folder = sys.argv[1:]
    try:
        for part in parts:
            role, offset, size = part.split(":")
            extract(Path(bundle), int(offset), int(size), Path(folder, file_name(role)))
        open_model(Path(folder, file_name(DECODER)), None, Path(folder, WEIGHTS))
    except (OSError, EdgepackError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - the parent reads the last line
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
