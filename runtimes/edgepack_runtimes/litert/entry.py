"""The files of a cache entry for LiteRT, and how one is opened; what writes them is the process in `prepack`."""

from __future__ import annotations

import traceback
from pathlib import Path

from edgepack.errors import PackageError
from edgepack.system.threads import available_cores
from edgepack_runtimes.litert.api import CompiledModel, CpuOptions, HardwareAccelerator, Options, cpu_environment
from edgepack_runtimes.native.log import captured_log

WEIGHTS = "decoder.xnnpack"
PREPACK = "edgepack_runtimes.litert.prepack"


def file_name(role: str) -> str:
    """Name of a model's file in an entry."""
    return f"{role}.tflite"


def usable(threads: int | None) -> int:
    """Threads for LiteRT, which takes 0 for one thread and not for all."""
    return threads or available_cores()


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
