"""Tiny random checkpoints that exercise what breaks: window shorter than the sequence, KV sharing, mixed widths,
sparsity on and off, one and several KV heads, a vocabulary larger than the per-layer one, tied and untied heads."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file
from transformers import Gemma3ForCausalLM, Gemma3nForCausalLM, Gemma3nTextConfig, Gemma3TextConfig

import edgepack
from edgepack.package.folder import Package

FloatArray = npt.NDArray[np.float32]
KINDS = {"s": "sliding_attention", "f": "full_attention"}
VOCAB, PLE_VOCAB, WINDOW, CONTEXT = 104, 96, 8, 128

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
    # Another active stream and stream count, untied head, and a softcap low enough to bend every logit.
    "untied": {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "layer_types": [KINDS[c] for c in "sfs"],
        "num_kv_shared_layers": 1,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0],
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "altup_num_inputs": 3,
        "altup_active_idx": 1,
        "final_logit_softcapping": 2.0,
        "tie_word_embeddings": False,
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
    "gemma3_untied": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "layer_types": [KINDS[c] for c in "sf"],
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "final_logit_softcapping": 2.0,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
}
NAMES = (*GEMMA3N, *GEMMA3)
COMMON: dict[str, Any] = {
    "sliding_window": WINDOW,
    "max_position_embeddings": CONTEXT,
    "vocab_size": VOCAB,
    "attn_implementation": "eager",
}


def config(name: str) -> Any:
    """The Transformers config of the tiny checkpoint `name`."""
    if name in GEMMA3:
        return Gemma3TextConfig(**COMMON, **GEMMA3[name])
    sizes: dict[str, Any] = {
        "vocab_size_per_layer_input": PLE_VOCAB,
        "hidden_size_per_layer_input": 16,
        "laurel_rank": 8,
    }
    return Gemma3nTextConfig(**COMMON, **sizes, **GEMMA3N[name])


def build(name: str, changed: Any = None) -> Any:
    """A randomly initialised Transformers model, float32, evaluation mode; `changed` replaces its config."""
    torch.manual_seed(0)
    values = changed or config(name)
    model: Any = Gemma3ForCausalLM(values) if name in GEMMA3 else Gemma3nForCausalLM(values)
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
    build(name).to(dtype).save_pretrained(folder)
    # Read again: a cast to bfloat16 and back would also round rotary frequencies and embedding scales.
    kind: Any = Gemma3ForCausalLM if name in GEMMA3 else Gemma3nForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def reference(model: Any, ids: npt.NDArray[np.int64]) -> FloatArray:
    """Logits [B, S, V] of Transformers for `ids` [B, S]."""
    with torch.no_grad():
        logits: FloatArray = model(torch.tensor(ids)).logits.numpy()
    return logits


def token_ids(count: int, batch: int = 1, seed: int = 0) -> npt.NDArray[np.int64]:
    """Random ids [B, S] of the whole vocabulary, special tokens left out."""
    return np.random.default_rng(seed).integers(3, VOCAB, size=(batch, count))


@dataclass(frozen=True)
class Tiny:
    """A tiny checkpoint and what came of it."""

    model: Any
    checkpoint: Path
    package: Package


@dataclass
class TinyPackages:
    """Tiny checkpoints and their packages, each made when it is first asked for."""

    folder: Path
    made: dict[tuple[str, str], Tiny] = field(default_factory=dict)

    def __call__(
        self,
        name: str,
        recipe: str = "fp32",
        dtype: torch.dtype = torch.float32,
        to: str = "onnx",
        prefill: tuple[int, ...] | None = None,
    ) -> Tiny:
        key = (f"{name}-{str(dtype).removeprefix('torch.')}", f"{recipe}-{to}-{prefill}")
        if key not in self.made:
            checkpoint = self.folder / key[0]
            known = next((tiny for (made, _), tiny in self.made.items() if made == key[0]), None)
            model = known.model if known else save(name, checkpoint, dtype)
            out = self.folder / "-".join(key)
            package = edgepack.export(
                checkpoint, to=to, out=out, recipe=recipe, context=CONTEXT, prefill=prefill, threads=1
            ).package
            self.made[key] = Tiny(model, checkpoint, package)
        return self.made[key]


def edit_tensors(source: Path, target: Path, edit: Any, change_config: Any = lambda config: config) -> Path:
    """Write a copy of checkpoint `source` to `target`: `edit` maps the dict of tensors, `change_config` the config."""
    target.mkdir()
    tensors = edit(load_file(source / "model.safetensors"))
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, target / "model.safetensors")
    values = json.loads((source / "config.json").read_text("utf-8"))
    (target / "config.json").write_text(json.dumps(change_config(values)), "utf-8")
    return target


def as_multimodal(source: Path, target: Path) -> Path:
    """The same weights under the names of an official multimodal checkpoint, text config nested, towers beside."""

    def rename(tensors: dict[str, FloatArray]) -> dict[str, FloatArray]:
        named = {key.replace("model.", "model.language_model.", 1): value for key, value in tensors.items()}
        named["model.vision_tower.conv.weight"] = np.zeros((2, 3), np.float32)
        named["model.embed_vision.embedding.weight"] = np.zeros((2, 3), np.float32)
        return named

    def nest(values: dict[str, Any]) -> dict[str, Any]:
        kept = {"bos_token_id": values["bos_token_id"], "eos_token_id": values["eos_token_id"]}
        return {"model_type": "gemma3n", "text_config": values, "vision_config": {"hidden_size": 8}, **kept}

    return edit_tensors(source, target, rename, nest)


def with_old_rope_keys(values: dict[str, Any]) -> dict[str, Any]:
    """`values` of a config as they were written before `rope_parameters` existed."""
    new = dict(values)
    ropes = new.pop("rope_parameters")
    full = ropes["full_attention"]
    scaled = full["rope_type"] != "default"
    new["rope_theta"] = full["rope_theta"]
    new["rope_local_base_freq"] = ropes["sliding_attention"]["rope_theta"]
    new["rope_scaling"] = {"rope_type": full["rope_type"], "factor": full["factor"]} if scaled else None
    return new
