"""ONNX Runtime with its telemetry off. Whatever of edgepack computes with it imports it from here.

As it is imported, it writes a device id and a database of events under the user's cache folder (1.32 on Linux), and it
sends them to its maker. The library reads the variable while it is loaded, so it is set before.
"""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import, which is why that stands below

import onnxruntime as ort

# Another library of the same process may have imported it before us, with telemetry on.
ort.disable_telemetry_events()

__all__ = ["ort"]
