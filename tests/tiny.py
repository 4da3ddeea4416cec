"""Tiny random checkpoints that exercise what breaks: window shorter than the sequence, KV sharing, mixed widths,
sparsity on and off, one and several KV heads, a vocabulary larger than the per-layer one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Gemma3ForCausalLM, Gemma3nForCausalLM, Gemma3nTextConfig, Gemma3TextConfig

KINDS = {"s": "sliding_attention", "f": "full_attention"}

GEMMA3N: dict[str, dict[str, Any]] = {
    "shared": {
        "hidden_size": 64,
        "intermediate_size": [128, 96, 128, 64, 128, 96, 64, 128],
        "num_hidden_layers": 8,
        "layer_types": [KINDS[c] for c in "ssfssfsf"],
        "num_kv_shared_layers": 3,
        "activation_sparsity_pattern": [0.95, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
    "unshared_one_kv_head": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "layer_types": [KINDS[c] for c in "sfsf"],
        "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.0, 0.9, 0.0, 0.0],
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "altup_correct_scale": False,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
}
GEMMA3: dict[str, dict[str, Any]] = {
    "gemma3": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "layer_types": [KINDS[c] for c in "ssfs"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "query_pre_attn_scalar": 24,
        "final_logit_softcapping": None,
    },
}
COMMON: dict[str, Any] = {
    "sliding_window": 8,
    "max_position_embeddings": 128,
    "vocab_size": 104,
    "attn_implementation": "eager",
}


def build(name: str) -> Any:
    """A randomly initialised Transformers model, float32, evaluation mode."""
    torch.manual_seed(0)
    if name in GEMMA3:
        model: Any = Gemma3ForCausalLM(Gemma3TextConfig(**COMMON, **GEMMA3[name]))
    else:
        sizes = {"vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 16, "laurel_rank": 8}
        model = Gemma3nForCausalLM(Gemma3nTextConfig(**COMMON, **sizes, **GEMMA3N[name]))
    for parameter_name, parameter in model.named_parameters():
        # Initial norms of one and zero scales hide mistakes; wider weights make every branch matter.
        spread = 0.3 if parameter.dim() == 1 else 0.12
        centre = 1.0 if parameter.dim() == 1 and name not in GEMMA3 else 0.0
        if "coefs" in parameter_name:
            spread = 0.5
        torch.nn.init.normal_(parameter, centre, spread)
    return model.eval()


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Write the tiny checkpoint `name` to `folder` and return the float32 model with the stored weights."""
    model = build(name).to(dtype)
    model.save_pretrained(folder)
    return model.float()
