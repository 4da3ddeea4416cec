"""Write a decoder graph with its weights prepacked: the content of a cache entry.

`decoder.onnx` has full-length caches, `decoder_window.onnx` window-sized caches on sliding layers (attribute
`sliding_window_cache` of GroupQueryAttention); both share one weight file. Runs as a process of its own: see
`edgepack_runtimes.cache_fill`.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from edgepack.package.folder import Package
from edgepack.package.interface import DECODER
from edgepack_runtimes.cache_fill import fill
from edgepack_runtimes.guards.onnx import check_graphs
from edgepack_runtimes.onnx.entry import DATA, FULL, WINDOW
from edgepack_runtimes.onnx.library import ort

# Smaller initializers stay inside the model file.
EXTERNAL_THRESHOLD_BYTES = 1024
PAGE_BYTES = 4096
COPY_BYTES = 1 << 24


def write_entry(package: Package, folder: Path) -> None:
    """Write the files of an entry for the decoder of `package` into `folder`."""
    _save_prepacked(package.file(DECODER), folder / FULL)
    model = onnx.load(str(folder / FULL), load_external_data=False)
    _needed_first(model, folder / DATA)
    _largest_first(model)
    (folder / FULL).write_bytes(model.SerializeToString())
    _window_caches(model)
    (folder / WINDOW).write_bytes(model.SerializeToString())


def _save_prepacked(decoder: Path, path: Path) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    for key, value in (
        ("session.save_external_prepacked_constant_initializers", "1"),
        ("session.optimized_model_external_initializers_file_name", DATA),
        ("session.optimized_model_external_initializers_min_size_in_bytes", str(EXTERNAL_THRESHOLD_BYTES)),
    ):
        options.add_session_config_entry(key, value)
    ort.InferenceSession(str(decoder), options, providers=["CPUExecutionProvider"], enable_fallback=False)


@dataclass(frozen=True, slots=True)
class Blob:
    """A span of a prepacked buffer or of a raw tensor, and how to tell the model its new offset."""

    entry: onnx.StringStringEntryProto
    index: int
    offset: int
    length: int
    needed: bool

    def move(self, offset: int) -> None:
        """Write the new offset where this blob's old one stands: "key|offset;length;sum|..." or a plain number."""
        if self.index < 0:
            self.entry.value = str(offset)
            return
        parts = self.entry.value.split("|")
        parts[self.index] = ";".join([str(offset), *parts[self.index].split(";")[1:]])
        self.entry.value = "|".join(parts)


def _blobs(model: onnx.ModelProto) -> Iterator[Blob]:
    """Every span of the weight file. Needed are prepacked buffers, and raw tensors that were not packed at all."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer if tensor.external_data}
    packed = {name for name, tensor in tensors.items() if any(_is_packed(entry) for entry in tensor.external_data)}
    # Scales and zero points go into the packed buffer of their codes.
    read_once = packed | {
        name for node in model.graph.node if packed.intersection(node.input) for name in node.input if name in tensors
    }
    for name, tensor in tensors.items():
        values = {entry.key: entry for entry in tensor.external_data}
        length = int(values["length"].value)
        yield Blob(values["offset"], -1, int(values["offset"].value), length, name not in read_once)
        for entry in filter(_is_packed, tensor.external_data):
            for index, part in enumerate(entry.value.split("|")[1:], start=1):
                offset, size = part.split(";")[:2]
                yield Blob(entry, index, int(offset), int(size), True)


def _is_packed(entry: onnx.StringStringEntryProto) -> bool:
    return entry.key.startswith("prepacked_")


def _needed_first(model: onnx.ModelProto, data: Path) -> None:
    """Rewrite the weight file so that what a step reads stands together, before what only a load reads.

    As saved, every packed buffer stands behind its raw tensor: reading ahead then brings in twice what is needed, and
    inside a memory limit the surplus pushes out what the next step reads.
    """
    blobs = sorted(_blobs(model), key=lambda blob: not blob.needed)
    source = os.open(data, os.O_RDONLY)
    ordered = data.with_suffix(".ordered")
    target = os.open(ordered, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        position = 0
        for blob in blobs:
            position = -(-position // PAGE_BYTES) * PAGE_BYTES
            _copy(source, blob.offset, target, position, blob.length)
            blob.move(position)
            position += blob.length
        os.fsync(target)
    finally:
        os.close(source)
        os.close(target)
    ordered.replace(data)


def _copy(source: int, start: int, target: int, position: int, length: int) -> None:
    while length:
        content = os.pread(source, min(length, COPY_BYTES), start)
        if not content:
            raise OSError(f"the saved weights end {length} bytes too early")
        written = os.pwrite(target, content, position)
        start, position, length = start + written, position + written, length - written


def _largest_first(model: onnx.ModelProto) -> None:
    """Sort nodes by their largest matrix; ONNX Runtime finds the order of computation itself, but packs in file order.

    A load holds a matrix, its fresh copy and its saved copy at once: better while little else is resident yet.
    """
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    nodes = sorted(model.graph.node, key=lambda node: -max((sizes.get(name, 0) for name in node.input), default=0))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _window_caches(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        window = attributes.get("local_window_size")
        if node.op_type == "GroupQueryAttention" and window is not None and window.i > 0:
            if "sliding_window_cache" in attributes:  # newer versions write defaults out
                node.attribute.remove(attributes["sliding_window_cache"])
            node.attribute.append(onnx.helper.make_attribute("sliding_window_cache", 1))


def main(arguments: Sequence[str]) -> int:
    """Check a package and pack it: see `edgepack_runtimes.cache_fill`."""
    return fill(check_graphs, write_entry, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
