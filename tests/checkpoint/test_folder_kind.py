"""What a folder without a checkpoint is said to be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgepack.errors import PackageError
from edgepack.package.folder import open_package
from tests.support.checkpoint_files import ONE, ONE_DATA, make_folder, refused, write_shard


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}" if name.endswith(".json") else b"x")
    return folder


@pytest.mark.parametrize("with_config", [False, True])
@pytest.mark.parametrize(
    ("names", "needles"),
    [
        (["gemma-F16.gguf", "tokenizer.json"], ["only gemma-F16.gguf: GGUF weights are already quantized"]),
        (["gemma3n.task"], ["only gemma3n.task, a LiteRT model"]),
        (["model_q4.onnx", "tokenizer.json"], ["only model_q4.onnx, a model that is converted already"]),
        (["pytorch_model-00001-of-00002.bin"], ["pickle files can run code and are never loaded"]),
        (["zero_to_fp32.py", "latest"], ["DeepSpeed", "zero_to_fp32.py"]),
        (["__0_0.distcp", ".metadata"], ["sharded training state of PyTorch"]),
        (["model.weights.h5", "metadata.json"], ["of Keras"]),
        (["flax_model.msgpack"], ["of Flax"]),
        (["model_index.json"], ["a pipeline of diffusers"]),
    ],
)
def test_weights_of_another_kind(with_config: bool, names: list[str], needles: list[str], tmp_path: Path) -> None:
    folder = fill(tmp_path / "folder", *names)
    if with_config:
        (folder / "config.json").write_text('{"model_type": "gemma3_text"}')
    refused(folder, str(folder), *needles)


def test_an_adapter_names_its_base(tmp_path: Path) -> None:
    folder = fill(tmp_path / "lora", "adapter_model.safetensors", "tokenizer.json")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some-org/gemma-3n-E4B"}))
    refused(folder, "only adapter_model.safetensors, an adapter of some-org/gemma-3n-E4B: merge it into its base model")
    for strange in ({"base_model_name_or_path": ["a"]}, {}, {"base_model_name_or_path": "\x1b[31m" + "x" * 9000}):
        (folder / "adapter_config.json").write_text(json.dumps(strange))
        message = refused(folder, "an adapter")
        assert "\x1b" not in message
        assert len(message) < 1000
    (folder / "adapter_config.json").write_bytes(b"\xff not JSON")
    refused(folder, "only adapter_model.safetensors, an adapter: merge it")


def test_an_adapter_beside_a_whole_model_is_not_ignored(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "both")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    write_shard(folder / "adapter_model.safetensors", ONE, ONE_DATA)
    refused(
        folder, "both a model and an adapter (adapter_model.safetensors)", "merge_and_unload", "move adapter_config"
    )


def test_the_checkpoint_stands_one_folder_below(tmp_path: Path) -> None:
    run = fill(tmp_path / "run", "trainer_state.json")
    for step in (500, 1500, 90):
        make_folder(run / f"checkpoint-{step}")
    refused(run, "the output of a training with 3 saved steps", f"such as {run / 'checkpoint-1500'}")

    unpacked = fill(tmp_path / "unpacked", "README.md")
    make_folder(unpacked / "gemma")
    refused(unpacked, f"its only checkpoint is {unpacked / 'gemma'}; give that")
    make_folder(unpacked / "other")
    refused(unpacked, "a folder of 2 checkpoints")

    cached = tmp_path / "models--org--name"
    (cached / "snapshots").mkdir(parents=True)
    make_folder(cached / "snapshots" / "abc")
    refused(cached, "a folder of the hub cache", str(cached / "snapshots" / "abc"))


def test_an_empty_folder_and_files_of_other_kinds(tmp_path: Path) -> None:
    refused(fill(tmp_path / "empty"), "the folder is empty")
    for name, said in {
        "a.litertlm": "a LiteRT model",
        "a.safetensors": "without its config",
        "a.zip": "an archive",
    }.items():
        (tmp_path / name).write_bytes(b"x")
        refused(tmp_path / name, said, "expected the folder with config.json")


def test_a_package_is_no_checkpoint_and_a_checkpoint_no_package(tmp_path: Path) -> None:
    folder = fill(tmp_path / "package", "config.json")
    (folder / "manifest.json").write_text(json.dumps({"plan": {}, "graphs": {}, "files": []}))
    refused(folder, "a package of edgepack, which is ready to run")
    (folder / "manifest.json").write_text("{}")  # some other program's
    refused(folder, "expected the weights as safetensors")

    checkpoint = make_folder(tmp_path / "checkpoint")
    with pytest.raises(PackageError, match=r"a checkpoint, and no package yet; .*edgepack export"):
        open_package(checkpoint)
    with pytest.raises(PackageError, match="no such folder"):
        open_package(tmp_path / "nowhere")
    with pytest.raises(PackageError, match=r"only a\.gguf: GGUF weights"):
        open_package(fill(tmp_path / "gguf", "a.gguf"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PackageError, match="not a folder"):
        open_package(tmp_path / "file")
