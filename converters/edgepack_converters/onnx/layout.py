"""External tensors of the graphs: one that two graphs use (the tied embedding and head) is placed once and shared."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from edgepack.quant.layout import IntScheme, Part
from edgepack_converters.weights import Placement, StoredTensor, WeightFile

DTYPES = {"uint8": ir.DataType.UINT8, "float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}


class Layout:
    """All weight files of a package, and the external tensors that point into them."""

    def __init__(self) -> None:
        self._placed: dict[StoredTensor, dict[str, ir.ExternalTensor]] = {}
        self._names: Counter[str] = Counter()

    def place(self, tensor: StoredTensor, file: WeightFile) -> dict[str, ir.ExternalTensor]:
        """External tensors of the parts of `tensor`, by name; placed in `file` unless some graph placed it before.

        The codes of an int scheme come in both shapes that operators ask for, over the same bytes: ``codes``
        [N, K / block, block * bits / 8] for products and ``rows`` [N, K * bits / 8] for look-ups.
        """
        if tensor in self._placed:
            return self._placed[tensor]
        # A graph finds its initializers by name, and one matrix may be stacked or folded in two ways.
        self._names[tensor.name] += 1
        count = self._names[tensor.name]
        full_name = tensor.name if count == 1 else f"{tensor.name}.{count}"
        parts: dict[str, ir.ExternalTensor] = {}
        for part in tensor.scheme.parts(tensor.shape):
            placement = file.append(part, tensor)
            name = full_name if part.name == "values" else f"{full_name}.{part.name}"
            if part.name != "codes" or not isinstance(tensor.scheme, IntScheme):
                parts[part.name] = _external(file, placement, name, part.shape)
                continue
            rows, row_bytes = part.shape
            blob = tensor.scheme.block_of(tensor.shape) * tensor.scheme.bits // 8
            parts["codes"] = _external(file, placement, name, (rows, row_bytes // blob, blob))
            parts["rows"] = _external(file, placement, f"{name}.rows", part.shape)
        self._placed[tensor] = parts
        return parts

    def place_array(self, name: str, content: npt.NDArray[Any], file: WeightFile) -> ir.ExternalTensor:
        """External tensor of a table that the exporter computed."""
        part = Part(name="values", dtype="float32", shape=content.shape)
        return _external(file, file.append(part, content=content), name, part.shape)


def _external(file: WeightFile, placement: Placement, name: str, shape: tuple[int, ...]) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        location=file.name,
        offset=placement.offset,
        length=placement.part.nbytes,
        dtype=DTYPES[placement.part.dtype],
        shape=ir.Shape(shape),
        name=name,
    )


def some_rows(tensor: ir.ExternalTensor, start: int, stop: int) -> ir.ExternalTensor:
    """Rows `start` to `stop` of an external tensor, as a tensor of their own over the same bytes."""
    rows, *tail = tensor.shape.numpy()
    row_bytes = (tensor.length or 0) // rows
    return ir.ExternalTensor(
        location=tensor.location,
        offset=(tensor.offset or 0) + start * row_bytes,
        length=(stop - start) * row_bytes,
        dtype=tensor.dtype,
        shape=ir.Shape([stop - start, *tail]),
        name=f"{tensor.name}.from{start}",
    )
