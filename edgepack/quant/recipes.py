"""Recipes: which scheme each component of a model gets. Data, not code: one JSON file per recipe."""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from edgepack.errors import EdgepackError
from edgepack.model.spec import COMPONENTS, Component
from edgepack.quant.schemes import Scheme
from edgepack.reading import loads_strict, read_user_file
from edgepack.shown import printable, shown
from edgepack.values import Frozen


class Recipe(Frozen):
    """One scheme per component.

    Attributes:
        name: what tables, plans and manifests call the recipe.
        description: one sentence for people.
        components: the scheme of every component. ``embedding`` is also the tied head, ``head`` only an untied one;
            ``attention`` are the query, key and output projections, ``attention_value`` the value projections;
            ``altup_projection`` are the M x M stream projections, ``altup`` the router and the coefficients;
            ``per_layer`` are the per-layer input gate, its projection and the model projection.
    """

    name: str
    description: str
    components: dict[Component, Scheme]

    @model_validator(mode="after")
    def _complete(self) -> Recipe:
        missing = [component for component in COMPONENTS if component not in self.components]
        if missing:
            raise ValueError(f"no scheme for component {', '.join(missing)}")
        return self


def builtin_recipes(backend: str = "onnx") -> tuple[str, ...]:
    """Return the names of the recipes that edgepack brings along for `backend`, in alphabetical order."""
    folder = resources.files("edgepack.quant") / "recipes" / backend
    return tuple(sorted(entry.name[: -len(".json")] for entry in folder.iterdir() if entry.name.endswith(".json")))


def load_recipe(name_or_path: str | Path, backend: str = "onnx") -> Recipe:
    """Return the recipe of that name that `backend` has built in, or the one in the JSON file of that path.

    Raises:
        EdgepackError: neither a built-in recipe nor a readable file, or the file's JSON or one of its fields is wrong.
    """
    if isinstance(name_or_path, str) and name_or_path in builtin_recipes(backend):
        source = resources.files("edgepack.quant") / "recipes" / backend / f"{name_or_path}.json"
        return _parse(source.read_bytes(), f"built-in recipe {name_or_path}")
    path = Path(name_or_path)
    if not os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long for one
        known = ", ".join(builtin_recipes(backend))
        raise EdgepackError(f"recipe {shown(str(name_or_path))} is neither a built-in recipe ({known}) nor a JSON file")
    return _parse(read_user_file(path, "recipe"), f"recipe {path}")


def _parse(text: bytes, where: str) -> Recipe:
    try:
        data: Any = loads_strict(text)
    except json.JSONDecodeError as error:
        raise EdgepackError(
            f"{where}: invalid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except UnicodeDecodeError as error:
        raise EdgepackError(f"{where}: no UTF-8 text: {error.reason} at byte {error.start}") from error
    except ValueError as error:
        raise EdgepackError(f"{where}: invalid JSON: {printable(str(error))}") from error
    if not isinstance(data, dict):
        raise EdgepackError(f"{where}: expected a JSON object with name, description and components")
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        # Pydantic adds the tag of the union and "[key]" to the path; neither is written in the file.
        steps = [str(step) for step in first["loc"] if step != "[key]"]
        if steps[:1] == ["components"]:
            steps[2:3] = [step for step in steps[2:3] if step not in ("int", "float")]
        field = printable(".".join(steps)) or "components"
        said = first["msg"].removeprefix("Value error, ")
        raise EdgepackError(f"{where}: field {field}: {printable(said)}") from error
