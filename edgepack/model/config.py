"""Typed access to config.json, and the keys of it that a family knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn

from edgepack.checkpoint.folder import Checkpoint
from edgepack.errors import CheckpointError, UnsupportedError
from edgepack.model.spec import AttentionKind
from edgepack.shown import shown

# No size of a known model comes near; beyond it, lists of a value a layer and products of sizes would fill the memory.
MOST_LAYERS = 1024
MOST_SIZE = 1 << 24


class ConfigReader:
    """Typed access to one (possibly nested) object of config.json; a key that is wrong is named with its file.

    A default stands for a key that is absent. A null is a value: Transformers refuses it for most keys, so it is no
    number here either.
    """

    def __init__(self, values: Mapping[str, Any], path: Path, where: str = "") -> None:
        self.values, self.path, self.where = values, path, where

    def key(self, name: str) -> str:
        return f"{self.path}: key '{self.where}{name}'"

    def refuse(self, name: str, expected: str) -> NoReturn:
        """Raise CheckpointError: the value of `name` is not what is `expected`."""
        raise CheckpointError(f"{self.key(name)}: expected {expected}, got {shown(self.values.get(name))}")

    def number(self, name: str, default: float | None = None) -> float:
        value: Any = self.values.get(name, default)
        if value is None and name not in self.values:
            raise CheckpointError(f"{self.key(name)} is missing: expected a number")
        if not is_number(value):
            self.refuse(name, "a finite number")
        return float(value)

    def integer(self, name: str, default: int | None = None, most: int = MOST_SIZE) -> int:
        value = self.number(name, default)
        if value != int(value) or value < 0:
            self.refuse(name, "a non-negative whole number")
        if value > most:
            self.refuse(name, f"at most {most:,}")
        return int(value)

    def positive(self, name: str, default: int | None = None, most: int = MOST_SIZE) -> int:
        value = self.integer(name, default, most)
        if value == 0:
            self.refuse(name, "a positive whole number")
        return value

    def above_zero(self, name: str, default: float | None = None) -> float:
        value = self.number(name, default)
        if value <= 0:
            self.refuse(name, "a number above 0")
        return value

    def optional_above_zero(self, name: str) -> float | None:
        return None if self.values.get(name) is None else self.above_zero(name)

    def flag(self, name: str, default: bool) -> bool:
        """True or false; a null is false, as Python takes it."""
        value = self.values.get(name, default)
        if value is not None and not isinstance(value, bool):
            self.refuse(name, "true or false")
        return bool(value)

    def per_layer(self, name: str, count: int, default: list[float] | None = None) -> list[float]:
        """A list with one number a layer; a single number stands for all layers."""
        value = self.values.get(name)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"{self.key(name)} is missing: expected a number or a list of {count} numbers")
        if is_number(value):
            value = [value] * count
        if not isinstance(value, list) or not all(is_number(v) for v in value):
            self.refuse(name, f"a number or a list of {count} numbers")
        if len(value) != count:
            raise CheckpointError(f"{self.key(name)}: expected {count} values, one a layer, got {len(value)}")
        return [float(v) for v in value]

    def widths(self, name: str, count: int) -> list[int]:
        """A positive whole number a layer; a single number stands for all layers."""
        values = self.per_layer(name, count)
        if any(not 1 <= value <= MOST_SIZE or value != int(value) for value in values):
            self.refuse(name, f"positive whole numbers of at most {MOST_SIZE:,}")
        return [int(value) for value in values]

    def heads(self, query: int | None = None, key: int | None = None, dim: int | None = 256) -> tuple[int, int, int]:
        """Query heads H, key/value heads K and head dim D, with the family's defaults for what is not there."""
        h, k = self.positive("num_attention_heads", query), self.positive("num_key_value_heads", key)
        d = self.positive("head_dim", dim)
        if h % k:
            raise CheckpointError(
                f"{self.key('num_key_value_heads')}: expected a divisor of num_attention_heads={h}, got {k}"
            )
        if d % 2:
            raise CheckpointError(f"{self.key('head_dim')}: expected an even number for rotary embedding, got {d}")
        return h, k, d

    def child(self, name: str) -> ConfigReader:
        value = self.values.get(name)
        if value is None:
            raise CheckpointError(f"{self.key(name)} is missing: expected an object")
        if not isinstance(value, dict):
            self.refuse(name, "an object")
        return ConfigReader(value, self.path, f"{self.where}{name}.")


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number that a float can hold; JSON as Python reads it knows NaN and Infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return isfinite(value)
    except OverflowError:
        return False


@dataclass(frozen=True, slots=True)
class ConfigKeys:
    """Every key that one object of config.json may have. What is in none of the three is refused by name.

    Attributes:
        read: what the family reads.
        only: what changes the numbers and is not implemented, with the values that leave them as they are; a null is
            one of them.
        without_effect: what is known not to change the logits: token ids of images, dropout, how a model was saved.
    """

    read: frozenset[str]
    only: Mapping[str, tuple[Any, ...]]
    without_effect: frozenset[str]

    def check(self, config: ConfigReader) -> None:
        """Look at every key of `config`; a name that starts with an underscore is private to the tool that wrote it.

        Raises:
            UnsupportedError: a key is not known, or has a value that is not implemented; it is named.
        """
        for name, value in config.values.items():
            if value is None or name.startswith("_") or name in self.read or name in self.without_effect:
                continue
            if name not in self.only:
                raise UnsupportedError(
                    f"{config.key(name)} is {shown(value)}, and edgepack does not know whether it changes what the "
                    "model computes: remove it from config.json if it does not"
                )
            if value not in self.only[name]:
                expected = " or ".join(shown(allowed) for allowed in self.only[name]) or "no such key"
                raise UnsupportedError(
                    f"{config.key(name)} is {shown(value)}, which changes what the model computes and is not "
                    f"implemented: expected {expected}"
                )

    def known(self) -> frozenset[str]:
        """All names."""
        return self.read | self.only.keys() | self.without_effect


def open_config(
    checkpoint: Checkpoint, multimodal: str, text_keys: ConfigKeys, outer_keys: ConfigKeys
) -> tuple[ConfigReader, ConfigReader]:
    """The whole config and its text model's part, which are the same in a text-only checkpoint, with known keys only.

    Args:
        multimodal: the `model_type` whose config holds the text model's in `text_config`.
    """
    outer = ConfigReader(checkpoint.config, checkpoint.config_path)
    if outer.values.get("model_type") != multimodal:
        text_keys.check(outer)
        return outer, outer
    outer_keys.check(outer)
    text = outer.child("text_config")
    text_keys.check(text)
    inner_type = text.values.get("model_type")
    if inner_type not in (None, f"{multimodal}_text"):
        raise UnsupportedError(f"{text.key('model_type')} is {shown(inner_type)}: expected {multimodal}_text")
    return outer, text


def layer_kinds(config: ConfigReader, count: int, period: int) -> list[AttentionKind]:
    """Attention kind of every layer; old configs name none, then every `period`-th layer is full."""
    listed = config.values.get("layer_types")
    if listed is None:
        return ["full" if (i + 1) % period == 0 else "sliding" for i in range(count)]
    names: dict[str, AttentionKind] = {"sliding_attention": "sliding", "full_attention": "full"}
    if not isinstance(listed, list) or len(listed) != count or not all(isinstance(kind, str) for kind in listed):
        config.refuse("layer_types", f"a list of {count} names")
    unknown = next((kind for kind in listed if kind not in names), None)
    if unknown is not None:
        raise CheckpointError(
            f"{config.key('layer_types')} has {shown(unknown)}: expected one of {', '.join(sorted(names))} a layer"
        )
    return [names[kind] for kind in listed]


def kv_owners(config: ConfigReader, kinds: list[AttentionKind], shared: int) -> list[int]:
    """Owner of the keys and values of every layer: the last `shared` layers use the last owner of their kind."""
    first = len(kinds) - shared
    if shared < 0 or first < 0:
        raise CheckpointError(
            f"{config.key('num_kv_shared_layers')}: expected 0 to {len(kinds)} (the number of layers), got {shared}"
        )
    owners = list(range(first))
    for i in range(first, len(kinds)):
        same_kind = [owner for owner in range(first) if kinds[owner] == kinds[i]]
        if not same_kind:
            raise CheckpointError(
                f"{config.key('num_kv_shared_layers')}: layer {i} shares {kinds[i]} keys and values, "
                f"but no layer before {first} is of that kind"
            )
        owners.append(same_kind[-1])
    return owners


def token_ids(config: ConfigReader, outer: ConfigReader, name: str, default: int) -> tuple[int, ...]:
    """One or several token ids under `name`; the outer config wins, as generation reads it first.

    Where both say nothing it is `default`, as Transformers has it; none where the text model's config says null.
    """
    value = outer.values.get(name)
    value = config.values.get(name, default) if value is None else value
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    if any(isinstance(v, bool) or not isinstance(v, int) for v in values):
        raise CheckpointError(f"{config.key(name)}: expected a token id or a list of them, got {shown(value)}")
    return tuple(values)
