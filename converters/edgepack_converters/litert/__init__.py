"""LiteRT: a `.litertlm` bundle of TensorFlow Lite models, emitted without a tracer and without torch.

It imports nothing by itself: the process that converts a tokenizer comes through here, and has to stay small.
"""
