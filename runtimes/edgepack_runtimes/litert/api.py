"""What is used of ai_edge_litert, loaded so that LiteRT does not find its GPU library.

With every model, even one for the CPU alone, LiteRT 2.3.0 loads libLiteRtWebGpuAccelerator.so. On a core without LSE
atomics, such as that of a Raspberry Pi 4, that ends the process. It looks for it twice:

1. in the runtime folder of the environment that a model is opened in: `cpu_environment` has none;
2. by its bare name, from an environment that LiteRT makes for itself and nobody can give options to. The linker then
   looks into the folder that `LIBRARY`, whose code asks, was loaded from: `_load_from_nowhere` sees to that one.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

import ai_edge_litert

# LiteRT itself, which every extension module of the wheel links to. Its RUNPATH is $ORIGIN.
LIBRARY = "libpywrap_litert_common.so"


def _load_from_nowhere(library: Path) -> None:
    """Load `library` such that its own folder, as the linker sees it, is one that holds no library.

    The linker knows it by its SONAME from then on, so extension modules that need it get this one. Nothing changes
    where the library has been loaded already: then LiteRT finds what lies beside it.

    Raises:
        OSError: it does not exist, or the system has no /proc.
    """
    descriptor = os.open(library, os.O_RDONLY)
    try:
        ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    except OSError:
        os.close(descriptor)
        raise
    # Left open: the linker would take another file for this one if that got the same number and was loaded by it.


with suppress(OSError):  # then LiteRT loads as it always did
    _load_from_nowhere(Path(ai_edge_litert.__path__[0], LIBRARY))

# Only now: the modules below load the library.
from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, HardwareAccelerator, Options  # noqa: E402
from ai_edge_litert.environment import Environment  # noqa: E402
from ai_edge_litert.tensor_buffer import TensorBuffer  # noqa: E402

__all__ = ["CompiledModel", "CpuOptions", "HardwareAccelerator", "Options", "TensorBuffer", "cpu_environment"]


def cpu_environment() -> Environment:
    """An environment to open a model in, without a folder in which LiteRT would find a GPU library."""
    # Left out, it is the folder of the wheel. This is no folder, and nobody can make it one to put a library there.
    return Environment.create(runtime_path=os.devnull)
