"""The graphs of an ONNX package, looked at before ONNX Runtime gets their path.

What a graph computes is not judged: ONNX Runtime checks operators itself. What is refused is what reaches outside the
package, what has sizes that its files do not have, and what differs from the manifest, by which buffers are allocated.
Only the process that fills a cache entry imports this: `onnx` would cost every load time and 7 MB.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path, PurePosixPath

from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from edgepack.errors import PackageError
from edgepack.model.spec import ModelSpec
from edgepack.package.folder import ALWAYS_HASHED_BYTES, Package
from edgepack.package.interface import DECODER, EMBED, Interface, TensorType
from edgepack.package.interface_onnx import decoder_interface, embed_interface, window_tokens
from edgepack.package.trust import read_regular
from edgepack.shown import printable

# Weights stand in files beside the graph. The decoder of Gemma 3n E2B has 0.5 MB. ONNX Runtime opens the embedder from
# the package at every load, when no guard looks: so it has to be one of the files that are hashed at every load.
MOST_GRAPH_BYTES = {EMBED: ALWAYS_HASHED_BYTES, DECODER: 32_000_000}
DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
# An operator that names a file of its own, for accelerators.
OPENS_FILES = "EPContext"
TYPE_NAMES = {1: "float32", 7: "int64"}
# Bytes of an element by TensorProto.DataType; 4-bit and text types are not in our graphs.
ELEMENT_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
MOST_DIMENSIONS = 8
EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum"})
# Types of attributes that hold graphs, sparse tensors or types: there is no control flow here.
NESTED = {
    "g": "a graph",
    "graphs": "graphs",
    "tp": "a type",
    "type_protos": "types",
    "sparse_tensor": "a sparse tensor",
    "sparse_tensors": "sparse tensors",
}


def check_graphs(package: Package) -> None:
    """Check both graphs of `package`.

    Raises:
        PackageError: one is damaged, reaches outside the package, or is another one than the manifest says.
    """
    plan = package.manifest.plan
    for role, interface in ((EMBED, embed_interface(plan.spec)), (DECODER, decoder_interface(plan.spec))):
        path, folder = package.file(role), PurePosixPath(package.listed(role)).parent
        beside = {entry.path: entry.size_bytes for entry in package.manifest.files}
        files = {PurePosixPath(k).name: size for k, size in beside.items() if PurePosixPath(k).parent == folder}
        graph = GraphCheck(read_regular(path.resolve(), MOST_GRAPH_BYTES[role]), path, files)
        graph.check_interface(interface)
        if role == DECODER:
            graph.check_lengths(plan.spec, plan.context_tokens)


class GraphCheck:
    """One graph: its model, nodes and constants are checked when it is made.

    Args:
        content: the file.
        path: its name, for messages.
        files: sizes of the files of the package in the folder of the graph, by name.
    """

    def __init__(self, content: bytes, path: Path, files: Mapping[str, int]) -> None:
        self.path, self.files = path, files
        self.graph = self._read(content).graph
        if self.graph.sparse_initializer:
            self._refuse("it has sparse constants")
        self.constants: dict[str, tuple[int, ...]] = {}
        for tensor in self.graph.initializer:
            self._check_tensor(tensor, "constant")
            self.constants[tensor.name] = tuple(tensor.dims)
        self.windows: set[int] = set()
        self.rotary: set[str] = set()
        for node in self.graph.node:
            self._check_node(node)

    def _read(self, content: bytes) -> ModelProto:
        """The model, if another reader cannot see another one in the same bytes.

        A reader merges what comes twice and skips fields that its version does not know: so what this one understood
        has to be all of the file, byte for byte.
        """
        try:
            model = ModelProto()
            model.ParseFromString(content)
            model.DiscardUnknownFields()
            same = model.HasField("graph") and model.SerializeToString(deterministic=True) == content
        except (DecodeError, ValueError):
            same = False
        if not same:
            raise PackageError(
                f"{self.path} is no ONNX graph as `onnx` writes it: export or copy the package again"
            ) from None
        if model.functions or model.training_info:
            self._refuse("it has functions or training steps of its own")
        for opset in model.opset_import:
            self._check_domain(_text(opset.domain), "it asks for operators")
        return model

    def _refuse(self, what: str) -> None:
        raise PackageError(f"{self.path}: {what}: refusing to open it; export the package again")

    def _check_domain(self, domain: str, what: str) -> None:
        if domain not in DOMAINS:
            known = ", ".join(repr(name) for name in sorted(DOMAINS))
            self._refuse(f"{what} of the domain '{printable(domain)}', expected one of {known}")

    def _check_node(self, node: NodeProto) -> None:
        kind = printable(_text(node.op_type))
        self._check_domain(_text(node.domain), f"it has an operator {kind}")
        if node.op_type == OPENS_FILES:
            self._refuse(f"it has an operator {kind}, which opens other files")
        for attribute in node.attribute:
            self._check_attribute(attribute, kind)
        if node.op_type == "GroupQueryAttention":
            numbers = {attribute.name: attribute.i for attribute in node.attribute}
            self.windows.add(numbers.get("local_window_size", -1))
            self.rotary.update(_text(name) for name in node.input[7:9] if name)

    def _check_attribute(self, attribute: AttributeProto, kind: str) -> None:
        found = {field.name for field, _ in attribute.ListFields()}
        if inside := NESTED.keys() & found:
            self._refuse(f"operator {kind} has {NESTED[min(inside)]} inside, which these graphs never have")
        for tensor in (*([attribute.t] if "t" in found else []), *attribute.tensors):
            self._check_tensor(tensor, f"constant of an operator {kind},")

    def _check_tensor(self, tensor: TensorProto, what: str) -> None:
        """Check that the bytes of a constant are where it says and as many as its shape needs."""
        what, dims, given = f"{what} {printable(_text(tensor.name))}", list(tensor.dims), len(tensor.raw_data)
        if tensor.data_type not in ELEMENT_BYTES:
            self._refuse(f"{what} has the element type {tensor.data_type}, which these graphs never have")
        if any(size < 0 for size in dims) or len(dims) > MOST_DIMENSIONS:
            self._refuse(f"{what} has the shape {dims[: MOST_DIMENSIONS + 1]}")
        needed = prod(dims) * ELEMENT_BYTES[tensor.data_type]
        if tensor.data_location or tensor.external_data:
            self._check_external(tensor, what, needed)
            if given:
                self._refuse(f"{what} has its bytes in two places")
        elif needed != given:
            self._refuse(f"{what} has {given} bytes, its shape {dims} needs {needed}")

    def _check_external(self, tensor: TensorProto, what: str, needed: int) -> None:
        """Check where the bytes of `tensor` stand outside the graph."""
        entries: dict[str, str] = {}
        for entry in tensor.external_data:
            key = _text(entry.key)
            if key in entries or key not in EXTERNAL_KEYS:
                self._refuse(f"{what} says '{printable(key)}' about its external data, or says it twice")
            entries[key] = _text(entry.value)
        location = entries.get("location", "")
        if location not in self.files:
            self._refuse(f"{what} has its bytes in '{printable(location)}', which is no file of the package beside it")
        numbers = [entries.get("offset", "0"), entries.get("length", str(needed))]
        if not all(text.isascii() and text.isdigit() and len(text) < 20 for text in numbers):
            self._refuse(f"{what} has its bytes at {printable(' and '.join(numbers))}, expected offset and length")
        offset, length = map(int, numbers)
        if length != needed:
            self._refuse(f"{what} has {length} bytes in {location}, its shape and type need {needed}")
        if offset + length > self.files[location]:
            self._refuse(f"{what} ends at byte {offset + length} of {location}, which has {self.files[location]} bytes")

    def check_interface(self, expected: Interface) -> None:
        """Compare inputs and outputs with what the manifest's model has."""
        found = Interface(self._values(self.graph.input), self._values(self.graph.output))
        if other := expected.difference(found):
            self._refuse(other)

    def _values(self, values: Iterable[ValueInfoProto]) -> dict[str, TensorType]:
        found: dict[str, TensorType] = {}
        for value in values:
            name, kind = _text(value.name), value.type.tensor_type
            if name in found or not kind.HasField("shape"):
                self._refuse(f"{printable(name)} has no shape, or comes twice")
            sizes = tuple(dim.dim_value if dim.HasField("dim_value") else "any" for dim in kind.shape.dim)
            found[name] = TensorType(TYPE_NAMES.get(kind.elem_type, f"type {kind.elem_type}"), sizes)
        return found

    def check_lengths(self, spec: ModelSpec, context_tokens: int) -> None:
        """Compare window and context with the attention operators: the caches have their lengths."""
        windows = {window_tokens(spec, owner) for owner in spec.kv_owners}
        if self.windows != windows:
            self._refuse(f"attention windows of {sorted(self.windows)} where the manifest says {sorted(windows)}")
        if not self.rotary:
            self._refuse("its attention has no rotary tables")
        for name in self.rotary:
            rows = (self.constants.get(name) or (0,))[0]
            if rows != context_tokens:
                self._refuse(f"context_tokens is {rows} ({printable(name)}) where the manifest says {context_tokens}")


def _text(value: str | bytes) -> str:
    """A text of the graph: one that is not UTF-8 comes as bytes."""
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")
