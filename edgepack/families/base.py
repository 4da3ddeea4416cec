"""What a model family provides, and the small readers that turn a config into a spec."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgepack.errors import CheckpointError
from edgepack.quant.recipes import Component
from edgepack.spec import AttentionKind, Frozen, LayerSpec, ModelSpec, RopeSpec

if TYPE_CHECKING:
    from edgepack.checkpoint import Checkpoint
    from edgepack.ops import Ops, TableOps

V = TypeVar("V")
PREFIXES = ("model.language_model.", "language_model.model.", "model.", "")


class TensorSpec(Frozen):
    """A tensor that the decoder needs.

    Attributes:
        name: canonical name: as in a text-only checkpoint, without the leading ``model.``.
        shape: [N, K] of a matrix or embedding, [N] of a vector.
        component: the group that a recipe speaks about.
        gathered: rows are looked up by token id (an embedding), possibly besides being multiplied with.
    """

    name: str
    shape: tuple[int, ...]
    component: Component
    gathered: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """One model family: how to read it, which tensors it has, and its decoder written against `Ops`.

    Attributes:
        read_spec: config and tensor names to a `ModelSpec`.
        tensor_table: every tensor of the text model, once, in the order of computation.
        embed: token ids [B, S] to input embeddings [B, S, M] and, where the family has them, per-layer
            embeddings [B, S, L, P].
        decode: these two to the logits [B, S', V] of the wanted positions.
    """

    name: str
    read_spec: Callable[[Checkpoint], ModelSpec]
    tensor_table: Callable[[ModelSpec], tuple[TensorSpec, ...]]
    embed: Callable[[TableOps[Any], ModelSpec, Any], tuple[Any, Any | None]]
    decode: Callable[[Ops[Any], ModelSpec, Any, Any | None], Any]


class ConfigReader:
    """Typed access to one (possibly nested) object of config.json; a missing key is named with its file."""

    def __init__(self, values: Mapping[str, Any], path: Path, where: str = "") -> None:
        self.values, self.path, self.where = values, path, where

    def key(self, name: str) -> str:
        return f"{self.path}: key '{self.where}{name}'"

    def number(self, name: str, default: float | None = None) -> float:
        value = self.values.get(name)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"{self.key(name)} is missing: expected a number")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"{self.key(name)}: expected a number, got {value!r}")
        if not isfinite(value):  # JSON as Python writes it knows NaN and Infinity
            raise CheckpointError(f"{self.key(name)}: expected a finite number, got {value!r}")
        return float(value)

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.number(name, default)
        if value != int(value) or value < 0:
            raise CheckpointError(f"{self.key(name)}: expected a non-negative whole number, got {value!r}")
        return int(value)

    def positive(self, name: str, default: int | None = None) -> int:
        value = self.integer(name, default)
        if value == 0:
            raise CheckpointError(f"{self.key(name)}: expected a positive whole number, got 0")
        return value

    def optional_number(self, name: str) -> float | None:
        return None if self.values.get(name) is None else self.number(name)

    def per_layer(self, name: str, count: int, default: list[float] | None = None) -> list[float]:
        """A list with one number a layer; a single number stands for all layers."""
        value = self.values.get(name, default)
        value = default if value is None else value
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = [value] * count
        if not isinstance(value, list) or any(not isinstance(v, int | float) for v in value):
            raise CheckpointError(f"{self.key(name)}: expected a number or a list of {count} numbers, got {value!r}")
        if len(value) != count:
            raise CheckpointError(f"{self.key(name)}: expected {count} values, one a layer, got {len(value)}")
        return [float(v) for v in value]

    def widths(self, name: str, count: int) -> list[int]:
        """A positive whole number a layer; a single number stands for all layers."""
        values = self.per_layer(name, count)
        if any(not isfinite(value) or value < 1 or value != int(value) for value in values):
            raise CheckpointError(f"{self.key(name)}: expected positive whole numbers, got {values!r}")
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
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.key(name)} is missing: expected an object")
        return ConfigReader(value, self.path, f"{self.where}{name}.")

    def text(self) -> ConfigReader:
        """The text model's part: `text_config` of a multimodal config, or the config itself."""
        return self.child("text_config") if "text_config" in self.values else self


def layer_kinds(config: ConfigReader, count: int, period: int) -> list[AttentionKind]:
    """Attention kind of every layer; old configs name none, then every `period`-th layer is full."""
    listed = config.values.get("layer_types")
    if listed is None:
        return ["full" if (i + 1) % period == 0 else "sliding" for i in range(count)]
    names: dict[str, AttentionKind] = {"sliding_attention": "sliding", "full_attention": "full"}
    if not isinstance(listed, list) or len(listed) != count or any(kind not in names for kind in listed):
        raise CheckpointError(
            f"{config.key('layer_types')}: expected {count} entries, each one of {sorted(names)}, got {listed!r}"
        )
    return [names[kind] for kind in listed]


def rope_specs(config: ConfigReader) -> dict[AttentionKind, RopeSpec]:
    """Rotary parameters of both attention kinds, from the old keys (`rope_theta`) or the new (`rope_parameters`)."""
    if isinstance(config.values.get("rope_parameters"), dict):
        parameters = config.child("rope_parameters")
        named: tuple[tuple[AttentionKind, str, float], ...] = (
            ("sliding", "sliding_attention", 10_000.0),
            ("full", "full_attention", 1_000_000.0),
        )
        return {kind: _rope(parameters.child(key), "rope_theta", theta) for kind, key, theta in named}
    scaling = config.values.get("rope_scaling")
    full = _rope(config, "rope_theta", 1_000_000.0)
    if scaling is not None:
        full = RopeSpec(theta=full.theta, linear_factor=_rope(config.child("rope_scaling"), "", 1.0).linear_factor)
    return {"sliding": _rope(config, "rope_local_base_freq", 10_000.0), "full": full}


def _rope(config: ConfigReader, theta_key: str, theta: float) -> RopeSpec:
    kind = config.values.get("rope_type", config.values.get("type", "default"))  # "type" is what old configs say
    if kind not in ("default", "linear"):
        raise CheckpointError(f"{config.key('rope_type')}: expected 'default' or 'linear', got {kind!r}")
    factor = config.number("factor") if kind == "linear" else 1.0
    return RopeSpec(theta=config.number(theta_key, theta), linear_factor=factor)


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


def token_ids(config: ConfigReader, outer: ConfigReader, name: str) -> tuple[int, ...]:
    """One or several token ids under `name`; the outer config wins, unless it says null: generation reads it first."""
    value = outer.values.get(name)
    value = config.values.get(name) if value is None else value
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    if any(isinstance(v, bool) or not isinstance(v, int) for v in values):
        raise CheckpointError(f"{config.key(name)}: expected a token id or a list of them, got {value!r}")
    return tuple(values)


def find_prefix(checkpoint: Checkpoint) -> str:
    """What stands before ``embed_tokens.weight`` in this checkpoint: multimodal and text-only names differ."""
    for prefix in PREFIXES:
        if f"{prefix}embed_tokens.weight" in checkpoint.tensors:
            return prefix
    raise CheckpointError(
        f"{checkpoint.path}: tensor 'embed_tokens.weight' is missing under all known prefixes {list(PREFIXES)}; "
        "is this a complete Gemma checkpoint?"
    )


def checkpoint_name(spec: ModelSpec, name: str) -> str:
    """The name in the checkpoint of the tensor with the canonical `name`; an untied head stands beside the model."""
    if name != "lm_head.weight":
        return spec.tensor_prefix + name
    return "language_model.lm_head.weight" if spec.tensor_prefix == "language_model.model." else name


def require_tensors(checkpoint: Checkpoint, spec: ModelSpec, table: Iterable[TensorSpec]) -> None:
    """Check that every tensor is there and has its shape.

    Raises:
        CheckpointError: a tensor is missing or has another shape; it is named.
    """
    for tensor in table:
        checkpoint.require(checkpoint_name(spec, tensor.name), tensor.shape)


def ffn_and_norms(spec: ModelSpec, layer: int, norms: tuple[str, ...]) -> list[TensorSpec]:
    """Tensors that both families have in every layer: attention, feed-forward and norms over M."""
    at, m, d = f"layers.{layer}.", spec.hidden_size, spec.head_dim
    queries, keys = spec.num_heads * d, spec.num_kv_heads * d
    table = [TensorSpec(name=f"{at}{norm}.weight", shape=(m,), component="norm") for norm in norms]
    projections: list[tuple[str, tuple[int, int], Component]] = [
        ("q", (queries, m), "attention"),
        ("o", (m, queries), "attention"),
    ]
    head_norms = ["q"]
    if spec.layers[layer].kv_owner == layer:
        projections += [("k", (keys, m), "attention"), ("v", (keys, m), "attention_value")]
        head_norms.append("k")
    table += [
        TensorSpec(name=f"{at}self_attn.{p}_proj.weight", shape=shape, component=component)
        for p, shape, component in projections
    ]
    table += [TensorSpec(name=f"{at}self_attn.{p}_norm.weight", shape=(d,), component="norm") for p in head_norms]
    f = spec.layers[layer].ffn_width
    for name, shape in (("gate", (f, m)), ("up", (f, m)), ("down", (m, f))):
        table.append(TensorSpec(name=f"{at}mlp.{name}_proj.weight", shape=shape, component="ffn"))
    return table


def build_layers(
    kinds: list[AttentionKind], owners: list[int], widths: list[int], sparsity: list[float]
) -> tuple[LayerSpec, ...]:
    """One `LayerSpec` a layer from the parallel lists of a config."""
    return tuple(
        LayerSpec(kind=kind, kv_owner=owner, ffn_width=width, activation_sparsity=share)
        for kind, owner, width, share in zip(kinds, owners, widths, sparsity, strict=True)
    )
