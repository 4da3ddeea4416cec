"""Tensor tables against the Transformers models: the same names and shapes, no more and no less."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    Gemma3TextConfig,
)

from edgepack.errors import CheckpointError
from edgepack.model.families import family_of, read_spec, require_tensors
from edgepack.model.spec import ModelSpec
from edgepack.model.tensors import checkpoint_name
from edgepack.synth import PRESETS
from tests.support import tiny
from tests.support.specs import E2B, E4B, fake_checkpoint, preset

Shapes = dict[str, tuple[int, ...]]


def state_shapes(model: Any) -> Shapes:
    """Names and shapes as `save_pretrained` writes them: a tied head is stored once."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if model.config.get_text_config().tie_word_embeddings:
        shapes.pop("lm_head.weight")
    return shapes


def table(config: dict[str, Any], shapes: Shapes) -> tuple[ModelSpec, Shapes]:
    spec = read_spec(fake_checkpoint(config, shapes))
    tensors = family_of(spec).tensor_table(spec)
    named = {checkpoint_name(spec, tensor.name): tensor.shape for tensor in tensors}
    assert len(named) == len(tensors)
    return spec, named


def without_unused(spec: ModelSpec, shapes: Shapes) -> Shapes:
    sharing = range(spec.first_shared_layer, len(spec.layers))
    scale_off = spec.altup is not None and not spec.altup.correct_scale  # the model has the parameter all the same
    ignored = {f"layers.{i}.self_attn.{part}.weight" for i in sharing for part in ("k_proj", "v_proj", "k_norm")}
    if scale_off:
        ignored |= {f"layers.{i}.altup.correct_output_scale" for i in range(len(spec.layers))}
    return {name: shape for name, shape in shapes.items() if not name.endswith(tuple(ignored))}


@pytest.mark.parametrize("name", tiny.NAMES)
def test_tiny_models(name: str) -> None:
    config = tiny.config(name)
    with torch.device("meta"):
        model: Any = (Gemma3ForCausalLM if name in tiny.GEMMA3 else Gemma3nForCausalLM)(config)
    shapes = state_shapes(model)
    spec, named = table(config.to_dict(), shapes)
    assert named == without_unused(spec, shapes)


@pytest.mark.parametrize("name", [E2B, E4B])
def test_full_size_gemma_3n(name: str) -> None:
    config = PRESETS[name]["text_config"]
    with torch.device("meta"):
        model: Any = Gemma3nForCausalLM(Gemma3nTextConfig(**config))
    shapes = state_shapes(model)
    spec, named = table(config, shapes)
    assert named == without_unused(spec, shapes)


# The published decoder counts of GEMMA3N.md include the key and value tensors of sharing layers, which nobody reads:
# 2 x 512 x 2048 + 256 in each of 10 or 15 layers.
@pytest.mark.parametrize(
    ("name", "decoder", "unused", "per_layer"),
    [(E2B, 1_905_495_648, 20_974_080, 2_013_265_920), (E4B, 3_980_491_248, 31_461_120, 2_348_810_240)],
)
def test_parameters_of_the_published_models(name: str, decoder: int, unused: int, per_layer: int) -> None:
    spec = read_spec(fake_checkpoint(preset(name)))
    sizes: dict[str, int] = {}
    for tensor in family_of(spec).tensor_table(spec):
        group = tensor.component if tensor.component in ("ple", "embedding") else "decoder"
        sizes[group] = sizes.get(group, 0) + torch.Size(tensor.shape).numel()
    assert sizes["embedding"] == 537_395_200
    assert sizes["ple"] == per_layer
    assert sizes["decoder"] == decoder - unused


def test_a_multimodal_gemma_3_has_the_text_model_under_its_own_prefix() -> None:
    text = Gemma3TextConfig(**tiny.COMMON, **tiny.GEMMA3["gemma3"])
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = Gemma3Config(text_config=text.to_dict(), vision_config={**vision, "image_size": 28, "patch_size": 14})
    with torch.device("meta"):
        model: Any = Gemma3ForConditionalGeneration(config)
    shapes = state_shapes(model)
    spec, named = table(config.to_dict(), shapes)
    assert spec.names.prefix == "model.language_model."
    assert named == {name: shape for name, shape in shapes.items() if name.startswith("model.language_model.")}


def test_a_tensor_that_is_missing_or_of_another_shape_is_named() -> None:
    config = preset(E2B)
    spec, named = table(config, {"model.language_model.embed_tokens.weight": (1, 1)})
    require_tensors(fake_checkpoint(config, named), spec)
    name = "model.language_model.layers.19.self_attn.k_proj.weight"
    with pytest.raises(CheckpointError, match=rf"tensor '{name}' is missing"):
        require_tensors(fake_checkpoint(config, {k: v for k, v in named.items() if k != name}), spec)
    with pytest.raises(CheckpointError, match=rf"tensor '{name}' has shape \[512, 2047\], expected \[512, 2048\]"):
        require_tensors(fake_checkpoint(config, {**named, name: (512, 2047)}), spec)
