"""What is mutated: small checkpoints of both families with all the files that one may have, and packages of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgepack
from edgepack.checkpoint.folder import INDEX_FILE, SINGLE_FILE
from edgepack.synth import write_synthetic_checkpoint
from tests.support.tokenizer_packages import write_package

SLIDING, FULL = "sliding_attention", "full_attention"
ROPES = {
    FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
}
COMMON: dict[str, Any] = {
    "vocab_size": 408,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "sliding_window": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "bos_token_id": 2,
    "eos_token_id": [1, 5],
    "pad_token_id": 0,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "use_cache": True,
}
GEMMA3N = COMMON | {
    "model_type": "gemma3n_text",
    "architectures": ["Gemma3nForCausalLM"],
    "vocab_size_per_layer_input": 400,
    "hidden_size_per_layer_input": 32,
    "laurel_rank": 8,
    "intermediate_size": [64, 32, 64, 64],
    "num_kv_shared_layers": 2,
    "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
    "altup_num_inputs": 4,
    "altup_active_idx": 0,
    "altup_coef_clip": 120.0,
    "altup_correct_scale": True,
    "final_logit_softcapping": 30.0,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "rope_scaling": None,
}
GEMMA3 = COMMON | {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "intermediate_size": 64,
    "query_pre_attn_scalar": 32,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "tie_word_embeddings": True,
    "rope_parameters": ROPES,
}


def _nested(model_type: str, text: dict[str, Any]) -> dict[str, Any]:
    outer = {key: text[key] for key in ("bos_token_id", "eos_token_id")}
    return outer | {"model_type": model_type, "text_config": text, "vision_config": {"hidden_size": 8}}


CONFIGS = {
    "gemma3n": GEMMA3N,
    "gemma3": GEMMA3,
    "gemma3n_multimodal": _nested("gemma3n", GEMMA3N),
    "gemma3_multimodal": _nested("gemma3", GEMMA3),
}
# Few positions and no tables but the per-layer ones: an export of it takes a tenth of a second.
CONTEXT = 64


@dataclass(frozen=True)
class Bases:
    """Folders that cases copy.

    Attributes:
        checkpoints: by name; every other one has its weights in shards.
        bare: a checkpoint without tokenizer and template, whose .litertlm is quickly made.
        packages: by backend and recipe.
        scratch: a folder for cases.
    """

    checkpoints: dict[str, Path]
    bare: Path
    packages: dict[str, Path]
    plan: Path
    scratch: Path


def make_bases(folder: Path) -> Bases:
    """Write all of them into `folder`; some seconds."""
    checkpoints = {}
    for number, (name, config) in enumerate(CONFIGS.items()):
        checkpoints[name] = folder / name
        write_synthetic_checkpoint(config, folder / name, seed=number)
        write_package(folder / name)
        _add_texts(folder / name)
        if number % 2:
            _split(folder / name)
    bare = folder / "bare"
    write_synthetic_checkpoint(GEMMA3N, bare)
    packages = {}
    for to, recipe, source in (
        ("onnx", "int4", "gemma3n"),
        ("onnx", "fp32", "gemma3_multimodal"),
        ("litert", "int4", "gemma3n"),
        ("litert", "int8", "gemma3"),
    ):
        out = folder / f"package-{to}-{recipe}"
        made = edgepack.export(checkpoints[source], to=to, out=out, recipe=recipe, context=CONTEXT, threads=1)
        packages[f"{to} {recipe}"] = made.package.path
    plan = folder / "plan.json"
    plan.write_text(edgepack.plan(bare, context=CONTEXT, target="1GB").model_dump_json(indent=1), "utf-8")
    scratch = folder / "scratch"
    scratch.mkdir()
    return Bases(checkpoints, bare, packages, plan, scratch)


def _add_texts(folder: Path) -> None:
    """The files that checkpoints have beside weights and tokenizer."""
    template = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))["chat_template"]
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    tokens = {"bos_token": "<bos>", "eos_token": {"content": "<eos>", "lstrip": False}, "unk_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens), "utf-8")
    generation = {"bos_token_id": 2, "eos_token_id": [1, 5], "do_sample": True, "top_k": 64, "temperature": 1.0}
    (folder / "generation_config.json").write_text(json.dumps(generation), "utf-8")


def _split(folder: Path) -> None:
    """Two shards and an index in place of one file."""
    single = folder / SINGLE_FILE
    data = single.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = {key: value for key, value in json.loads(data[8:start]).items() if key != "__metadata__"}
    weight_map = {}
    for number, half in enumerate((list(header)[::2], list(header)[1::2]), start=1):
        name, entries, parts, end = f"model-{number:05d}-of-00002.safetensors", {}, [], 0
        for key in half:
            begin, stop = header[key]["data_offsets"]
            parts.append(data[start + begin : start + stop])
            entries[key] = header[key] | {"data_offsets": [end, end + stop - begin]}
            end += stop - begin
        text = json.dumps(entries).encode()
        (folder / name).write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
        weight_map |= dict.fromkeys(half, name)
    single.unlink()
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), "utf-8")


def discard(folder: Path) -> None:
    """Remove what a case left, links and pipes too."""
    shutil.rmtree(folder, ignore_errors=True)
