"""One clear line for everything that can be wrong with a checkpoint folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.checkpoint.folder import INDEX_FILE, open_checkpoint
from edgepack.errors import CheckpointError
from tests.support.checkpoint_files import ONE, ONE_DATA, Header, entry, make_folder, refused, sharded, write_shard


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "ckpt")


def test_missing_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere: no such folder", "google/gemma-3n-E2B-it")


def test_a_file_instead_of_a_folder(folder: Path, tmp_path: Path) -> None:
    refused(folder / "config.json", "not a folder", "config.json and safetensors")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    refused(tmp_path / "model.gguf", "a GGUF file")


def test_unreadable_folder_and_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        """`real`, except that the path called `name` may not be read (root may read everything)."""

        def call(path: Any, *args: Any, **options: Any) -> Any:
            if Path(path).name == name:
                raise PermissionError(13, "Permission denied")
            return real(path, *args, **options)

        return call

    for target, attribute, name in (
        (os, "listdir", "ckpt"),
        (Path, "read_bytes", "config.json"),
        (os, "stat", "model.safetensors"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, attribute, deny(getattr(target, attribute), name))
            refused(folder, name, "cannot be read: Permission denied")


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("{", "not valid JSON"),
        ("\udcff", "not valid JSON"),
        ("[1]", "expected a JSON object, got list"),
        ('{"a": 1, "a": 2}', "key 'a' stands there twice"),
        ("[" * 100_000, "not valid JSON: nested too deep"),
    ],
    ids=["cut off", "not utf-8", "list", "twice", "deep"],
)
def test_broken_config(folder: Path, text: str, needle: str) -> None:
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(folder, "config.json", needle)


def test_missing_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, "config.json: this file is missing", "Transformers checkpoint")


@pytest.mark.parametrize(
    ("name", "needle"),
    [
        ("pytorch_model.bin", "pickle files can run code and are never loaded"),
        ("model.gguf", "GGUF weights are already quantized"),
        ("adapter_model.safetensors", "an adapter: merge it into its base model"),
        ("model-00001-of-00002.safetensors", "download the index as well"),
        ("README.md", "expected the weights as safetensors"),
    ],
)
def test_weights_in_another_form(folder: Path, name: str, needle: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, "no model.safetensors", needle)


@pytest.mark.parametrize(
    ("header", "needle"),
    [
        (b"{", "the header is not valid JSON"),
        (b"\xff\xfe", "the header is not valid JSON"),
        (b"[]", "the header is a JSON list, expected an object"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"w": {"dtype": "F32", "dtype": "F32"}}', "key 'dtype' stands there twice"),
        (b'{"w": {}, "w": {}}', "key 'w' stands there twice"),
        ({"w": 1}, "tensor 'w': expected an object with dtype, shape and data_offsets"),
        ({"w": {"dtype": "F32", "shape": [4]}}, "tensor 'w': expected an object with dtype, shape and data_offsets"),
        ({"w": entry("F8_E4M3", [16], 0, 16)}, "tensor 'w' has dtype F8_E4M3, expected BF16, F16, F32"),
        ({"w": entry("I8", [16], 0, 16)}, "tensor 'w' has dtype I8"),
        ({"w": entry("I32", [4], 0, 16)}, "tensor 'w' has dtype I32"),
        ({"w": entry([], [4], 0, 16)}, "tensor 'w' has dtype []"),  # type: ignore[arg-type]
        ({"w": entry("F32", [-4], 0, 16)}, "tensor 'w' has shape [-4]"),
        ({"w": entry("F32", [True], 0, 4)}, "tensor 'w' has shape [True]"),
        ({"w": entry("F32", [4.0], 0, 16)}, "tensor 'w' has shape [4.0]"),  # type: ignore[list-item]
        ({"w": {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]}}, "tensor 'w' has shape 4"),
        ({"w": entry("F32", [4], -16, 0)}, "tensor 'w' has data_offsets [-16, 0]"),
        ({"w": entry("F32", [4], 16, 0)}, "tensor 'w' has data_offsets [16, 0]"),
        ({"w": {"dtype": "F32", "shape": [4], "data_offsets": [16]}}, "tensor 'w' has data_offsets [16]"),
        ({"w": entry("F32", [4], 0, 12)}, "tensor 'w' has 12 bytes, expected 16 for shape [4] in F32"),
        ({"w": entry("F32", [5], 0, 20)}, "tensor 'w' ends at byte"),
        ({"w": entry("F32", [4], 2**63, 2**63 + 16)}, "tensor 'w' ends at byte"),
        (
            {"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 8, 16), "c": entry("BF16", [3], 6, 12)},
            "tensors 'a' and 'c' overlap",
        ),
    ],
)
def test_header_that_is_wrong(folder: Path, header: Header | bytes, needle: str) -> None:
    write_shard(folder / "model.safetensors", header, ONE_DATA)
    refused(folder, "model.safetensors", needle)


@pytest.mark.parametrize("length", [10_000, 100_000_001, 2**63, 2**64 - 1])
def test_header_longer_than_its_file(folder: Path, length: int) -> None:
    write_shard(folder / "model.safetensors", ONE, ONE_DATA, length=length)
    refused(folder, "model.safetensors", f"the header claims {length:,} bytes", "truncated")


def test_files_that_are_no_safetensors_at_all(folder: Path) -> None:
    shard = folder / "model.safetensors"
    shard.write_bytes(b"")
    refused(folder, "0 bytes are no safetensors file")
    shard.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(folder, "a git-lfs pointer", "git lfs pull")
    shard.unlink()
    shard.mkdir()
    refused(folder, "not a regular file")
    shard.rmdir()
    os.mkfifo(shard)
    refused(folder, "not a regular file")


def test_truncated_data_section(folder: Path) -> None:
    shard = folder / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(folder, "tensor 'w' ends at byte", "truncated")


@pytest.mark.parametrize("cut", [1, 16])
def test_file_truncated_while_open(folder: Path, cut: int) -> None:
    shard = folder / "model.safetensors"
    with open_checkpoint(folder) as checkpoint:
        os.truncate(shard, shard.stat().st_size - cut)
        with pytest.raises(CheckpointError, match=r"tensor 'w' ends at byte .* truncated while in use"):
            checkpoint.read("w")


def test_a_disk_error_while_reading_names_file_and_tensor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with open_checkpoint(folder) as checkpoint:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor 'w' cannot be read: Input/output error"):
            checkpoint.read("w")


def test_short_reads_are_continued(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, position: real(fd, [buffers[0][:3]], position))
    with open_checkpoint(folder) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("w"), [[0, 1], [2, 3]])


@pytest.mark.parametrize(
    ("weight_map", "needle"),
    [
        ({}, "key 'weight_map' is missing"),
        ([1], "key 'weight_map' is missing"),
        ({"a": 3}, "tensor 'a': expected a file name, got 3"),
        ({"a": ""}, "tensor 'a': expected a file name, got ''"),
        ({"a": "../a.safetensors"}, "tensor 'a' points to '../a.safetensors', outside the folder"),
        ({"a": "sub/../../a.safetensors"}, "outside the folder"),
        ({"a": "..\\a.safetensors"}, "outside the folder"),
        ({"a": "/etc/passwd"}, "tensor 'a' points to '/etc/passwd', outside the folder"),
        ({"a": "c.safetensors"}, "c.safetensors: this shard is missing"),
        ({"a": "x" * 5000}, "this shard is missing"),
    ],
)
def test_index_that_is_wrong(folder: Path, weight_map: object, needle: str) -> None:
    refused(sharded(folder, weight_map), needle)


def test_index_that_is_not_json(folder: Path) -> None:
    sharded(folder)
    (folder / INDEX_FILE).write_text("weights")
    refused(folder, INDEX_FILE, "not valid JSON")


def test_links_inside_the_folder_work_and_links_out_of_it_do_not(folder: Path, tmp_path: Path) -> None:
    shard, real = folder / "model.safetensors", folder / "real"
    shard.rename(real)
    shard.symlink_to("real")
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.read("w")[1, 1] == 3
    real.rename(tmp_path / "real")
    refused(folder, "model.safetensors: a link to nothing")
    shard.unlink()
    shard.symlink_to(tmp_path / "real")
    refused(folder, "model.safetensors: a link to", "outside the checkpoint folder")
    shard.unlink()
    shard.symlink_to(shard)
    refused(folder, "model.safetensors: cannot be read")


@pytest.mark.parametrize("name", ["config.json", INDEX_FILE])
def test_a_json_file_that_would_never_end(folder: Path, name: str) -> None:
    sharded(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, f"{name} is a pipe: expected a file; download it again")
