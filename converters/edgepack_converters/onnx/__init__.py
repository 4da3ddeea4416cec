"""ONNX: emitted with onnx_ir, without torch."""
