"""The process that makes a cache entry: it looks at all of a package first, so that a load need not.

Run as ``python -m edgepack_runtimes.RUNTIME.prepack PACKAGE FINGERPRINT [FOLDER]``; without a folder it only checks.
What checking and packing need, and what a hostile file does to a parser, stays away from the process that runs the
model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from edgepack.errors import EdgepackError, PackageError
from edgepack.package.folder import Package, open_package
from edgepack.system.libraries import native_reason

# Exit codes: the package is not what it should be, and what was printed says all; or packing failed.
REFUSED, FAILED = 3, 1


def fill(check: Callable[[Package], None], pack: Callable[[Package, Path], None], arguments: Sequence[str]) -> int:
    """Hash and check a package, then pack it where a folder is named; what is wrong is the last line of stderr.

    Args:
        check: raises where a graph is not what the manifest says, before anything native opens one.
        pack: writes the entry.
        arguments: folder of the package, its fingerprint as whoever asks has seen it, and the folder to fill.
    """
    path, fingerprint, *folders = arguments
    try:
        package = open_package(path, verify=True)
        if package.fingerprint() != fingerprint:
            raise PackageError(f"{path} was changed while it was loaded: load it again")
        check(package)
    except EdgepackError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the parent reads the last line
        return REFUSED
    try:
        for folder in folders:
            pack(package, Path(folder))
    except Exception as error:  # noqa: BLE001 - onnxruntime raises its own types without a common base
        print(native_reason(error), file=sys.stderr)  # noqa: T201 - as above
        return FAILED
    return 0
