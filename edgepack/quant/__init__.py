"""How a matrix becomes bytes: schemes are classes, recipes are data."""

from __future__ import annotations

from edgepack.quant.recipes import Recipe, builtin_recipes, load_recipe
from edgepack.quant.schemes import FloatScheme, IntScheme, Part, Scheme

__all__ = [
    "FloatScheme",
    "IntScheme",
    "Part",
    "Recipe",
    "Scheme",
    "builtin_recipes",
    "load_recipe",
]
