"""edgepack: put Gemma 3n on a phone or a Raspberry Pi and know that it fits.

The functions of the Python interface are loaded on first use, so that ``import edgepack`` loads no framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgepack.errors import EdgepackError
from edgepack.shown import shown
from edgepack.version import __version__

if TYPE_CHECKING:
    from edgepack.api import SamplingParams, calibrate, export, load, mix, plan, sensitivity, validate

# Each name comes from its own module: who loads a package on a small device does not import what validates.
_HOMES = {
    "SamplingParams": "edgepack_runtimes.sampling",
    "calibrate": "edgepack.calibration.run",
    "export": "edgepack.exporting",
    "load": "edgepack.loading",
    "mix": "edgepack.api",
    "plan": "edgepack.api",
    "sensitivity": "edgepack.api",
    "validate": "edgepack.api",
}
__all__ = [
    "EdgepackError",
    "SamplingParams",
    "__version__",
    "calibrate",
    "export",
    "load",
    "mix",
    "plan",
    "sensitivity",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'edgepack' has no attribute {shown(name)}")


def __dir__() -> list[str]:
    # What comes on first use belongs in the list; what this file itself imported does not.
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
