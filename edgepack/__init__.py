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
    from edgepack.api import SamplingParams, export, load, plan, validate

__all__ = ["EdgepackError", "SamplingParams", "__version__", "export", "load", "plan", "validate"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("edgepack.api"), name)
    raise AttributeError(f"module 'edgepack' has no attribute {shown(name)}")


def __dir__() -> list[str]:
    # What comes on first use belongs in the list; what this file itself imported does not.
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
