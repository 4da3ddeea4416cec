"""``edgepack.toml``: what a repository asks of its package, so that the build step needs no arguments.

Paths in it are relative to its own folder. What stands on the command line goes before what stands here.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, overload

from pydantic import Field, ValidationError

from edgepack.errors import EdgepackError, SettingError, about
from edgepack.planning.backends import BackendName, backend_for
from edgepack.planning.targets import parse_target
from edgepack.quant.recipes import builtin_recipes, load_recipe
from edgepack.reading import dotted, read_user_file, wrong_value
from edgepack.shown import printable
from edgepack.validation.settings import EXPECTED, ValidationSettings, settings_of
from edgepack.validation.thresholds import Threshold, make_threshold
from edgepack.values import Frozen

T = TypeVar("T")
CONFIG_NAME = "edgepack.toml"
# Settings of a validation that have a place of their own in the file, or are none of a repository.
_OF_ONE_CALL = frozenset({"target", "thresholds", "force", "enforce_limit", "timeout_s", "time_budget_s"})
_EXPORTED = ("checkpoint", "revision", "to", "recipe", "context", "prefill")
_LENGTHS = "a list of whole numbers of at least 1, such as [128, 1024]"
_NUMBER = "a whole number of at least 1, such as"
_EXPECTED = {
    "target": 'a size or a device, such as "2GB"',
    "export": "a table, [export]",
    "export.checkpoint": 'a folder or Hugging Face id, such as "google/gemma-3n-E2B-it"',
    "export.revision": 'a branch, tag or commit, such as "main"',
    "export.to": 'a backend, such as "onnx"',
    "export.runtime": 'a runtime, such as "onnx"',
    "export.recipe": 'a recipe or a JSON file, such as "int4"',
    "export.context": f"{_NUMBER} 4096",
    "export.prefill": _LENGTHS,
    "export.calibration": 'a calibration, such as "gemma.calibration.safetensors"',
    "export.calibrate": 'builtin or a text file, such as "builtin"',
    "export.out": 'a folder, such as "build/package"',
    "validate": "a table, [validate]",
    "validate.package": 'a folder, such as "build/package"',
    **{f"validate.{name}": words for name, words in EXPECTED.items() if name not in _OF_ONE_CALL},
    "validate.history": 'a file, such as "history.jsonl"',
    "validate.report": 'a folder, such as "build/report"',
    "thresholds": "a table, [thresholds]",
    "thresholds.*": 'a number or a text, such as 10 or "<= 1.9GB"',
}


Lengths = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]


class ExportTable(Frozen):
    """What `edgepack export` does; `checkpoint` and `out` may also be given on the command line."""

    checkpoint: str | None = None
    revision: str | None = None
    to: str | None = None
    runtime: str | None = None
    recipe: str | None = None
    context: int | None = Field(default=None, ge=1)
    prefill: Lengths | None = None
    calibration: Path | None = None
    calibrate: str | None = None
    out: Path | None = None


class ValidateTable(ValidationSettings):
    """What `edgepack validate` measures, compares and writes; the package is by default what `export` writes."""

    package: Path | None = None
    history: Path | None = None
    report: Path | None = None


class Config(Frozen):
    """A whole ``edgepack.toml``.

    Attributes:
        target: a size or a device, for `export` and `validate`.
        thresholds: limits by metric, in the metric's unit or as a text such as ``"<= 1.9GB"``.
        file: where it was read.
    """

    target: str | None = None
    export: ExportTable = ExportTable()
    validate_: ValidateTable = Field(default=ValidateTable(), alias="validate")
    thresholds: dict[str, str | float] = Field(default_factory=dict)
    file: Path | None = None

    def threshold_list(self) -> tuple[Threshold, ...]:
        """The thresholds, checked.

        Raises:
            EdgepackError: one names no metric, or no limit.
        """
        where = self.place("threshold")
        return tuple(
            make_threshold(name, limit, f"{where}.{printable(name)}") for name, limit in self.thresholds.items()
        )

    def settings(self, given: Mapping[str, Any]) -> ValidationSettings:
        """What is `given` for a validation, else what the file says, else the defaults.

        Raises:
            SettingError: a value is not usable.
        """
        table = self.validate_
        names = table.model_fields_set & ValidationSettings.model_fields.keys()
        of_file = {name: getattr(table, name) for name in names}
        limits = tuple(given.get("thresholds", ()))
        metrics = {limit.metric for limit in limits}
        limits += tuple(limit for limit in self.threshold_list() if limit.metric not in metrics)
        return settings_of({"target": self.target, **of_file, **given, "thresholds": limits})

    def place(self, setting: str) -> str:
        """Where `setting` of a `SettingError` stands in the file: ``config edgepack.toml: validate.golden``."""
        names = {
            "target": "target",
            "threshold": "thresholds",
            "out": "export.out",
            "export.runtime": "export.runtime",  # beside that of [validate]
            **{name: f"export.{name}" for name in _EXPORTED},
        }
        return f"config {self.file}: {names.get(setting, f'validate.{setting}')}"


def read_config(file: Path | None = None) -> Config:
    """Read `file`, or ``edgepack.toml`` of the working folder if there is one; else everything is unset.

    Raises:
        EdgepackError: `file` is missing, or it is not TOML, or a key is not known or has a wrong value.
    """
    if file is None:
        file = Path(CONFIG_NAME)
        if not os.path.isfile(file):
            return Config()
    content = read_user_file(file, "config")
    try:
        values = tomllib.loads(content.decode("utf-8"))
        text = json.dumps({**values, "file": file}, default=str)
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, thousands of digits or of brackets
        raise EdgepackError(f"config {file} is not TOML: {printable(str(error))}") from error
    _require_known_keys(values, file)
    _require_no_empty_text(values, file)
    try:
        # As JSON, because strict JSON still makes paths of texts: `threads = true` is not 1.
        config = Config.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise EdgepackError(f"config {file}: {wrong_value(error.errors()[0], _EXPECTED)}") from error
    config.threshold_list()
    config = _located(config, file)
    _require_known(config)
    return config


def _located(config: Config, file: Path) -> Config:
    """`config` with its paths relative to its own folder."""
    target = config.target
    if target is not None and target.strip().lower().endswith(".json"):  # a device profile
        target = str(file.parent / target.strip())
    return config.model_copy(
        update={
            "target": target,
            "export": _placed(config.export, file.parent, extra=("checkpoint", "recipe", "calibrate")),
            "validate_": _placed(config.validate_, file.parent, extra=("reference",)),
        }
    )


def _require_known(config: Config) -> None:
    """Refuse a name that means nothing, whatever the command line puts in its place.

    Raises:
        EdgepackError: with the place in the file.
    """
    export = config.export
    try:
        with about("target"):
            if config.target is not None:
                parse_target(config.target)
        with about("backend"):
            backend = backend_for(export.to, export.runtime)
        with about("runtime"):
            backend.runtime_for(export.runtime)
        with about("recipe"):
            # The command line may choose the backend: its recipes count where the file names none.
            known = {name for kind in get_args(BackendName) for name in builtin_recipes(kind)}
            if export.recipe is not None and (export.to is not None or export.recipe not in known):
                load_recipe(export.recipe, backend.name)
    except SettingError as error:
        setting = {"backend": "to", "runtime": "export.runtime"}.get(error.setting, error.setting)
        raise EdgepackError(f"{config.place(setting)}{error.problem}") from error


def _require_known_keys(values: dict[str, Any], file: Path) -> None:
    for place in ((), ("export",), ("validate",)):
        table = values.get(place[0]) if place else values
        prefix = f"{place[0]}." if place else ""
        known = [name.removeprefix(prefix) for name in _EXPECTED if name.startswith(prefix)]
        known = [name for name in known if "." not in name]
        for key in table if isinstance(table, dict) else ():
            if key not in known:
                where = dotted((*place, key))
                raise EdgepackError(f"config {file}: {where}: no such key; expected {', '.join(known)}")


def _require_no_empty_text(values: dict[str, Any], file: Path) -> None:
    """An empty path would be the folder of the file, and everything else that is empty is left out."""
    tables = {name: values[name] for name in ("export", "validate") if isinstance(values.get(name), dict)}
    found = {"target": values.get("target")}
    found |= {f"{name}.{key}": value for name, table in tables.items() for key, value in table.items()}
    for name, value in found.items():
        if isinstance(value, str) and not value.strip():
            raise EdgepackError(f"config {file}: {printable(name)} is empty: expected {_EXPECTED.get(name, 'a value')}")


def _placed(table: Any, folder: Path, extra: tuple[str, ...]) -> Any:
    """`table` with its paths relative to `folder`; those of `extra` only where such a checkpoint or recipe is there."""
    changes: dict[str, Any] = {}
    for name, field in type(table).model_fields.items():
        value = getattr(table, name)
        if value is None:
            continue
        if _is_path(field.annotation):
            changes[name] = folder / value
        # A recipe is a file: a package folder named int4 beside must not hide the recipe int4. So is a text.
        elif name in extra and _is_there(folder / value, folders=name not in ("recipe", "calibrate")):
            changes[name] = str(folder / value)
    return table.model_copy(update=changes)


def _is_there(path: Path, *, folders: bool) -> bool:
    # Unlike those of Path, these answer for names that the system refuses and folders that are closed to us.
    return os.path.isfile(path) or (folders and os.path.isdir(path))


def _is_path(annotation: Any) -> bool:
    return annotation is Path or (get_origin(annotation) in (Union, UnionType) and Path in get_args(annotation))


@overload
def first_set(*values: T | None) -> T | None: ...
@overload
def first_set(*values: T | None, default: T) -> T: ...
def first_set(*values: T | None, default: T | None = None) -> T | None:
    """The first of `values` that is not None, else `default`: the command line, then the config."""
    return next((value for value in values if value is not None), default)
