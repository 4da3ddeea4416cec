"""Specs of configs without a weight: checkpoints that consist of names and shapes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack.checkpoint.folder import Checkpoint
from edgepack.checkpoint.safetensors import TensorInfo
from edgepack.model.families import read_spec
from edgepack.model.spec import ModelSpec
from edgepack.quant import Recipe, Scheme, Storage, load_recipe
from edgepack.synth import PRESETS

E2B, E4B = "gemma-3n-e2b", "gemma-3n-e4b"


def fake_checkpoint(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None = None, path: Path = Path("ckpt")
) -> Checkpoint:
    """A checkpoint with this config and tensors of these shapes; without `shapes` only a multimodal embedding."""
    shapes = shapes if shapes is not None else {"model.language_model.embed_tokens.weight": (1, 1)}
    tensors = {name: TensorInfo(name, "BF16", shape, path / "w", 0, 0) for name, shape in shapes.items()}
    return Checkpoint(path, dict(config), tensors)


def preset(name: str, **text_config: Any) -> dict[str, Any]:
    """The config of a preset with some keys of its text config changed; a value of `...` removes the key."""
    config = copy.deepcopy(PRESETS[name])
    config["text_config"].update(text_config)
    config["text_config"] = {key: value for key, value in config["text_config"].items() if value is not ...}
    return config


def preset_spec(name: str, **text_config: Any) -> ModelSpec:
    """The spec of `preset` with these arguments."""
    return read_spec(fake_checkpoint(preset(name, **text_config)))


def recipe_with(base: str, backend: str = "onnx", **schemes: Scheme) -> Recipe:
    """The built-in recipe `base` under the name ``mine``, some components stored as `schemes`."""
    recipe = load_recipe(base, backend)
    rows = {component: Storage(scheme=scheme) for component, scheme in schemes.items()}
    changes = {"name": "mine", "components": {**recipe.components, **rows}}
    return Recipe.model_validate({**dict(recipe), **changes})
