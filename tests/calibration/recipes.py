"""Recipes of tests: each matrix of the decoder in 4 bits, compensated or not."""

from __future__ import annotations

from typing import get_args

from edgepack.model.spec import Component
from edgepack.quant import FloatScheme, IntScheme, Recipe, Rounding, Storage
from edgepack.quant.recipes import Fold

FOLDS: tuple[Fold, ...] = get_args(Fold)
INT4 = {
    "onnx": IntScheme(bits=4, block=32, zero_point=True),
    "litert": IntScheme(bits=4, block=32, scale_dtype="float16"),
}
COMPENSATED: tuple[Component, ...] = ("attention", "attention_value", "ffn", "per_layer", "laurel")


def decoder_recipe(backend: str, rounding: Rounding, folds: tuple[Fold, ...] = ()) -> Recipe:
    """Tables and AltUp in float, all other matrices in 4 bits."""
    row = Storage(scheme=INT4[backend], rounding=rounding)
    return Recipe(
        name=f"decoder-{rounding}",
        description="test",
        default=Storage(scheme=FloatScheme()),
        components=dict.fromkeys(COMPENSATED, row),
        folds=folds,
    )
