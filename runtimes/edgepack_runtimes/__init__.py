"""Run a package: a room for each runtime, over the contracts of `base` and the loop of `generation`.

Importing this package loads neither a backend nor a tokenizer.
"""

from __future__ import annotations

from edgepack.text.codec import StreamDecoder, TextCodec
from edgepack_runtimes.base import TextRuntime, TokenRuntime
from edgepack_runtimes.generation import Generation, GenerationStats, TextGeneration
from edgepack_runtimes.sampling import GREEDY, Sampler, SamplingParams

__all__ = [
    "GREEDY",
    "Generation",
    "GenerationStats",
    "Sampler",
    "SamplingParams",
    "StreamDecoder",
    "TextCodec",
    "TextGeneration",
    "TextRuntime",
    "TokenRuntime",
]
