"""Opening and reading checkpoints: exact values, shapes, rows, threads and descriptors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.checkpoint import safetensors as safetensors_file
from edgepack.checkpoint.folder import Checkpoint, open_checkpoint
from edgepack.errors import CheckpointError
from tests.support.checkpoint_files import ONE, ONE_DATA, entry, make_folder, refused, sharded, write_shard
from tests.support.paths import ROOT


def open_files() -> int:
    return len(os.listdir("/dev/fd"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "ckpt")


def all_finite_bits(limit: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
    bits = np.arange(0x10000, dtype=np.uint16)
    return bits[(bits & 0x7FFF) < limit]


@pytest.mark.parametrize(("dtype", "limit"), [("BF16", 0x7F80), ("F16", 0x7C00)])
def test_every_finite_half_is_widened_exactly(folder: Path, dtype: str, limit: int) -> None:
    bits = all_finite_bits(limit)
    write_shard(
        folder / "model.safetensors", {"w": entry(dtype, [bits.size], 0, bits.nbytes)}, bits.astype("<u2").tobytes()
    )
    expected = (bits.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else bits.view(np.float16)
    with open_checkpoint(folder) as checkpoint:
        got = checkpoint.read("w")
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), expected.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_rows_across_piece_borders_equal_the_whole(folder: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "_PIECE_VALUES", 10)
    rng = np.random.default_rng(0)
    values = rng.integers(-8, 8, (13, 7)).astype(np.float32)  # exact in all three formats
    raw = {
        "BF16": (values.view(np.uint32) >> 16).astype("<u2"),
        "F16": values.astype("<f2"),
        "F32": values.astype("<f4"),
    }[dtype].tobytes()
    # An odd number of bytes before the tensor: nothing in the format promises alignment.
    header = {"flag": entry("BOOL", [3], 0, 3), "w": entry(dtype, [13, 7], 3, 3 + len(raw))}
    write_shard(folder / "model.safetensors", header, b"\0\0\0" + raw)
    with open_checkpoint(folder) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("w"), values)
        out = np.full((5, 7), np.nan, np.float32)
        assert checkpoint.read_rows("w", 4, 9, out) is out
        np.testing.assert_array_equal(out, values[4:9])
        np.testing.assert_array_equal(checkpoint.read_rows("w", 12, 13), values[12:])
        assert checkpoint.read_rows("w", 6, 6).shape == (0, 7)


def test_scalar_and_empty_tensors(folder: Path) -> None:
    header = {"scalar": entry("F32", [], 0, 4), "empty": entry("BF16", [0, 5], 4, 4)}
    write_shard(folder / "model.safetensors", header, np.float32(2.5).tobytes())
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.read("scalar") == 2.5
        assert checkpoint.read("empty").shape == (0, 5)
        with pytest.raises(CheckpointError, match=r"'scalar' of shape \[\] has no rows 0 to 1"):
            checkpoint.read_rows("scalar", 0, 1)


def test_threads_read_the_same_file_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "_PIECE_VALUES", 64)
    values = np.random.default_rng(1).integers(-64, 64, (256, 100)).astype(np.float32)
    raw = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    write_shard(folder / "model.safetensors", {"w": entry("BF16", [256, 100], 0, len(raw))}, raw)
    start = threading.Barrier(4)

    def read_all(_: int) -> bool:
        start.wait()
        return all(
            np.array_equal(checkpoint.read_rows("w", row, row + 8), values[row : row + 8]) for row in range(0, 256, 8)
        )

    with open_checkpoint(folder) as checkpoint, ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read_all, range(4)))


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        ("BF16", 0x7F80),
        ("BF16", 0xFF80),
        ("BF16", 0x7FC0),
        ("BF16", 0xFFFF),
        ("F16", 0x7C00),
        ("F16", 0xFC00),
        ("F16", 0x7E01),
        ("F16", 0xFFFF),
        ("F32", 0x7F80_0000),
        ("F32", 0xFF80_0000),
        ("F32", 0x7FC0_0000),
        ("F32", 0xFFFF_FFFF),
    ],
)
def test_nan_and_inf_are_refused_with_tensor_file_and_row(folder: Path, dtype: str, bits: int) -> None:
    raw = np.zeros((6, 4), "<u4" if dtype == "F32" else "<u2")
    raw[:, 1] = 0x8000 if dtype != "F32" else 0x8000_0000  # minus zero is a fine weight
    raw[4, 2] = bits
    write_shard(folder / "model.safetensors", {"w": entry(dtype, [6, 4], 0, raw.nbytes)}, raw.tobytes())
    with open_checkpoint(folder) as checkpoint:
        assert not checkpoint.read_rows("w", 0, 4).any()
        message = r"model\.safetensors: tensor 'w' holds nan or inf in row 4;"
        with pytest.raises(CheckpointError, match=message):
            checkpoint.read("w")
        with pytest.raises(CheckpointError, match=message):
            checkpoint.read_rows("w", 3, 6)


def test_what_an_open_checkpoint_says(folder: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.path == folder
        assert checkpoint.config == {"model_type": "gemma3_text"}
        assert checkpoint.config_path == folder / "config.json"
        assert checkpoint.source.repo_id is None
        assert checkpoint.source.revision is None
        assert checkpoint.source.path == str(folder)
        info = checkpoint.require("w", (2, 2))
        assert info is checkpoint.info("w")
        assert (info.dtype, info.shape, info.size_bytes) == ("F32", (2, 2), 16)
        assert info.shard == folder / "model.safetensors"
        assert info.shard.read_bytes()[info.offset_bytes :] == ONE_DATA


def test_missing_and_misshaped_tensors_are_named(folder: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        with pytest.raises(CheckpointError, match=rf"{re.escape(str(folder))}: tensor 'v' is missing \(1 others"):
            checkpoint.info("v")
        with pytest.raises(CheckpointError, match=r"tensor 'w' has shape \[2, 2\], expected \[2, 3\]"):
            checkpoint.require("w", (2, 3))


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (1, 3), (2, 1)])
def test_rows_out_of_range_are_refused(folder: Path, start: int, stop: int) -> None:
    with (
        open_checkpoint(folder) as checkpoint,
        pytest.raises(CheckpointError, match=f"has no rows {start} to {stop}"),
    ):
        checkpoint.read_rows("w", start, stop)


@pytest.mark.parametrize(
    "out",
    [np.empty((1, 2), np.float64), np.empty((2, 2), np.float32), np.empty((1, 4), np.float32)[:, ::2]],
    ids=["float64", "wrong shape", "strided"],
)
def test_an_output_array_that_does_not_fit_is_refused(folder: Path, out: Any) -> None:
    with (
        open_checkpoint(folder) as checkpoint,
        pytest.raises(CheckpointError, match=r"contiguous float32 array of shape \[1, 2\]"),
    ):
        checkpoint.read_rows("w", 0, 1, out)


def test_side_files_are_those_a_package_carries(folder: Path) -> None:
    wanted = [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    for name in [*wanted, "README.md", "training_args.bin"]:
        (folder / name).write_text("{}")
    (folder / "tokenizer_backup").mkdir()
    with open_checkpoint(folder) as checkpoint:
        assert [path.name for path in checkpoint.side_files()] == wanted


def test_a_side_file_that_links_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / "tokenizer.json").symlink_to(tmp_path / "secret")
    with open_checkpoint(folder) as checkpoint, pytest.raises(CheckpointError, match=r"tokenizer\.json: a link to"):
        checkpoint.side_files()


def test_close_gives_the_descriptors_back_and_ends_reading(folder: Path) -> None:
    before = open_files()
    checkpoint = open_checkpoint(sharded(folder))
    assert open_files() == before + 2
    checkpoint.close()
    checkpoint.close()
    assert open_files() == before
    with pytest.raises(CheckpointError, match="tensor 'a' cannot be read: the checkpoint is closed"):
        checkpoint.read("a")


def test_a_refused_shard_leaves_no_descriptor_open(folder: Path) -> None:
    sharded(folder)
    (folder / "b.safetensors").write_bytes(b"\xff" * 64)
    before = open_files()
    refused(folder, "b.safetensors")
    assert open_files() == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_maps_no_file(folder: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        checkpoint.read("w")
        assert str(folder) not in Path("/proc/self/maps").read_text()


def test_shards_are_found_through_the_index(folder: Path) -> None:
    with open_checkpoint(sharded(folder)) as checkpoint:
        assert checkpoint.read("a") == [1.0]
        assert checkpoint.read("b") == [2.0]
        assert checkpoint.info("b").shard == folder / "b.safetensors"


def test_bookkeeping_integers_do_not_matter_until_they_are_asked_for(folder: Path) -> None:
    header = ONE | {"steps": entry("I64", [1], 16, 24)}
    write_shard(folder / "model.safetensors", header, ONE_DATA + bytes(8))
    with open_checkpoint(folder) as checkpoint:
        assert list(checkpoint.tensors) == ["w"]
        with pytest.raises(CheckpointError, match="tensor 'steps' has dtype I64, expected one of BF16, F16, F32"):
            checkpoint.info("steps")


def test_importing_and_opening_a_folder_loads_no_framework(folder: Path) -> None:
    program = (
        "import sys; from edgepack.checkpoint.folder import open_checkpoint, Checkpoint\n"
        "with open_checkpoint(sys.argv[1]) as c: c.read('w')\n"
        "print(sorted({'torch', 'transformers', 'safetensors', 'huggingface_hub', 'onnx'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"


def test_a_checkpoint_can_stand_without_files() -> None:
    checkpoint = Checkpoint(Path("x"), {"model_type": "gemma3n"}, {})
    assert checkpoint.config_path == Path("x/config.json")
    assert checkpoint.source.path == "x"
