"""Synthetic checkpoints: official names and shapes, plausible values, the same bytes for a seed, whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack import synth
from edgepack.checkpoint.folder import INDEX_FILE, open_checkpoint
from edgepack.errors import CheckpointError, EdgepackError, UnsupportedError
from edgepack.model.families import read_spec
from edgepack.synth import PRESETS, synthetic_shapes, write_synthetic_checkpoint

Config = dict[str, Any]


def tiny(model_type: str = "gemma3n") -> Config:
    """A small model with every kind of tensor: KV sharing, mixed widths, vocab larger than the per-layer vocab."""
    text: Config = {
        "model_type": "gemma3n_text",
        "vocab_size": 300,
        "vocab_size_per_layer_input": 290,
        "hidden_size": 64,
        "hidden_size_per_layer_input": 8,
        "num_hidden_layers": 5,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
        "intermediate_size": [128, 128, 96, 96, 128],
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "laurel_rank": 4,
        "final_logit_softcapping": 30.0,
        "bos_token_id": 2,
        "pad_token_id": 0,
    }
    if model_type == "gemma3n":
        return {"model_type": model_type, "eos_token_id": [1, 106], "text_config": text}
    if model_type == "gemma3n_text":
        return text | {"eos_token_id": [1, 106]}
    plain = {key: value for key, value in text.items() if key not in _ONLY_GEMMA3N}
    plain["final_logit_softcapping"] = None  # no multimodal Gemma 3 has one
    plain |= {"model_type": "gemma3_text", "intermediate_size": 128}
    return plain if model_type == "gemma3_text" else {"model_type": model_type, "text_config": plain}


_ONLY_GEMMA3N = {
    "vocab_size_per_layer_input",
    "hidden_size_per_layer_input",
    "num_kv_shared_layers",
    "activation_sparsity_pattern",
    "laurel_rank",
}


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def parameters(shapes: synth.Shapes, *, without: str = "\0") -> int:
    return sum(int(np.prod(shape)) for name, shape in shapes.items() if without not in name)


@pytest.mark.parametrize(
    ("preset", "tensors", "decoder"),
    # 30 and 35 layers of 24 tensors with their unused k/v ones, and 11 outside of layers.
    [("gemma-3n-e2b", 731, 1_905_495_648), ("gemma-3n-e4b", 851, None)],
)
def test_presets_have_the_published_size(preset: str, tensors: int, decoder: int | None) -> None:
    shapes = synthetic_shapes(PRESETS[preset])
    assert len(shapes) == tensors
    layers = 30 if preset == "gemma-3n-e2b" else 35
    assert shapes["model.language_model.embed_tokens.weight"] == (262400, 2048)
    assert shapes["model.language_model.embed_tokens_per_layer.weight"] == (262144, 256 * layers)
    in_decoder = parameters(shapes, without="embed_tokens")
    if decoder is not None:
        assert in_decoder == decoder
    else:
        assert 3.9e9 < in_decoder < 4.0e9


def test_presets_are_a_mapping_with_a_clear_end() -> None:
    assert list(PRESETS) == ["gemma-3n-e2b", "gemma-3n-e4b"]
    assert len(PRESETS) == 2
    assert "gemma-3n-e8b" not in PRESETS
    with pytest.raises(KeyError):
        PRESETS["../presets/gemma-3n-e2b"]
    assert PRESETS["gemma-3n-e2b"]["text_config"]["num_kv_shared_layers"] == 10
    assert PRESETS["gemma-3n-e4b"]["text_config"]["num_kv_shared_layers"] == 15


@pytest.mark.parametrize("preset", ["gemma-3n-e2b", "gemma-3n-e4b"])
def test_presets_match_transformers_name_by_name(preset: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = PRESETS[preset]
    text = transformers.Gemma3nTextConfig(**config["text_config"])
    assert text.rope_parameters["full_attention"]["rope_theta"] == 1e6
    assert text.rope_parameters["sliding_attention"]["rope_theta"] == 1e4
    with torch.device("meta"):
        state = transformers.Gemma3nForCausalLM(text).state_dict()
    expected = {
        name.replace("model.", "model.language_model.", 1): tuple(value.shape)
        for name, value in state.items()
        if name != "lm_head.weight"  # tied
    }
    shapes = synthetic_shapes(config)
    extra = {name: shapes.pop(name) for name in set(shapes) - set(expected)}
    assert shapes == expected
    shared = range(text.num_hidden_layers - text.num_kv_shared_layers, text.num_hidden_layers)
    at = "model.language_model.layers.{}.self_attn.{}.weight"
    assert extra == {
        at.format(layer, name): shape
        for layer in shared
        for name, shape in (("k_proj", (512, 2048)), ("v_proj", (512, 2048)), ("k_norm", (256,)))
    }


@pytest.mark.parametrize("model_type", ["gemma3n", "gemma3n_text", "gemma3_text"])
def test_transformers_loads_what_was_written(model_type: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    write_synthetic_checkpoint(tiny(model_type), tmp_path / "out")
    # The text model alone: the whole class would build a vision tower, which the checkpoint does not have.
    kind = transformers.Gemma3ForCausalLM if model_type == "gemma3_text" else transformers.Gemma3nForCausalLM
    model, info = kind.from_pretrained(tmp_path / "out", dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert not info["unexpected_keys"]
    logits = model(torch.tensor([[2, 5, 7, 11]])).logits
    assert torch.isfinite(logits).all()
    assert logits.std() > 0.01


@pytest.mark.parametrize(
    ("model_type", "prefix", "vector_mean"),
    [
        ("gemma3n", "model.language_model.", 1.0),
        ("gemma3n_text", "model.", 1.0),
        ("gemma3", "language_model.model.", 0.0),
        ("gemma3_text", "model.", 0.0),
    ],
)
def test_written_checkpoint_opens_with_official_names(
    model_type: str, prefix: str, vector_mean: float, tmp_path: Path
) -> None:
    config = tiny(model_type)
    write_synthetic_checkpoint(config, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["out"]
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert checkpoint.config == config
        assert {name: info.shape for name, info in checkpoint.tensors.items()} == synthetic_shapes(config)
        assert {info.dtype for info in checkpoint.tensors.values()} == {"BF16"}
        spec = read_spec(checkpoint)
        assert spec.names.prefix == prefix
        gate = checkpoint.read(f"{prefix}layers.0.mlp.gate_proj.weight")
        norm = checkpoint.read(f"{prefix}layers.0.input_layernorm.weight")
    assert gate.std() == pytest.approx(0.02, rel=0.05)
    assert abs(gate.mean()) < 0.002
    assert norm.mean() == pytest.approx(vector_mean, abs=0.05)
    assert 0.02 < norm.std() < 0.08


def test_generation_config_holds_the_stop_tokens(tmp_path: Path) -> None:
    write_synthetic_checkpoint(tiny(), tmp_path / "out")
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 2, "eos_token_id": [1, 106], "pad_token_id": 0}


def test_no_row_repeats_inside_or_across_tensors(tmp_path: Path) -> None:
    write_synthetic_checkpoint(tiny(), tmp_path / "out")
    rows: list[bytes] = []
    with open_checkpoint(tmp_path / "out") as checkpoint:
        for name, info in checkpoint.tensors.items():
            if len(info.shape) == 2 and info.shape[1] >= 32:
                rows += [row.tobytes() for row in checkpoint.read(name)]
    assert len(rows) > 2000
    assert len(set(rows)) == len(rows)


def test_the_block_wraps_without_repeating_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synth, "_BLOCK_VALUES", 251)  # a prime number above the number of rows, as the real one is
    weights = synth._Weights(0, tiny())
    values = np.concatenate(list(weights.pieces("w", (250, 8)))).reshape(250, 8)
    assert len({row.tobytes() for row in values}) == 250


def test_the_block_length_is_prime() -> None:
    length = synth._BLOCK_VALUES
    assert all(length % divisor for divisor in range(2, int(length**0.5) + 1))
    assert length > 262_400  # rows of the largest table


def test_bfloat16_is_rounded_to_nearest_even() -> None:
    bits = np.array([0x3F80_7FFF, 0x3F80_8000, 0x3F81_8000, 0x3F80_8001, 0xBF80_C000], np.uint32)
    assert synth._to_bfloat16(bits.view(np.float32)).tolist() == [0x3F80, 0x3F80, 0x3F82, 0x3F81, 0xBF81]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_synthetic_checkpoint(tiny(), tmp_path / name, seed=seed)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert digests(tmp_path / "a")["model.safetensors"] != digests(tmp_path / "c")["model.safetensors"]


def test_large_models_are_split_and_read_back_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_synthetic_checkpoint(tiny(), tmp_path / "one")
    monkeypatch.setattr(synth, "MAX_SHARD_BYTES", 30_000)
    write_synthetic_checkpoint(tiny(), tmp_path / "many")
    index = json.loads((tmp_path / "many" / INDEX_FILE).read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert len(shards) > 3
    assert index["metadata"]["total_size"] == 2 * parameters(synthetic_shapes(tiny()))
    with open_checkpoint(tmp_path / "one") as one, open_checkpoint(tmp_path / "many") as many:
        assert set(one.tensors) == set(many.tensors)
        for name in one.tensors:
            np.testing.assert_array_equal(one.read(name), many.read(name))
        held: dict[Path, list[int]] = {}
        for info in many.tensors.values():
            held.setdefault(info.shard, []).append(info.size_bytes)
    assert all(len(sizes) == 1 or sum(sizes) <= 30_000 for sizes in held.values())


def test_the_reference_library_reads_it_too(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    pytest.importorskip("torch")
    write_synthetic_checkpoint(tiny(), tmp_path / "out")
    name = "model.language_model.embed_tokens.weight"
    with (
        safetensors.safe_open(tmp_path / "out" / "model.safetensors", "pt") as file,
        open_checkpoint(tmp_path / "out") as checkpoint,
    ):
        assert set(file.keys()) == set(checkpoint.tensors)
        np.testing.assert_array_equal(file.get_tensor(name).float().numpy(), checkpoint.read(name))


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_synthetic_checkpoint(tiny(), tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    total = 2 * parameters(synthetic_shapes(tiny()))
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(EdgepackError, match="out: this already exists"):
        write_synthetic_checkpoint(tiny(), out)
    assert digests(out).keys() == {"mine"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_run_that_broke_off(error: BaseException, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise error

    with pytest.raises(EdgepackError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        write_synthetic_checkpoint(tiny(), tmp_path / "out", progress=stop)
    assert os.listdir(tmp_path) == []
    if isinstance(error, OSError):
        assert str(caught.value) == f"{tmp_path / 'out'}: cannot be written: No space left on device"
    write_synthetic_checkpoint(tiny(), tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_a_disk_that_is_too_small_is_refused_before_writing(tmp_path: Path) -> None:
    config = PRESETS["gemma-3n-e2b"]
    config["text_config"].update(vocab_size=1 << 24, vocab_size_per_layer_input=1 << 24)
    with pytest.raises(EdgepackError, match=r"the weights need .* GB, the disk has .* free"):
        write_synthetic_checkpoint(config, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def _without_hidden_size(config: Config) -> None:
    del config["text_config"]["hidden_size"]


def _of_unknown_type(config: Config) -> None:
    config["model_type"] = "llama"


def _with_an_object(config: Config) -> None:
    config["id2label"] = object()


@pytest.mark.parametrize(
    ("damage", "kind", "needle"),
    [
        (_without_hidden_size, CheckpointError, "config.json: key 'text_config.hidden_size' is missing"),
        (_of_unknown_type, UnsupportedError, "model_type 'llama' is not supported"),
        (_with_an_object, CheckpointError, "config.json: the config holds a value that JSON cannot express"),
    ],
)
def test_a_config_that_is_not_usable(
    damage: Callable[[Config], None], kind: type[EdgepackError], needle: str, tmp_path: Path
) -> None:
    config = tiny()
    damage(config)
    with pytest.raises(kind) as caught:
        write_synthetic_checkpoint(config, tmp_path / "out")
    assert needle in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "out.partial-999999999").mkdir()
    (tmp_path / "out.partial-999999999" / "model.safetensors").write_bytes(b"half")
    write_synthetic_checkpoint(tiny(), tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]
