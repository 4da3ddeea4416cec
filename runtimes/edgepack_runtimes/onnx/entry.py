"""The files of a cache entry for ONNX Runtime, apart from what writes them: that needs `onnx`, which no load does."""

from __future__ import annotations

# Full-length caches, window-sized ones on sliding layers, and the weights of both.
FULL, WINDOW, DATA = "decoder.onnx", "decoder_window.onnx", "decoder.onnx.data"
PREPACK = "edgepack_runtimes.onnx.prepack"
