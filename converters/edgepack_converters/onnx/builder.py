"""A graph under construction: nodes, constants, and parameters that live in a weight file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgepack.model.ops import Weight
from edgepack.package.interface import Interface, TensorType
from edgepack.planning.plan import TensorPlan
from edgepack.quant.layout import FloatScheme
from edgepack_converters.onnx.layout import Layout
from edgepack_converters.weights import StoredTensor, WeightFile

MS = "com.microsoft"
Attribute = int | float | str | Sequence[int]
DTYPES = {"float32": ir.DataType.FLOAT, "int64": ir.DataType.INT64}


def declare(value: ir.Value, name: str, kind: TensorType) -> ir.Value:
    """`value` as the input or output `name` of a graph."""
    value.name, value.type, value.shape = name, ir.TensorType(DTYPES[kind.dtype]), ir.Shape(kind.shape)
    return value


def declared_inputs(interface: Interface) -> dict[str, ir.Value]:
    """New values for all inputs of a graph, by name and in their order."""
    return {name: declare(ir.Value(), name, kind) for name, kind in interface.inputs.items()}


class GraphBuilder:
    """Appends nodes in order; every helper returns the value of its result.

    Args:
        tensors: planned storage of every tensor, by canonical name.
        layout: where initializers that live in weight files are registered.
        weights: file that new weights of this graph go to.
    """

    def __init__(self, tensors: Mapping[str, TensorPlan], layout: Layout, weights: WeightFile) -> None:
        self.tensors, self.layout, self.weights = tensors, layout, weights
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self._memo: dict[object, ir.Value] = {}

    def node(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        domain: str = "",
        outputs: int = 1,
        skipped: Sequence[int] = (),
        **attributes: Attribute,
    ) -> tuple[ir.Value, ...]:
        """Append one node and return its outputs; the `skipped` ones are optional and not asked for."""
        node = ir.node(op_type, list(inputs), attributes, domain=domain, num_outputs=outputs)
        node.name = f"{op_type}_{len(self.nodes)}"
        for i, value in enumerate(node.outputs):
            value.name = "" if i in skipped else node.name if outputs == 1 else f"{node.name}.{i}"
        self.nodes.append(node)
        return tuple(node.outputs)

    def one(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Attribute) -> ir.Value:
        """Append a node that has one output and return it."""
        return self.node(op_type, *inputs, domain=domain, outputs=1, skipped=(), **attributes)[0]

    def memo(self, key: object, make: Callable[[], ir.Value]) -> ir.Value:
        """The value made once under `key`; later calls share it."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def literal(self, values: Sequence[float] | float | npt.NDArray[Any], dtype: str) -> ir.Value:
        """A small constant inside the model file; equal constants are stored once."""
        array = np.asarray(values, dtype=dtype)

        def make() -> ir.Value:
            return self.initializer(ir.tensor(array, name=f"const_{len(self.initializers)}"))

        return self.memo((dtype, array.shape, array.tobytes()), make)

    def integers(self, *values: int) -> ir.Value:
        """An int64 list, as axes and shapes are given."""
        return self.literal(values, "int64")

    def initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        """Register `tensor` under its own name."""
        name = str(tensor.name)
        value = ir.Value(
            name=name, shape=ir.Shape(tuple(tensor.shape.numpy())), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.initializers[name] = value
        return value

    def parts(self, *weights: Weight) -> dict[str, ir.Value]:
        """The stored parts of `weights`, stacked along the rows, as initializers by part name.

        The codes of an int scheme are there in two shapes over the same bytes; see `Layout.place`. An initializer
        that no node uses is dropped when the graph is finished.
        """
        sources = tuple((self.tensors[weight.name], weight) for weight in weights)
        placed = self.layout.place(StoredTensor(sources), self.weights)
        values = {}
        for name, external in placed.items():
            if external.name not in self.initializers:
                self.initializer(external)
            values[name] = self.initializers[str(external.name)]
        return values

    def vector(self, weight: Weight) -> ir.Value:
        """A vector parameter, which every plan has in float32."""
        return self.parts(weight)["values"]

    def operand(self, b: ir.Value | float | Weight) -> ir.Value:
        """The second operand of an arithmetic node: a value, a number or a vector parameter."""
        if isinstance(b, Weight):
            return self.vector(b)
        return self.literal(float(b), "float32") if isinstance(b, int | float) else b

    def graph(
        self,
        name: str,
        interface: Interface,
        inputs: Mapping[str, ir.Value],
        outputs: Mapping[str, ir.Value],
        opset: int,
    ) -> ir.Graph:
        """The finished graph, with the initializers that its nodes use, and the outputs of its interface."""
        used = {value.name for node in self.nodes for value in node.inputs if value is not None}
        return ir.Graph(
            list(inputs.values()),
            [declare(outputs[key], key, kind) for key, kind in interface.outputs.items()],
            nodes=self.nodes,
            initializers=[value for key, value in self.initializers.items() if key in used],
            opset_imports={"": opset, MS: 1},
            name=name,
        )


class TableOps(GraphBuilder):
    """The operations of an embedding graph (`edgepack.model.ops.TableOps`)."""

    def embedding(self, ids: ir.Value, table: Weight) -> ir.Value:
        scheme = self.tensors[table.name].scheme
        parts = self.parts(table)
        if isinstance(scheme, FloatScheme):
            rows = self.one("Gather", parts["values"], ids, axis=0)
            return rows if scheme.dtype == "float32" else self.one("Cast", rows, to=ir.DataType.FLOAT.value)
        return self.one(
            "GatherBlockQuantized",
            parts["rows"],
            ids,
            parts["scales"],
            parts.get("zero_points"),
            domain=MS,
            bits=scheme.bits,
            block_size=scheme.block_of(self.tensors[table.name].shape),
            gather_axis=0,
            quantize_axis=1,
        )

    def ids_below(self, ids: ir.Value, vocab_size: int) -> ir.Value:
        inside = self.one("Less", ids, self.literal(vocab_size, "int64"))
        return self.one("Where", inside, ids, self.literal(0, "int64"))

    def mul(self, a: ir.Value, b: ir.Value | float | Weight) -> ir.Value:
        return self.one("Mul", a, self.operand(b))

    def reshape(self, x: ir.Value, *tail: int) -> ir.Value:
        return self.one("Reshape", x, self.integers(0, 0, *tail))
