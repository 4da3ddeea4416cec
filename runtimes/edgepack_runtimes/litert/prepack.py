"""The process that fills a cache entry of the LiteRT runtime: models as files of their own, and packed weights.

LiteRT opens files, not parts of files, and names of weights inside a packed file are numbers: it must never meet those
of another model.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from edgepack.package.folder import Package
from edgepack.package.interface import DECODER
from edgepack_runtimes.cache_fill import fill
from edgepack_runtimes.guards.litertlm import check_bundle
from edgepack_runtimes.litert.entry import WEIGHTS, file_name, open_model

COPY_BYTES = 1 << 24
# How a system says that it cannot copy between these two files by itself.
CANNOT_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


def extract(bundle: Path, offset: int, size: int, out: Path) -> None:
    """Copy `size` bytes of `bundle` to a new file; where the file system can, both share them."""
    with bundle.open("rb", buffering=0) as source, out.open("xb", buffering=0) as target:
        while size:
            count = _copy(source, target, min(size, COPY_BYTES), offset)
            if count == 0:
                raise OSError(f"{bundle} ends before byte {offset + size}")
            offset, size = offset + count, size - count


def _copy(source: IO[bytes], target: IO[bytes], size: int, offset: int) -> int:
    """Append up to `size` bytes to `target`: how many, and 0 only at the end of `source`."""
    copy = getattr(os, "copy_file_range", None)  # Linux has it, macOS does not
    try:
        count = int(copy(source.fileno(), target.fileno(), size, offset)) if copy else 0
    except OSError as error:
        if error.errno not in CANNOT_COPY:
            raise
        count = 0
    # Some file systems answer 0 where there is more, so that is asked again.
    return count or os.write(target.fileno(), os.pread(source.fileno(), size, offset))


def write_entry(package: Package, folder: Path) -> None:
    """Write the models of `package` and the packed weights of its decoder into `folder`.

    Raises:
        PackageError: LiteRT cannot load it.
        OSError: a file cannot be written.
    """
    for role, (offset, size) in package.manifest.spans.items():
        extract(package.file(role), offset, size, folder / file_name(role))
    open_model(folder / file_name(DECODER), None, folder / WEIGHTS)


def main(arguments: Sequence[str]) -> int:
    """Check a package and pack it: see `edgepack_runtimes.cache_fill`."""
    return fill(check_bundle, write_entry, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
