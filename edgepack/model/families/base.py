"""What a model family provides, and the small readers that turn a config into a spec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.errors import CheckpointError, UnsupportedError
from edgepack.model.config import ConfigKeys, ConfigReader
from edgepack.model.spec import AttentionKind, Frozen, LayerSpec, ModelSpec
from edgepack.quant.recipes import Component
from edgepack.shown import shown

if TYPE_CHECKING:
    from edgepack.checkpoint.folder import Checkpoint
    from edgepack.model.ops import Ops, TableOps


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
        unneeded: canonical names of tensors that official checkpoints hold and the model has no use for.
        text_keys: the keys of a text model's config.
        outer_keys: the keys of a multimodal config around it.
        embed: token ids [B, S] to input embeddings [B, S, M] and, where the family has them, per-layer
            embeddings [B, S, L, P].
        decode: these two to the logits [B, S', V] of the wanted positions.
    """

    name: str
    read_spec: Callable[[Checkpoint], ModelSpec]
    tensor_table: Callable[[ModelSpec], tuple[TensorSpec, ...]]
    unneeded: Callable[[ModelSpec], frozenset[str]]
    text_keys: ConfigKeys
    outer_keys: ConfigKeys
    embed: Callable[[TableOps[Any], ModelSpec, Any], tuple[Any, Any | None]]
    decode: Callable[[Ops[Any], ModelSpec, Any, Any | None], Any]


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
