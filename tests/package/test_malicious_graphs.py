"""A stranger's graphs are refused before a runtime's library sees them, and damage never kills the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepack.package.folder import open_package
from edgepack_runtimes.guards.flatbuffer import FlatBuffer
from edgepack_runtimes.guards.litertlm import HEADER_AT
from tests.support.malicious import copied, edit, forbid_native, refused, seal
from tests.support.paths import ROOT
from tests.support.tiny import CONTEXT, TinyPackages

GraphEdit = Callable[[onnx.ModelProto], Any]
BundleEdit = Callable[[bytearray, dict[str, Any]], None]


def external(model: onnx.ModelProto, key: str, value: str) -> None:
    """Change what the first constant outside the graph says about its place."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    next(entry for entry in tensor.external_data if entry.key == key).value = value


def dims(model: onnx.ModelProto, *sizes: int) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    del tensor.dims[:]
    tensor.dims.extend(sizes)


def with_branch(model: onnx.ModelProto) -> None:
    """An If whose body reads a file of its own."""
    secret = TensorProto(name="secret", dims=[4], data_type=1, data_location=1)
    secret.external_data.add(key="location", value="/etc/passwd")
    body = helper.make_graph([], "body", [], [helper.make_tensor_value_info("secret", 1, [4])], [secret])
    model.graph.node.append(helper.make_node("If", ["num_logits_to_keep"], ["x"], then_branch=body, else_branch=body))


def with_constant(model: onnx.ModelProto) -> None:
    """A Constant whose attribute reads a file of its own."""
    secret = TensorProto(name="secret", dims=[4], data_type=1, data_location=1)
    secret.external_data.add(key="location", value="../../secret")
    model.graph.node.append(helper.make_node("Constant", [], ["x"], value=secret))


def size_of(model: onnx.ModelProto, name: str, axis: int, size: int) -> None:
    values = (*model.graph.input, *model.graph.output)
    next(value for value in values if value.name == name).type.tensor_type.shape.dim[axis].dim_value = size


def window_of(model: onnx.ModelProto, size: int) -> None:
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "local_window_size" and attribute.i > 0:
                attribute.i = size


GRAPHS: dict[str, tuple[GraphEdit, str]] = {
    "absolute": (lambda m: external(m, "location", "/etc/passwd"), "'/etc/passwd', which is no file of the package"),
    "parent": (lambda m: external(m, "location", "../config.json"), "'../config.json', which is no file"),
    "unlisted": (lambda m: external(m, "location", "other_data"), "'other_data', which is no file"),
    "memory": (lambda m: external(m, "location", "*/_ORT_MEM_ADDR_/*"), "'*/_ORT_MEM_ADDR_/*', which is no file"),
    "offset": (lambda m: external(m, "offset", str(10**9)), "ends at byte 10000"),
    "negative offset": (lambda m: external(m, "offset", "-1"), "expected offset and length"),
    "length": (lambda m: external(m, "length", "4"), "has 4 bytes in"),
    "prepacked": (
        lambda m: next(t for t in m.graph.initializer if t.external_data).external_data.add(
            key="prepacked_0", value="k"
        ),
        "'prepacked_0'",
    ),
    "negative size": (lambda m: dims(m, -1, -4), "has the shape [-1, -4]"),
    "overflow": (lambda m: dims(m, 2**62, 2**62), "bytes in decoder_model_merged.onnx_data, its shape"),
    "another type": (lambda m: setattr(m.graph.initializer[0], "data_type", 8), "has the element type 8"),
    "inline": (
        lambda m: m.graph.initializer.append(TensorProto(name="x", dims=[2**40], data_type=1, raw_data=b"1234")),
        "has 4 bytes, its shape [1099511627776]",
    ),
    "domain": (lambda m: setattr(m.graph.node[0], "domain", "evil"), "of the domain 'evil'"),
    "library": (lambda m: m.opset_import.add(domain="evil\n", version=1), "of the domain 'evil\\x0a'"),
    "context file": (lambda m: setattr(m.graph.node[0], "op_type", "EPContext"), "EPContext, which opens other files"),
    "branch": (with_branch, "operator If has a graph inside"),
    "constant": (with_constant, "'../../secret', which is no file of the package"),
    "function": (lambda m: m.functions.add(name="f", domain="com.microsoft"), "functions or training steps"),
    "sparse": (lambda m: m.graph.sparse_initializer.add(), "sparse constants"),
    "heads": (
        lambda m: size_of(m, "past_key_values.0.key", 1, 10**6),
        "past_key_values.0.key is float32 [any, 1000000, any, 16] where the manifest says",
    ),
    "logits": (
        lambda m: size_of(m, "logits", 2, 7),
        "logits is float32 [any, any, 7] where the manifest says float32 [any, any, 104]",
    ),
    "fewer caches": (lambda m: m.graph.input.pop(), "num_logits_to_keep is missing where the manifest says int64 []"),
    "type": (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 7), "inputs_embeds is int64 ["),
    "window": (lambda m: window_of(m, 10**6), "attention windows of [-1, 1000000]"),
}


# Texts that are not UTF-8, each in place of one of as many bytes.
NOT_TEXT = {
    "domain": (b"com.microsoft", "the domain '\\xffom.microsoft'"),
    "constant": (b"rope.full.cos", "context_tokens is 0 (\\xffope.full.cos)"),
    "location": (b"decoder_model_merged.onnx_data", "its bytes in '\\xffecoder"),
    "key": (b"location", "'\\xffocation'"),
    "input": (b"position_ids", "position_ids is missing"),
}


@pytest.mark.parametrize(("name", "needle"), NOT_TEXT.values(), ids=NOT_TEXT)
def test_names_that_are_not_utf_8(
    tiny_packages: TinyPackages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes, needle: str
) -> None:
    folder = copied(tiny_packages("shared").package.path, tmp_path / "package")
    path = folder / "onnx" / "decoder_model_merged.onnx"
    path.write_bytes(path.read_bytes().replace(name, b"\xff" + name[1:]))
    seal(folder)
    forbid_native(monkeypatch)
    refused(folder, path.name, needle)


@pytest.mark.parametrize(("change", "needle"), GRAPHS.values(), ids=GRAPHS)
def test_graphs(
    tiny_packages: TinyPackages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: GraphEdit, needle: str
) -> None:
    folder = copied(tiny_packages("shared").package.path, tmp_path / "package")
    path = folder / "onnx" / "decoder_model_merged.onnx"
    model = onnx.load(str(path), load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    seal(folder)
    forbid_native(monkeypatch)
    refused(folder, path.name, needle)


def test_a_graph_in_which_another_reader_could_see_another_one(
    tiny_packages: TinyPackages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_packages("shared").package.path
    forbid_native(monkeypatch)
    whole = (source / "onnx" / "decoder_model_merged.onnx").read_bytes()
    # A field of a later version, a second graph that readers merge with the first, a number in more bytes than needed.
    for i, more in enumerate((b"\xfa\x3f\x01x", b"\x3a\x00", b"\x08\x8a\x80\x00")):
        folder = copied(source, tmp_path / str(i))
        (folder / "onnx" / "decoder_model_merged.onnx").write_bytes(whole + more)
        seal(folder)
        refused(folder, "decoder_model_merged.onnx is no ONNX graph as `onnx` writes it")


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 100, b"\x3a\x7f", b"\x3b", b"\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"]
)
def test_graphs_that_are_none(
    tiny_packages: TinyPackages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    folder = copied(tiny_packages("shared").package.path, tmp_path / "package")
    (folder / "onnx" / "embed_tokens.onnx").write_bytes(content)
    seal(folder)
    forbid_native(monkeypatch)
    refused(folder, "embed_tokens.onnx is no ONNX graph")


def test_a_graph_that_is_opened_from_the_package_and_too_large_to_be_hashed_at_every_load(
    tiny_packages: TinyPackages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(tiny_packages("shared").package.path, tmp_path / "package")
    os.truncate(folder / "onnx" / "embed_tokens.onnx", (1 << 20) + 1)
    seal(folder)
    forbid_native(monkeypatch)
    refused(folder, "embed_tokens.onnx has 1,048,577 bytes: expected at most 1,048,576")


def test_a_graph_of_another_context(
    tiny_packages: TinyPackages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(tiny_packages("shared").package.path, tmp_path / "package")
    edit(
        folder,
        lambda data: (data["plan"].update(context_tokens=2**20), data["plan"]["spec"].update(max_context_tokens=2**20)),
    )
    forbid_native(monkeypatch)
    refused(folder, f"context_tokens is {CONTEXT}", "where the manifest says 1048576")


# -- LiteRT


def put(content: bytearray, position: int, value: int, width: int = 4) -> None:
    content[position : position + width] = (value % 2 ** (8 * width)).to_bytes(width, "little")


def place(content: bytearray, spans: dict[str, Any], tables: list[int], field: int, width: int = 4) -> int:
    """Where a field of the decoder's first table that has it stands; `tables` are the slots on the way to it."""
    offset, size = spans["decoder"]
    found = FlatBuffer(np.frombuffer(bytes(content[offset : offset + size]), np.uint8)).root()
    for slot in tables:
        found = found.tables(slot, "table")[0]
    positions = found._field(field, width)
    return offset + int(positions[positions != 0][0])


def element(content: bytearray, spans: dict[str, Any], tables: list[int], slot: int) -> int:
    """Where the first element of such a vector stands."""
    at = place(content, spans, tables, slot)
    return at + int.from_bytes(content[at : at + 4], "little") + 4


def header(content: bytearray, field: int, width: int) -> int:
    """Where a field of the first section in the header stands."""
    end = int.from_bytes(content[24:32], "little")
    root = FlatBuffer(np.frombuffer(bytes(content[HEADER_AT:end]), np.uint8)).root()
    return HEADER_AT + int(root.children(1, "list")[0].tables(0, "section")[0]._field(field, width)[0])


def context_of(content: bytearray, value: bytes) -> None:
    at = content.index(b"\x28\x80\x01")  # field 5 of the metadata, 128
    content[at : at + 3] = value


BUNDLES: dict[str, tuple[BundleEdit, str]] = {
    "no bundle": (lambda c, s: put(c, 0, 0), "does not begin as a bundle"),
    "header": (lambda c, s: put(c, 24, 10**12, 8), "its header ends at byte 1000000000000"),
    "header root": (lambda c, s: put(c, 32, 2**31), "a root points to byte"),
    "section": (lambda c, s: put(c, header(c, 2, 8), 10**15, 8), "to 1000000000000000, the file has"),
    "section kind": (lambda c, s: put(c, header(c, 3, 1), 7, 1), "section 0 is of the kind 7"),
    "overlap": (lambda c, s: put(c, header(c, 2, 8), s["embed"][0] + 1, 8), "two sections have byte"),
    "context": (lambda c, s: context_of(c, b"\x28\xff\x7f"), "context_tokens is 16383 where the manifest says 128"),
    "unknown metadata": (lambda c, s: context_of(c, b"\x50\x80\x01"), "its metadata has field 10"),
    "model root": (lambda c, s: put(c, s["decoder"][0], 2**31), "a root points to byte"),
    "model name": (lambda c, s: put(c, s["decoder"][0] + 4, 0), "it does not begin as TFL3"),
    "buffer": (lambda c, s: put(c, place(c, s, [4], 1, 8), 2**63, 8), "bytes at 9223372036854775808"),
    "buffer size": (lambda c, s: put(c, place(c, s, [4], 2, 8), 2**40, 8), "has 1099511627776 bytes at"),
    "shape": (lambda c, s: put(c, element(c, s, [2, 0], 0) + 4, 2**31 - 1), "a tensor has the shape"),
    "no shape": (lambda c, s: put(c, element(c, s, [2, 0], 0), -1), "a tensor has the shape [-1"),
    "element type": (
        lambda c, s: put(c, place(c, s, [2, 0], 1, 1), 5, 1),
        "an element type that our models never have",
    ),
    "tensor's buffer": (lambda c, s: put(c, place(c, s, [2, 0], 2), 10**6), "a tensor names buffer 1000000"),
    "custom operator": (lambda c, s: put(c, place(c, s, [1], 3), 32), "operator 32 of LiteRT"),
    "operator code": (lambda c, s: put(c, place(c, s, [2, 3], 0), 999), "an operator names operator code 999"),
    "no input": (lambda c, s: put(c, element(c, s, [2, 3], 1), -1), "an operator's input names tensor -1"),
    "output": (lambda c, s: put(c, element(c, s, [2, 3], 2), 10**6), "an operator's output names tensor 1000000"),
    "fewer inputs": (lambda c, s: put(c, element(c, s, [2, 3], 1) - 4, 9), "operator"),
    "vector": (lambda c, s: put(c, element(c, s, [2, 3], 1) - 4, 2**31), "a vector of an operator points to byte"),
    "subgraph": (lambda c, s: put(c, place(c, s, [7], 4), 77), "a signature names subgraph 77"),
    "signature": (lambda c, s: put(c, element(c, s, [7], 2), ord("q"), 1), "is in the file or in the manifest"),
}


@pytest.mark.parametrize("runtime", ["litert", "litert-lm"])
@pytest.mark.parametrize(("change", "needle"), BUNDLES.values(), ids=BUNDLES)
def test_bundles(
    tiny_packages: TinyPackages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: BundleEdit,
    needle: str,
    runtime: str,
) -> None:
    folder = copied(tiny_packages("shared", "int4", to="litert").package.path, tmp_path / "package")
    bundle = folder / "litert" / "model.litertlm"
    content = bytearray(bundle.read_bytes())
    change(content, json.loads((folder / "manifest.json").read_text())["spans"])
    bundle.write_bytes(content)
    (folder / "tokenizer.json").write_text("{}")  # so that LiteRT-LM would begin
    seal(folder)
    forbid_native(monkeypatch)
    refused(folder, "model.litertlm", needle, runtime=runtime)


# -- damage anywhere


FUZZ = """
import os, random, signal, sys
from pathlib import Path
from edgepack.errors import EdgepackError
from edgepack.package.folder import open_package
from tests.support.malicious import seal
import edgepack
folder, target, begin, end, count = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
content = target.read_bytes()
for seed in range(count):
    chance = random.Random(seed)
    damaged = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8])):
        damaged[chance.randrange(begin, end)] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
    target.write_bytes(damaged)
    seal(folder)
    try:
        with edgepack.load(folder, threads=1) as model:
            model.prefill([3, 4, 5])
        print("ran")
    except EdgepackError as error:
        assert str(error).isprintable(), error
        print("refused")
"""


@pytest.mark.parametrize("to", ["onnx", "litert"])
def test_damage_is_refused_or_harmless(tiny_packages: TinyPackages, tmp_path: Path, to: str) -> None:
    package = tiny_packages("shared", "int4", to=to).package
    folder = copied(package.path, tmp_path / "package")
    target = folder / open_package(folder).manifest.graphs["decoder"]
    begin = package.manifest.spans["decoder"][0] if to == "litert" else 0
    size = 150_000 if to == "litert" else target.stat().st_size  # behind the structure are weights
    roots = os.pathsep.join(map(str, (ROOT, ROOT / "converters", ROOT / "runtimes")))
    environment = {**os.environ, "PYTHONPATH": roots, "EDGEPACK_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", FUZZ, *map(str, (folder, target, begin, begin + size, 25))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.split()) == 25 and "refused" in done.stdout
