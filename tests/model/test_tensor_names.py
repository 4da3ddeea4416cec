"""Config against tensors: the head and the embedding that Transformers 5 computes with, and nothing left unread."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
)

import edgepack
from edgepack.checkpoint.folder import INDEX_FILE, open_checkpoint
from edgepack.errors import CheckpointError
from edgepack.model.families import read_spec, require_tensors
from edgepack.model.spec import ModelSpec
from tests.support import tiny
from tests.support.tiny import FloatArray, TinyPackages, edit_tensors
from tests.support.tolerances import FP32_LOGITS, LITERT_FP32_LOGITS

Tensors = dict[str, FloatArray]
Edit = Callable[[Tensors], Tensors]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
IDS = tiny.token_ids(3 * tiny.WINDOW, seed=5)


def other_head(tensors: Tensors) -> Tensors:
    """The embedding with other rows: a head that a fine-tune trained apart."""
    return {**tensors, HEAD: tensors[EMBEDDING][::-1] * 0.7}


def same_head(tensors: Tensors) -> Tensors:
    return {**tensors, HEAD: tensors[EMBEDDING].copy()}


def nearly_the_same_head(tensors: Tensors) -> Tensors:
    head = tensors[EMBEDDING].copy()
    head[-1, -1] += 3.0
    return {**tensors, HEAD: head}


def head_alone(tensors: Tensors) -> Tensors:
    return {**{name: value for name, value in tensors.items() if name != EMBEDDING}, HEAD: tensors[EMBEDDING]}


def tied(value: bool | None) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: {**config, "tie_word_embeddings": value}


def spec_of(folder: Path) -> ModelSpec:
    with open_checkpoint(folder) as checkpoint:
        spec = read_spec(checkpoint)
        require_tensors(checkpoint, spec)
    return spec


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        spec_of(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def logits_of(folder: Path, out: Path, to: str) -> FloatArray:
    edgepack.export(folder, to=to, out=out, recipe="fp32", context=tiny.CONTEXT, threads=1)
    with edgepack.load(out, threads=1) as model:
        return np.asarray(model.logits(IDS[0].tolist()))


def transformers_logits(folder: Path) -> FloatArray:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    return tiny.reference(model, IDS)[0]


# -- the head of a text model


@pytest.mark.parametrize("name", ["shared", "gemma3"])
@pytest.mark.parametrize(
    ("config", "edit", "is_tied"),
    [
        (True, other_head, False),
        (True, nearly_the_same_head, False),
        (True, same_head, True),
        (True, head_alone, True),
        (False, other_head, False),
    ],
)
def test_the_logits_are_those_of_transformers(
    name: str, config: bool, edit: Edit, is_tied: bool, tiny_packages: TinyPackages, tmp_path: Path
) -> None:
    folder = edit_tensors(tiny_packages(name).checkpoint, tmp_path / "ckpt", edit, tied(config))
    assert spec_of(folder).tied_head == is_tied
    np.testing.assert_allclose(
        logits_of(folder, tmp_path / "out", "onnx"), transformers_logits(folder), rtol=0, atol=FP32_LOGITS
    )


@pytest.mark.parametrize("edit", [other_head, head_alone])
def test_litert_has_the_same_head(edit: Edit, tiny_packages: TinyPackages, tmp_path: Path) -> None:
    folder = edit_tensors(tiny_packages("shared").checkpoint, tmp_path / "ckpt", edit, tied(True))
    np.testing.assert_allclose(
        logits_of(folder, tmp_path / "out", "litert"), transformers_logits(folder), rtol=0, atol=LITERT_FP32_LOGITS
    )


@pytest.mark.parametrize(
    ("edit", "config", "told"), [(other_head, True, 1), (other_head, False, 0), (same_head, True, 0)]
)
def test_a_config_that_the_file_overrules_is_told(
    edit: Edit, config: bool, told: int, tiny_packages: TinyPackages, tmp_path: Path
) -> None:
    folder = edit_tensors(tiny_packages("gemma3").checkpoint, tmp_path / "ckpt", edit, tied(config))
    done = edgepack.export(folder, out=tmp_path / "out", recipe="int8", context=tiny.CONTEXT, threads=1)
    assert sum(HEAD in note and "tie_word_embeddings should say false" in note for note in done.notes) == told


@pytest.mark.parametrize("value", [False, None])
def test_a_head_that_is_not_tied_has_to_be_there(
    value: bool | None, tiny_packages: TinyPackages, tmp_path: Path
) -> None:
    # Transformers would go on with random numbers.
    folder = edit_tensors(tiny_packages("gemma3").checkpoint, tmp_path / "ckpt", dict, tied(value))
    assert f"tensor '{HEAD}' is missing" in refused(folder)


def test_an_embedding_that_is_not_tied_has_to_be_there(tiny_packages: TinyPackages, tmp_path: Path) -> None:
    folder = edit_tensors(tiny_packages("shared").checkpoint, tmp_path / "ckpt", head_alone, tied(False))
    assert "tensor 'embed_tokens.weight' is missing" in refused(folder)


@pytest.mark.parametrize(("factor", "taken"), [(1.0, True), (2.0, False)])
def test_two_heads_without_an_embedding(
    factor: float, taken: bool, tiny_packages: TinyPackages, tmp_path: Path
) -> None:
    def edit(tensors: Tensors) -> Tensors:
        alone = head_alone(tensors)
        return {**alone, f"language_model.{HEAD}": alone[HEAD] * factor}

    folder = edit_tensors(tiny_packages("shared").checkpoint, tmp_path / "ckpt", edit, tied(True))
    if taken:
        assert spec_of(folder).tied_head
    else:
        assert f"tensors '{HEAD}' and 'language_model.{HEAD}' differ" in refused(folder)


def test_equal_heads_are_compared_once(tiny_packages: TinyPackages, tmp_path: Path) -> None:
    folder = edit_tensors(tiny_packages("gemma3").checkpoint, tmp_path / "ckpt", same_head, tied(True))
    with open_checkpoint(folder) as checkpoint:
        assert read_spec(checkpoint).tied_head
        checkpoint.close()  # reading again would be refused
        assert read_spec(checkpoint).tied_head


def test_a_head_of_another_shape_is_refused(tiny_packages: TinyPackages, tmp_path: Path) -> None:
    folder = edit_tensors(
        tiny_packages("gemma3").checkpoint,
        tmp_path / "ckpt",
        lambda tensors: {**tensors, HEAD: tensors[EMBEDDING][:-8]},
        tied(True),
    )
    assert f"tensor '{HEAD}' has shape [96, 64], expected [104, 64]" in refused(folder)


# -- multimodal names, and which of two configs counts


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny multimodal Gemma 3 with a head of its own, as Transformers saves it."""
    folder = tmp_path_factory.mktemp("multimodal") / "ckpt"
    text = Gemma3TextConfig(**{**tiny.COMMON, **tiny.GEMMA3["gemma3"], "vocab_size": 112})
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = Gemma3Config(
        text_config=text.to_dict(),
        vision_config={**vision, "image_size": 28, "patch_size": 14, "vision_use_head": False},
        mm_tokens_per_image=4,
        image_token_index=108,
        boi_token_index=109,
        eoi_token_index=110,
        tie_word_embeddings=False,
    )
    torch.manual_seed(3)
    model = Gemma3ForConditionalGeneration(config)
    for parameter_name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3 if "norm" in parameter_name else 0.1)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("inner", [True, False])
def test_a_head_beside_a_multimodal_model(outer: bool, inner: bool, multimodal: Path, tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> dict[str, Any]:
        text = {**config["text_config"], "tie_word_embeddings": inner}
        return {**config, "tie_word_embeddings": outer, "text_config": text}

    folder = edit_tensors(multimodal, tmp_path / "ckpt", dict, change)
    assert not spec_of(folder).tied_head
    np.testing.assert_allclose(
        logits_of(folder, tmp_path / "out", "onnx"), transformers_logits(folder), rtol=0, atol=FP32_LOGITS
    )


@pytest.mark.parametrize("head", [HEAD, f"language_model.{HEAD}"])
def test_a_head_under_both_of_its_names(head: str, multimodal: Path, tmp_path: Path) -> None:
    def rename(tensors: Tensors) -> Tensors:
        return {head if name.endswith(HEAD) else name: value for name, value in tensors.items()}

    folder = edit_tensors(multimodal, tmp_path / "ckpt", rename)
    assert spec_of(folder).names.others == {HEAD: head}
    np.testing.assert_allclose(
        logits_of(folder, tmp_path / "out", "onnx"), transformers_logits(folder), rtol=0, atol=FP32_LOGITS
    )


@pytest.mark.parametrize(("outer", "inner"), [(False, True), (None, True), (True, False)])
def test_the_outer_config_of_a_gemma_3n_decides(
    outer: bool | None, inner: bool, tiny_packages: TinyPackages, tmp_path: Path
) -> None:
    # Transformers needs timm for the whole model; the rule is that of Gemma 3, and its text model is the reference.
    text = edit_tensors(tiny_packages("shared").checkpoint, tmp_path / "text", same_head, tied(True))
    folder = tiny.as_multimodal(text, tmp_path / "ckpt")
    values = json.loads((folder / "config.json").read_text())
    values["text_config"]["tie_word_embeddings"] = inner
    (folder / "config.json").write_text(json.dumps({**values, "tie_word_embeddings": outer}))
    assert spec_of(folder).tied_head == (outer is True)


# -- tensors that nothing reads


@pytest.mark.parametrize(
    ("extra", "needle"),
    [
        ("model.layers.1.self_attn.q_proj.bias", "a bias, which this model has none of"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "an adapter that was not merged"),
        ("model.layers.0.mlp.up_proj.base_layer.weight", "an adapter that was not merged"),
        ("score.weight", "the head of a classifier"),
        ("v_head.summary.weight", "the value head of a reward model"),
        ("model.layers.0.mlp.up_proj.weight_scale", "a quantized checkpoint"),
        ("model.layers.9.input_layernorm.weight", "config.json describes 8 layers without it"),
        ("model.layers.0.self_attn.sinks", "config.json describes 8 layers without it"),
        ("model.mtp.weight", "remove it from the checkpoint"),
        ("language_model.lm_head.weight", "would be read by nothing"),
    ],
)
def test_a_tensor_that_nothing_reads_is_refused_by_name(
    extra: str, needle: str, tiny_packages: TinyPackages, tmp_path: Path
) -> None:
    folder = edit_tensors(
        tiny_packages("shared").checkpoint,
        tmp_path / "ckpt",
        lambda tensors: {**other_head(tensors), extra: np.ones((4, 4), np.float32)},
        tied(False),
    )
    message = refused(folder)
    assert f"tensor '{extra}'" in message and needle in message


def test_a_tensor_of_integers_that_nothing_reads_is_refused(tiny_packages: TinyPackages, tmp_path: Path) -> None:
    def edit(tensors: Tensors) -> Any:
        return {**tensors, "model.layers.0.mlp.up_proj.weight.absmax": np.ones(4, np.int64)}

    folder = edit_tensors(tiny_packages("gemma3").checkpoint, tmp_path / "ckpt", edit)
    assert "it belongs to a quantized checkpoint" in refused(folder)


def test_many_unread_tensors_are_counted(tiny_packages: TinyPackages, tmp_path: Path) -> None:
    # A config that was cut to fewer layers than the file has.
    folder = edit_tensors(
        tiny_packages("gemma3").checkpoint,
        tmp_path / "ckpt",
        dict,
        lambda config: {**config, "num_hidden_layers": 3, "layer_types": config["layer_types"][:3]},
    )
    message = refused(folder)
    assert "tensor 'model.layers.3." in message and "and 12 others" in message


@pytest.mark.parametrize(
    "extra",
    [
        "model.layers.6.self_attn.k_proj.weight",
        "model.layers.7.self_attn.k_norm.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.vision_tower.timm_model.conv_stem.conv.weight",
        "model.audio_tower.conformer.0.norm.weight",
        "embed_audio.embedding.weight",
    ],
)
def test_what_is_known_to_be_unneeded_is_let_through(extra: str, tiny_packages: TinyPackages, tmp_path: Path) -> None:
    folder = edit_tensors(
        tiny_packages("shared").checkpoint,
        tmp_path / "ckpt",
        lambda tensors: {**tensors, extra: np.ones((4, 4), np.float32)},
    )
    spec_of(folder)


@pytest.mark.parametrize(
    ("prefix", "way_out"),
    [
        ("_orig_mod.", "torch.compile: save model._orig_mod"),
        ("module.", "DataParallel or DeepSpeed: save model.module"),
        ("base_model.model.", "merge the adapter (merge_and_unload)"),
        ("module._orig_mod.", "DataParallel or DeepSpeed"),
        ("_fsdp_wrapped_module.", "FSDP"),
    ],
)
def test_the_names_of_a_wrapper_have_a_way_out(
    prefix: str, way_out: str, tiny_packages: TinyPackages, tmp_path: Path
) -> None:
    folder = edit_tensors(
        tiny_packages("gemma3").checkpoint,
        tmp_path / "ckpt",
        lambda tensors: {f"{prefix}{name}": value for name, value in tensors.items()},
    )
    message = refused(folder)
    assert f"'{prefix}model." in message and way_out in message


# -- an index that does not fit its shards


@pytest.fixture
def sharded(tiny_packages: TinyPackages, tmp_path: Path) -> Path:
    """The tiny checkpoint in two shards, the second of which holds a tensor that the index forgot."""
    source = tiny_packages("shared").checkpoint
    names = sorted(tiny.load_file(source / "model.safetensors"))
    halves = (set(names[::2]), set(names[1::2]))
    folder = edit_tensors(source, tmp_path / "sharded", dict)
    tensors = tiny.load_file(folder / "model.safetensors")
    weight_map = {}
    for number, half in enumerate(halves):
        file = f"model-{number}.safetensors"
        tiny.save_file({name: tensors[name] for name in half}, folder / file)
        weight_map |= dict.fromkeys(half, file)
    del weight_map[names[1]]
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    return folder


def rewrite_index(folder: Path, change: Callable[[dict[str, str]], None]) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    change(index["weight_map"])
    (folder / INDEX_FILE).write_text(json.dumps(index))


def test_what_an_index_forgot_is_read_all_the_same(sharded: Path, tiny_packages: TinyPackages, tmp_path: Path) -> None:
    got = logits_of(sharded, tmp_path / "out", "onnx")
    expected = tiny.reference(tiny_packages("shared").model, IDS)[0]
    np.testing.assert_allclose(got, expected, rtol=0, atol=FP32_LOGITS)


def test_what_an_index_lists_and_nobody_needs_may_be_absent(sharded: Path) -> None:
    def add(weight_map: dict[str, str]) -> None:
        weight_map["lm_head.weight"] = "model-0.safetensors"
        weight_map["model.vision_tower.conv.weight"] = "model-1.safetensors"

    rewrite_index(sharded, add)
    assert spec_of(sharded).tied_head


def test_what_is_needed_and_in_no_shard_is_named(sharded: Path) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    for file in sharded.glob("model-*.safetensors"):
        tensors = tiny.load_file(file)
        tensors.pop(name, None)
        tiny.save_file(tensors, file)
    assert f"tensor '{name}' is missing" in refused(sharded)


def test_one_name_in_two_shards_is_refused(sharded: Path) -> None:
    first, second = (tiny.load_file(sharded / f"model-{number}.safetensors") for number in (0, 1))
    name = min(first)
    tiny.save_file({**second, name: first[name] + 1}, sharded / "model-1.safetensors")
    assert f"model-1.safetensors: tensor '{name}' is in another shard as well" in refused(sharded)
