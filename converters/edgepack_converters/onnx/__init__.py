"""ONNX converter: emits with onnx_ir, imports no torch."""

from edgepack_converters.onnx.emit import emit

__all__ = ["emit"]
