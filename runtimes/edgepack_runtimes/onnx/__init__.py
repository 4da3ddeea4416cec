"""ONNX Runtime: a package's graphs, over caches bound in place."""
