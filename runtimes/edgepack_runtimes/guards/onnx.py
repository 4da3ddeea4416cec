"""The graphs of an ONNX package, looked at before ONNX Runtime gets their path.

What a graph computes is not judged: ONNX Runtime checks operators itself. What is refused is what reaches outside the
package, what has sizes that its files do not have, and what differs from the manifest, by which buffers are allocated.
Field numbers are those of `onnx.proto`. The folder is taken as it is now; later changes are not kept out.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path, PurePosixPath

from edgepack.errors import PackageError
from edgepack.model.spec import ModelSpec
from edgepack.package.folder import Package
from edgepack.package.trust import read_regular
from edgepack.shown import printable
from edgepack_runtimes.guards.protobuf import Message, Span, WireError

# Weights stand in files beside the graph. The one of Gemma 3n E2B has 0.5 MB.
MOST_GRAPH_BYTES = 32_000_000
DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
# An operator that names a file of its own, for accelerators.
OPENS_FILES = "EPContext"
FLOAT, INT64 = 1, 7
# Bytes of an element by TensorProto.DataType; 4-bit and text types are not in our graphs.
ELEMENT_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum"})
# Fields of an AttributeProto that hold graphs, sparse tensors or types: there is no control flow here.
NESTED = {6: "a graph", 11: "graphs", 14: "a type", 15: "types", 22: "a sparse tensor", 23: "sparse tensors"}
# Type and shape of an input or output; None is a length that only a run knows.
Shape = tuple[int | None, ...]
Signature = dict[str, tuple[int, Shape]]


def check_graphs(package: Package) -> None:
    """Check both graphs of `package`.

    Raises:
        PackageError: one is damaged, reaches outside the package, or is another one than the manifest says.
    """
    spec = package.manifest.plan.spec
    sizes = {entry.path: entry.size_bytes for entry in package.manifest.files}
    for role, expected in (("embed", embed_signature(spec)), ("decoder", decoder_signature(spec))):
        path = package.file(role)
        content = read_regular(path.resolve(), MOST_GRAPH_BYTES)
        folder = PurePosixPath(package.manifest.graphs[role]).parent
        try:
            graph = GraphCheck(content, path, {k: v for k, v in sizes.items() if PurePosixPath(k).parent == folder})
            graph.check_signature(*expected)
            if role == "decoder":
                graph.check_lengths(spec, package.manifest.plan.context_tokens)
        except WireError as error:
            raise PackageError(f"{path} is no ONNX graph: {error}; export or copy the package again") from error


def embed_signature(spec: ModelSpec) -> tuple[Signature, Signature]:
    """Inputs and outputs of the graph that looks tokens up."""
    lead: Shape = (None, None)
    outputs: Signature = {"inputs_embeds": (FLOAT, (*lead, spec.hidden_size))}
    if spec.ple is not None:
        outputs["per_layer_inputs"] = (FLOAT, (*lead, len(spec.layers), spec.ple.dim))
    return {"input_ids": (INT64, lead)}, outputs


def decoder_signature(spec: ModelSpec) -> tuple[Signature, Signature]:
    """Inputs and outputs of the decoder."""
    lead: Shape = (None, None)
    inputs = embed_signature(spec)[1] | {"attention_mask": (INT64, lead), "position_ids": (INT64, lead)}
    inputs["num_logits_to_keep"] = (INT64, ())
    outputs: Signature = {"logits": (FLOAT, (*lead, spec.vocab_size))}
    for i, owner in enumerate(spec.kv_owners):
        cache: Shape = (None, spec.attention_of(owner).num_kv_heads, None, spec.attention_of(owner).head_dim)
        for part in ("key", "value"):
            inputs[f"past_key_values.{i}.{part}"] = outputs[f"present.{i}.{part}"] = (FLOAT, cache)
    return inputs, outputs


class GraphCheck:
    """One graph: its model, nodes and constants are checked when it is made.

    Args:
        content: the file.
        path: its name, for messages.
        files: sizes of the files of the package in the folder of the graph, by path in the package.
    """

    def __init__(self, content: bytes, path: Path, files: Mapping[str, int]) -> None:
        self.content, self.path = content, path
        self.files = {PurePosixPath(name).name: size for name, size in files.items()}
        model = Message(content, repeated=(8, 14, 20, 25))
        if model.spans(20) or model.spans(25):
            self._refuse("it has functions or training steps of its own")
        for span in model.spans(8):
            self._check_domain(Message(content, span).text(1), "it asks for operators")
        graph = model.span(7)
        if graph is None:
            raise WireError("it has no graph")
        self.graph = Message(content, graph, repeated=(1, 5, 11, 12, 13, 14, 15, 16))
        if self.graph.spans(15):
            self._refuse("it has sparse constants")
        self.constants: dict[str, tuple[int, ...]] = {}
        for span in self.graph.spans(5):
            name, dims = self._check_tensor(span, "constant")
            self.constants[name] = dims
        self._attributes: dict[bytes, tuple[str, int]] = {}
        self.windows: set[int] = set()
        self.rotary: set[str] = set()
        for span in self.graph.spans(1):
            self._check_node(span)

    def _refuse(self, what: str) -> None:
        raise PackageError(f"{self.path}: {what}: refusing to open it; export the package again")

    def _check_domain(self, domain: str, what: str) -> None:
        if domain not in DOMAINS:
            known = ", ".join(repr(name) for name in sorted(DOMAINS))
            self._refuse(f"{what} of the domain '{printable(domain)}', expected one of {known}")

    def _check_node(self, span: Span) -> None:
        node = Message(self.content, span, repeated=(1, 2, 5, 9, 10))
        kind = node.text(4)
        if 7 in node.fields:
            self._check_domain(node.text(7), f"it has an operator {printable(kind)}")
        if kind == OPENS_FILES:
            self._refuse(f"it has an operator {kind}, which opens other files")
        numbers: dict[str, int] = {}
        for at in node.spans(5):
            attribute = Message(self.content, at, repeated=(7, 8, 9, 10, 11, 15, 23))
            for field in attribute.fields:
                if field in NESTED:
                    self._refuse(
                        f"operator {printable(kind)} has {NESTED[field]} inside, which these graphs never have"
                    )
            for tensor in (*attribute.spans(5), *attribute.spans(10)):
                self._check_tensor(tensor, f"constant of an operator {printable(kind)},")
            if kind == "GroupQueryAttention" and 3 in attribute.fields:
                numbers[attribute.text(1)] = attribute.number(3)
        if kind == "GroupQueryAttention":
            self.windows.add(numbers.get("local_window_size", -1))
            names = [self.content[start:stop].decode("utf-8", "replace") for start, stop in node.spans(1)]
            self.rotary.update(name for name in names[7:9] if name)

    def _check_tensor(self, span: Span, what: str) -> tuple[str, tuple[int, ...]]:
        """Name and shape of a constant, whose bytes are where it says and as many as its shape needs."""
        tensor = Message(self.content, span, repeated=(1, 4, 5, 6, 7, 10, 11, 13, 16))
        name, dims, kind = tensor.text(8), tuple(tensor.numbers(1)), tensor.number(2)
        if kind not in ELEMENT_BYTES:
            self._refuse(f"{what} {printable(name)} has the element type {kind}, which these graphs never have")
        if any(size < 0 for size in dims) or len(dims) > 8:
            self._refuse(f"{what} {printable(name)} has the shape {list(dims[:9])}")
        needed = prod(dims) * ELEMENT_BYTES.get(kind, 1)
        start, stop = tensor.span(9) or (0, 0)
        if tensor.number(14) or 13 in tensor.fields:
            self._external(tensor, f"{what} {printable(name)}", needed)
            if stop > start:
                self._refuse(f"{what} {printable(name)} has its bytes in two places")
        elif needed != stop - start:
            self._refuse(f"{what} {printable(name)} has {stop - start} bytes, its shape {list(dims)} needs {needed}")
        return name, dims

    def _external(self, tensor: Message, what: str, needed: int) -> None:
        """Check where the bytes of `tensor` stand outside the graph."""
        entries: dict[str, str] = {}
        for span in tensor.spans(13):
            entry = Message(self.content, span)
            key = entry.text(1)
            if key in entries or key not in EXTERNAL_KEYS:
                self._refuse(f"{what} says '{printable(key)}' about its external data, or says it twice")
            entries[key] = entry.text(2)
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

    def check_signature(self, inputs: Signature, outputs: Signature) -> None:
        """Compare inputs and outputs with what the manifest's model has."""
        for number, what, expected in ((11, "input", inputs), (12, "output", outputs)):
            found = dict(self._value(span) for span in self.graph.spans(number))
            if found.keys() != expected.keys() or len(found) != len(self.graph.spans(number)):
                other = sorted(found.keys() ^ expected.keys())
                name = printable(other[0]) if other else "a name twice"
                self._refuse(f"{len(found)} {what}s where the manifest says {len(expected)}: {name} differs")
            for name, (kind, shape) in expected.items():
                got_kind, got = found[name]
                if got_kind != kind:
                    self._refuse(f"{what} {name} has the element type {got_kind} where the manifest says {kind}")
                if got != shape:
                    sizes = [[size or "any" for size in sizes] for sizes in (got, shape)]
                    self._refuse(
                        f"{what} {name} has size {sizes[0]} where the manifest says {sizes[1]}".replace("'", "")
                    )

    def _value(self, span: Span) -> tuple[str, tuple[int, Shape]]:
        value = Message(self.content, span, repeated=(4,))
        kind = Message(self.content, value.span(2) or (0, 0), repeated=())
        tensor = Message(self.content, kind.span(1) or (0, 0))
        shape = tensor.span(2)
        if shape is None:
            raise WireError(f"{printable(value.text(1))} has no shape")
        dims = [Message(self.content, at) for at in Message(self.content, shape, repeated=(1,)).spans(1)]
        return value.text(1), (tensor.number(1), tuple(dim.number(1) if 1 in dim.fields else None for dim in dims))

    def check_lengths(self, spec: ModelSpec, context_tokens: int) -> None:
        """Compare window and context with the attention operators: the caches have their lengths."""
        windows = {-1 if (window := spec.attention_of(i).window) is None else window for i in spec.kv_owners}
        if self.windows != windows:
            self._refuse(f"attention windows of {sorted(self.windows)} where the manifest says {sorted(windows)}")
        if not self.rotary:
            self._refuse("its attention has no rotary tables")
        for name in self.rotary:
            rows = (self.constants.get(name) or (0,))[0]
            if rows != context_tokens:
                self._refuse(f"context_tokens is {rows} ({printable(name)}) where the manifest says {context_tokens}")
