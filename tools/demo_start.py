"""The starting values of the demo checkpoint (`train_demo.py`).

Two things help the small model to look back in its text within two million tokens. Without them, and with the
starting values of Transformers, 1.4 million tokens gave perplexity 1.83 and grammar, but any name and any country:
"What is the capital of France?" "The capital of Germany is Berlin." (How much each change contributes was not
measured one by one.)

- It starts with the rough draft of a copying circuit (`draft_copying`): two heads of layer 0 look at the previous
  token, two heads of layer 2 look for the place where the present token stood before. Training does the rest.
- A first stage of short rows in which 30 % of the documents are words to be repeated.

The start differs from Transformers' defaults where those never learn, or learn slowly, at this size:

- matrices start at M**-0.5, not 0.02: most are followed by a norm, so 0.02 would only make the first steps too wild.
- `correct_output_scale` starts at 1: at 0 the gate of the per-layer input sees nothing but zeros.
- the AltUp router divides by M after its norm, so its weights start at M**0.5 / 2, which lets the routes differ.
- the norms after attention, FFN, LAuReL and per-layer input start at 0.3: at 1 the 8 layers drown the embedding.
- q and k norms start at 0.5: the attention scale is 1, and logits of +-64 at the start saturate the softmax.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig


def initialise(model: Gemma3nForCausalLM) -> None:
    """Set the starting values that the head of this file explains."""
    config = model.config
    with torch.no_grad():
        model.model.embed_tokens_per_layer.weight.mul_(0.7)
        for name, weight in model.named_parameters():
            if ".post_" in name:
                weight.fill_(0.3)
        for layer in model.model.layers:
            layer.altup.correct_output_scale.fill_(1.0)
            layer.altup.modality_router.weight.normal_(std=config.hidden_size**0.5 / 2)
            layer.altup.prediction_coefs.weight.normal_(std=0.1)
            layer.self_attn.q_norm.weight.fill_(0.5)
            if not layer.self_attn.is_kv_shared_layer:
                layer.self_attn.k_norm.weight.fill_(0.5)
        model.model.embed_tokens.weight[:, 0] = 5 * config.initializer_range
        draft_copying(model.model.layers[0].self_attn, model.model.layers[2].self_attn, config)


def draft_copying(first: Any, second: Any, config: Gemma3nTextConfig) -> None:
    """Let the heads 0 and 1 (they share KV head 0) of `first` see the previous token, and those of `second` its like.

    Embedding column 0 is the same for all tokens; through it, six fast rotary pairs of q and k meet one step apart.
    What that head reads through `reads` it writes through `writes`; `second` compares the reading of the present token
    with that writing, in the slow rotary pairs, which turn little over a row, and passes on the token found there.
    """
    dim, half, fast, slow = config.head_dim, config.head_dim // 2, 6, 10
    angles = torch.tensor([10_000.0 ** (-pair / half) for pair in range(fast)])
    steady = torch.cat([torch.arange(slow, half), torch.arange(half + slow, dim)])
    reads, writes = (2 * torch.linalg.qr(torch.randn(config.hidden_size, config.hidden_size))[0] for _ in range(2))
    reads, writes = reads[: len(steady)], writes[: len(steady)]
    reads[:, 0], writes[:, 0] = 0, 0
    first.k_proj.weight[:fast, 0] += 3
    first.v_proj.weight[: len(steady)] = reads
    second.q_proj.weight[: 2 * dim] *= 0.2
    second.k_proj.weight[:dim] *= 0.2
    second.k_proj.weight[steady] = writes
    second.v_proj.weight[: len(steady)] = reads
    for head in (0, dim):
        first.q_proj.weight[head : head + fast, 0] += 3 * torch.cos(angles)
        first.q_proj.weight[head + half : head + half + fast, 0] -= 3 * torch.sin(angles)
        first.o_proj.weight[:, head : head + len(steady)] = writes.T
        second.q_proj.weight[head + steady] = reads
        second.o_proj.weight[:, head : head + len(steady)] = reads.T
