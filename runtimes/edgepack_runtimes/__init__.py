"""Run a package: one file a backend, over the shared loop of `base.py`.

Code organization:
    base.py      the `Runtime` contract and the generation loop: token ids or text, statistics, why it stopped
    sampling.py  from logits to the next token id: penalty, temperature, top-k, top-p, seed; the same on every machine
    text.py      tokenizer, chat template, streaming detokenizer, stop tokens of a package folder

Importing this package loads neither a backend nor a tokenizer.
"""

from __future__ import annotations

from edgepack.text.codec import StreamDecoder, TextCodec
from edgepack_runtimes.base import Generation, GenerationStats, Runtime, TextGeneration
from edgepack_runtimes.sampling import GREEDY, Sampler, SamplingParams

__all__ = [
    "GREEDY",
    "Generation",
    "GenerationStats",
    "Runtime",
    "Sampler",
    "SamplingParams",
    "StreamDecoder",
    "TextCodec",
    "TextGeneration",
]
