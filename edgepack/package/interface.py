"""Inputs and outputs of a graph: a converter declares them, a runtime binds them, a guard compares them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from edgepack.model.spec import AttentionSpec
from edgepack.shown import printable

# Roles of the two graphs that every package has: token ids to rows, and rows to logits.
EMBED, DECODER = "embed", "decoder"


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type and shape of an input or output; a text in a shape names a length that only a run knows."""

    dtype: str
    shape: tuple[int | str, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape, where all of it is known."""
        return tuple(int(size) for size in self.shape)

    def __str__(self) -> str:
        sizes = ", ".join(str(size) if isinstance(size, int) else "any" for size in self.shape)
        return f"{self.dtype} [{sizes}]"


@dataclass(frozen=True, slots=True)
class Interface:
    """Inputs and outputs by name, in their order."""

    inputs: Mapping[str, TensorType]
    outputs: Mapping[str, TensorType]

    def difference(self, found: Interface) -> str | None:
        """What a graph's interface `found` has otherwise, in words; None where nothing that matters differs."""
        for ours, others in ((self.inputs, found.inputs), (self.outputs, found.outputs)):
            for name in dict.fromkeys(chain(ours, others)):
                got, expected = (str(names.get(name, "missing")) for names in (others, ours))
                if got != expected:
                    return f"{printable(name)} is {got} where the manifest says {expected}"
        return None


def cache_type(attention: AttentionSpec, rows: int | str, batch: int | str = 1) -> TensorType:
    """The keys, and the values, of a layer with this attention: [B, K, rows, D]."""
    return TensorType("float32", (batch, attention.num_kv_heads, rows, attention.head_dim))
