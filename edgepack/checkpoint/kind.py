"""What a folder or a repository holds that is no checkpoint, and the way from there: told by the names of its files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from edgepack.reading import loads_object
from edgepack.shown import printable

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# Small JSON files are read for a name that the message can give; larger ones are not what they seem.
_MOST_READ_BYTES = 1_000_000
_STEP = re.compile(r"(?:checkpoint|global_step)-?(\d+)")
Names = Collection[str]
ReadObject = Callable[[str], dict[str, Any]]


def what_is_in(folder: Path) -> str | None:
    """Say in words what `folder` holds instead of a checkpoint, and the way out; None where nothing is recognized."""
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    if not names:
        return "the folder is empty; finish the download, or give another folder"
    return what_is_named(names, lambda name: read_object(folder / name)) or _inside_of(folder, names)


def what_is_named(names: Names, read: ReadObject = lambda name: {}) -> str | None:
    """As `what_is_in`, for the names of the files of a folder or a repository.

    Args:
        read: gives the object in the JSON file of that name, an empty one where it cannot be read.
    """
    # The first that fits is told: an adapter may lie beside a tokenizer, and pickles beside the state of a training.
    for rule in (_adapter, _package, _quantized_elsewhere, _sharded_training, _other_framework, _pickle):
        if said := rule(names, read):
            return said
    return None


def adapter_in_words(names: Names, read: ReadObject) -> str | None:
    """An adapter by name, with its base model where adapter_config.json tells it; None where there is none."""
    weights = _first(names, lambda name: name.startswith("adapter_") and name.endswith((".safetensors", ".bin")))
    if weights is None and ADAPTER_CONFIG not in names:
        return None
    base = read(ADAPTER_CONFIG).get("base_model_name_or_path")
    of = f" of {printable(base)}" if isinstance(base, str) and base.strip() else ""
    return f"{weights or ADAPTER_CONFIG}, an adapter{of}"


def _adapter(names: Names, read: ReadObject) -> str | None:
    found = adapter_in_words(names, read)
    return found and f"only {found}: merge it into its base model (peft: merge_and_unload) and save that"


def _package(names: Names, read: ReadObject) -> str | None:
    # Of `edgepack.package.folder.MANIFEST`, whose module reads checkpoints.
    if "manifest.json" in names and {"plan", "graphs", "files"} <= read("manifest.json").keys():
        return "a package of edgepack, which is ready to run; give the checkpoint that it was exported from"
    return None


def _quantized_elsewhere(names: Names, read: ReadObject) -> str | None:
    if name := _first(names, lambda name: name.endswith(".gguf")):
        return f"only {name}: GGUF weights are already quantized; start from the original safetensors"
    if name := _first(names, lambda name: name.endswith((".litertlm", ".task", ".tflite"))):
        return f"only {name}, a LiteRT model that is converted already; start from the original safetensors"
    if name := _first(names, lambda name: name.endswith((".onnx", ".mlmodel", ".mlpackage", ".pte", ".engine"))):
        return f"only {name}, a model that is converted already; start from the original safetensors"
    return None


def _sharded_training(names: Names, read: ReadObject) -> str | None:
    if _first(names, lambda name: name == "zero_to_fp32.py" or name.endswith("_optim_states.pt")):
        return "the state of a training with DeepSpeed: make weights of it (zero_to_fp32.py) and save the model"
    if _first(names, lambda name: name.endswith(".distcp")):
        return "a sharded training state of PyTorch: merge it (accelerate merge-weights) and save the model"
    return None


def _other_framework(names: Names, read: ReadObject) -> str | None:
    tests = {
        "Keras": lambda name: name.endswith((".h5", ".keras")),
        "Flax": lambda name: name.endswith(".msgpack"),
        "JAX (Orbax)": lambda name: name in ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"),
        "gemma.cpp": lambda name: name.endswith(".sbs"),
        "a pipeline of diffusers": lambda name: name == "model_index.json",
    }
    for framework, test in tests.items():
        if name := _first(names, test):
            return f"only {name}, of {framework}; start from the safetensors of Transformers"
    return None


def _pickle(names: Names, read: ReadObject) -> str | None:
    if name := _first(names, lambda name: name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))):
        return (
            f"only {name}: pickle files can run code and are never loaded; convert it where you trust it: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(out)"
        )
    return None


def _inside_of(folder: Path, names: Names) -> str | None:
    """A folder with checkpoints in folders of its own: the one to give."""
    if "snapshots" in names and (commits := sorted(_checkpoints(folder / "snapshots"))):
        return f"a folder of the hub cache; give {commits[-1]}, or the hub id"
    found = sorted(_checkpoints(folder), key=lambda path: (_step(path.name), path.name))
    if not found:
        return None
    steps = [path for path in found if _step(path.name) >= 0]
    if steps:
        return f"the output of a training with {len(steps)} saved steps; give one of them, such as {steps[-1]}"
    return (
        f"a folder of {len(found)} checkpoints; give one of them, such as {found[-1]}"
        if len(found) > 1
        else (f"its only checkpoint is {found[0]}; give that")
    )


def _checkpoints(folder: Path) -> Iterator[Path]:
    try:
        yield from (path for path in folder.iterdir() if path.is_dir() and _is_checkpoint(path))
    except OSError:
        return


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / ADAPTER_CONFIG).is_file()


def _step(name: str) -> int:
    match = _STEP.fullmatch(name)
    return int(match.group(1)) if match else -1


def _first(names: Names, test: Callable[[str], bool]) -> str | None:
    found = next((name for name in sorted(names) if test(name)), None)
    return None if found is None else printable(found)


def read_object(path: Path) -> dict[str, Any]:
    """The object in a small JSON file; an empty one where there is none."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_READ_BYTES:
            return {}
        return loads_object(path.read_bytes(), unique_keys=False)
    except (OSError, ValueError):
        return {}
