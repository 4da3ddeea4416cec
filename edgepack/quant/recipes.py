"""Recipes: how each component of a model is stored. Data, not code: one JSON file per recipe."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from edgepack.errors import EdgepackError
from edgepack.model.spec import COMPONENTS, Component
from edgepack.quant.layout import IntScheme, Scheme
from edgepack.quant.rounding import CALIBRATED, Rounding
from edgepack.reading import first_wrong, loads_object, read_user_file
from edgepack.shown import one_line, shown
from edgepack.values import Frozen

# Exact changes of the weights before they are rounded: see `edgepack.calibration.folds`.
Fold = Literal["rotate_vo", "scale_up_down", "scale_ffn_norm"]
# Those that follow the activations.
CALIBRATED_FOLDS: frozenset[Fold] = frozenset({"scale_up_down", "scale_ffn_norm"})


class Storage(Frozen):
    """How a tensor is stored: a row of a recipe.

    Attributes:
        scheme: how its codes are laid out.
        rounding: how they are found. What is no int scheme has one way alone.
    """

    scheme: Scheme
    rounding: Rounding = "nearest"

    @model_validator(mode="after")
    def _float_is_cast(self) -> Storage:
        if not isinstance(self.scheme, IntScheme) and self.rounding != "nearest":
            raise ValueError(f"rounding {self.rounding} needs an int scheme: leave it out for {self.scheme.name}")
        return self


class Recipe(Frozen):
    """How every component is stored.

    Attributes:
        name: what tables, plans and manifests call the recipe.
        description: one sentence for people.
        default: for components that are not named.
        components: for those that are named, which without a default must be all. ``embedding`` is also the tied head,
            ``head`` only an untied one; ``attention`` are the query, key and output projections, ``attention_value``
            the value projections; ``altup_projection`` are the M x M stream projections, ``altup`` the router and the
            coefficients; ``per_layer`` are the per-layer input gate, its projection and the model projection.
        tensors: for single tensors, by canonical name, in place of the row of their component.
        folds: exact changes of the weights before they are rounded.
    """

    name: str
    description: str
    default: Storage | None = None
    components: dict[Component, Storage] = Field(default_factory=dict)
    tensors: dict[str, Storage] = Field(default_factory=dict)
    folds: tuple[Fold, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Recipe:
        missing = [component for component in COMPONENTS if component not in self.components]
        if missing and self.default is None:
            raise ValueError(f"no scheme for component {', '.join(missing)}: name each, or add a default")
        return self

    @property
    def calibrated(self) -> bool:
        """Whether the recipe takes a calibration."""
        rows = [*self.components.values(), *self.tensors.values(), *([self.default] if self.default else [])]
        return bool(CALIBRATED_FOLDS.intersection(self.folds)) or any(row.rounding in CALIBRATED for row in rows)

    def storage(self, component: Component, tensor: str | None = None) -> Storage:
        """Return how the tensor of that canonical name and `component` is stored."""
        found = self.tensors.get(tensor or "", self.components.get(component, self.default))
        assert found is not None  # see _complete
        return found


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
        return Recipe.model_validate(loads_object(text))
    except ValidationError as error:
        raise EdgepackError(f"{where}: field {first_wrong(error, whole='components')}") from error
    except ValueError as error:
        raise EdgepackError(f"{where}: {one_line(error)}") from error
