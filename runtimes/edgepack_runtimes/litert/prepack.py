"""The process that fills a cache entry of the LiteRT runtime: models as files of their own, and packed weights.

Run as ``python -m edgepack_runtimes.litert.prepack BUNDLE ROLE:OFFSET:SIZE... FOLDER``. LiteRT opens files, not parts
of files, and names of weights inside a packed file are numbers: it must never meet another model's.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from pathlib import Path
from typing import IO

from edgepack.errors import EdgepackError, PackageError
from edgepack.package.interface import DECODER
from edgepack.shown import shown
from edgepack.system.threads import available_cores
from edgepack_runtimes.litert.api import CompiledModel, CpuOptions, HardwareAccelerator, Options, cpu_environment
from edgepack_runtimes.native.log import captured_log

WEIGHTS = "decoder.xnnpack"
COPY_BYTES = 1 << 24
PART = re.compile(r"([a-z_]+):([0-9]{1,18}):([0-9]{1,18})")
# How a system says that it cannot copy between these two files by itself.
CANNOT_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


def file_name(role: str) -> str:
    """Name of a model's file in an entry."""
    return f"{role}.tflite"


def usable(threads: int | None) -> int:
    """Threads for LiteRT, which takes 0 for one thread and not for all."""
    return threads or available_cores()


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


def open_model(path: Path, threads: int | None, weights: Path | None = None) -> CompiledModel:
    """Compile one model for the CPU; with `weights`, the file of packed weights is used, or written if missing.

    Raises:
        PackageError: LiteRT cannot load it.
    """
    cpu = CpuOptions(num_threads=usable(threads), xnnpack_weight_cache_path=str(weights or ""))
    options = Options(hardware_accelerators=HardwareAccelerator.CPU, cpu_options=cpu)
    try:
        with captured_log() as log:
            try:
                return CompiledModel.from_file(str(path), environment=cpu_environment(), options=options)
            except RuntimeError as error:
                traceback.clear_frames(error.__traceback__)  # what they hold says good-bye
                raise
    except (RuntimeError, MemoryError) as error:
        raise PackageError(f"{path} cannot be loaded by LiteRT: {log.reason_of(error)}") from error


def parse_part(part: str, bundle: Path) -> tuple[str, int, int]:
    """Role, offset and size from ROLE:OFFSET:SIZE.

    Raises:
        PackageError: it is something else, or reaches beyond the end of `bundle`.
    """
    fields = PART.fullmatch(part)
    if fields is None:
        raise PackageError(f"{bundle}: expected ROLE:OFFSET:SIZE with a role of a-z and _, got {shown(part)}")
    role, offset, size = fields[1], int(fields[2]), int(fields[3])
    if offset + size > (end := bundle.stat().st_size):
        raise PackageError(f"{bundle}: {role} should end at byte {offset + size}, but the file has {end} bytes")
    return role, offset, size


def main() -> int:
    """Fill the folder that is the last argument."""
    bundle, *parts, folder = sys.argv[1:]
    try:
        for role, offset, size in [parse_part(part, Path(bundle)) for part in parts]:
            extract(Path(bundle), offset, size, Path(folder, file_name(role)))
        open_model(Path(folder, file_name(DECODER)), None, Path(folder, WEIGHTS))
    except (OSError, EdgepackError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - the parent reads the last line
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
