"""ONNX Runtime with its telemetry off. Whatever of edgepack computes with it imports it from here.

As it is imported, it writes a device id and a database of events under the user's cache folder (1.32 on Linux), and it
sends them to its maker.
"""

from __future__ import annotations

import os

# The library reads this while it is imported, so the import stands below it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort

# Another library of the same process may have imported it before us, with telemetry on.
ort.disable_telemetry_events()

__all__ = ["ort"]
