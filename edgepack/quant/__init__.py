"""How a matrix becomes bytes: schemes are classes, roundings are functions, recipes are data."""

from __future__ import annotations

from edgepack.quant.layout import FloatScheme, IntScheme, Part, Scheme
from edgepack.quant.recipes import Recipe, Storage, builtin_recipes, load_recipe
from edgepack.quant.rounding import Rounding, quantize

__all__ = [
    "FloatScheme",
    "IntScheme",
    "Part",
    "Recipe",
    "Rounding",
    "Scheme",
    "Storage",
    "builtin_recipes",
    "load_recipe",
    "quantize",
]
