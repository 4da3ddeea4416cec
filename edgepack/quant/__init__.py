"""How a matrix becomes bytes: schemes are classes, roundings are functions, recipes are data."""

from __future__ import annotations

from edgepack.quant.layout import FloatScheme, IntScheme, Part, Scheme
from edgepack.quant.recipes import Fold, Recipe, Storage, builtin_recipes, load_recipe
from edgepack.quant.rounding import CALIBRATED, Rounding, quantize

__all__ = [
    "CALIBRATED",
    "FloatScheme",
    "Fold",
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
