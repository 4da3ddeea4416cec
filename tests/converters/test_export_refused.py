"""Exports that must not succeed: one clear line, nothing half written, nothing lost, and the next run works."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgepack
from edgepack.errors import CheckpointError, EdgepackError, PackageError, UnsupportedError
from edgepack.package.folder import open_package
from edgepack.planning.plan import Plan, load_plan
from edgepack.quant.layout import FloatScheme
from tests.support import tiny
from tests.support.paths import ROOT
from tests.support.specs import recipe_with
from tests.support.tiny import FloatArray, Tiny, TinyPackages

Tensors = dict[str, FloatArray]


@pytest.fixture
def shared(tiny_packages: TinyPackages) -> Tiny:
    return tiny_packages("shared")


def refused(checkpoint: Path, out: Path, kind: type[EdgepackError], *needles: str, **options: Any) -> None:
    """`checkpoint` is refused with one line that holds `needles`, and the folder of `out` is as it was before."""
    before = sorted(path.name for path in out.parent.iterdir())
    with pytest.raises(kind) as caught:
        edgepack.export(checkpoint, out=out, **(options if "plan" in options else {"context": tiny.CONTEXT, **options}))
    message = str(caught.value)
    assert "\n" not in message
    for needle in needles:
        assert needle in message
    assert sorted(path.name for path in out.parent.iterdir()) == before


def place(tmp_path: Path) -> Path:
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs" / "out"


# -- weights


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["model.layers.5.mlp.up_proj.weight", "model.norm.weight"])
def test_a_weight_that_is_not_finite_is_named(name: str, value: float, shared: Tiny, tmp_path: Path) -> None:
    def spoil(tensors: Tensors) -> Tensors:
        tensors[name].reshape(-1)[-1] = value
        return tensors

    folder = tiny.edit_tensors(shared.checkpoint, tmp_path / "spoilt", spoil)
    refused(folder, place(tmp_path), CheckpointError, f"'{name}'", "nan or inf")


def test_a_weight_that_folding_makes_infinite_is_named(shared: Tiny, tmp_path: Path) -> None:
    name = "model.embed_tokens_per_layer.weight"  # stored times 4, the root of the per-layer dim

    def stretch(tensors: Tensors) -> Tensors:
        tensors[name][3, 5] = 3e38
        return tensors

    folder = tiny.edit_tensors(shared.checkpoint, tmp_path / "large", stretch)
    refused(folder, place(tmp_path), EdgepackError, name.removeprefix("model."))


def test_a_value_that_float16_cannot_hold_is_named(shared: Tiny, tmp_path: Path) -> None:
    name = "model.embed_tokens_per_layer.weight"

    def stretch(tensors: Tensors) -> Tensors:
        tensors[name][3, 5] = 1e5
        return tensors

    recipe = recipe_with("fp32", ple=FloatScheme(dtype="float16"))
    folder = tiny.edit_tensors(shared.checkpoint, tmp_path / "large", stretch)
    refused(folder, place(tmp_path), EdgepackError, name.removeprefix("model."), "float16", recipe=recipe)


@pytest.mark.parametrize(
    "name", ["model.layers.4.self_attn.v_proj.weight", "model.norm.weight", "model.embed_tokens_per_layer.weight"]
)
def test_a_missing_tensor_is_named(name: str, shared: Tiny, tmp_path: Path) -> None:
    folder = tiny.edit_tensors(
        shared.checkpoint, tmp_path / "missing", lambda tensors: {k: v for k, v in tensors.items() if k != name}
    )
    refused(folder, place(tmp_path), CheckpointError, f"'{name}' is missing")


def test_a_tensor_of_another_shape_is_named(shared: Tiny, tmp_path: Path) -> None:
    name = "model.layers.3.mlp.gate_proj.weight"

    def cut(tensors: Tensors) -> Tensors:
        return {**tensors, name: tensors[name][:-1]}

    folder = tiny.edit_tensors(shared.checkpoint, tmp_path / "cut", cut)
    refused(folder, place(tmp_path), CheckpointError, f"'{name}' has shape [63, 64], expected [64, 64]")


def test_a_missing_head_of_an_untied_model_is_named(tiny_packages: TinyPackages, tmp_path: Path) -> None:
    checkpoint = tiny_packages("untied").checkpoint
    folder = tiny.edit_tensors(
        checkpoint, tmp_path / "headless", lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"}
    )
    refused(folder, place(tmp_path), CheckpointError, "'lm_head.weight' is missing")


# -- recipes and plans that do not fit


def test_a_plan_of_another_checkpoint_is_refused(tiny_packages: TinyPackages, tmp_path: Path) -> None:
    plan = tiny_packages("untied").package.manifest.plan
    refused(tiny_packages("shared").checkpoint, place(tmp_path), EdgepackError, "another checkpoint", plan=plan)


def saved(plan: Plan, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    data = json.loads(plan.model_dump_json())
    change(data)
    path.write_text(json.dumps(data), "utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        (lambda data: data["tensors"].pop(3), "plan again"),
        (lambda data: data["tensors"][0].update(shape=[104, 32]), "plan again"),
        (lambda data: data["tensors"][0].update(name="embeddings"), "plan again"),
        (lambda data: data["tensors"][0].update(scheme={"kind": "int", "bits": 4, "block": 4096}), "plan again"),
        (lambda data: data["tensors"][0].update(scheme={"kind": "float", "dtype": "float16"}), "plan again"),
        (lambda data: data.update(context_tokens=10**9), "context of 1000000000 tokens is not possible"),
    ],
)
def test_an_edited_plan_that_cannot_be_carried_out_is_refused(
    change: Callable[[dict[str, Any]], None], needle: str, shared: Tiny, tmp_path: Path
) -> None:
    path = saved(shared.package.manifest.plan, tmp_path / "plan.json", change)
    load_plan(path)  # it is a plan, only not one of this checkpoint
    refused(shared.checkpoint, place(tmp_path), EdgepackError, needle, plan=path)


def test_a_plan_of_another_backend_is_refused(shared: Tiny, tmp_path: Path) -> None:
    refused(shared.checkpoint, place(tmp_path), EdgepackError, "litert", plan=shared.package.manifest.plan, to="litert")


def test_a_recipe_that_the_backend_cannot_express_is_refused(shared: Tiny, tmp_path: Path) -> None:
    recipe = recipe_with("int4", ffn=FloatScheme(dtype="float16"))
    refused(shared.checkpoint, place(tmp_path), UnsupportedError, "recipe mine", "float16", recipe=recipe)


def test_an_existing_output_is_refused_before_any_work(
    shared: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = place(tmp_path)
    edgepack.export(shared.checkpoint, out=out, recipe="fp32", context=64)
    monkeypatch.setattr("edgepack.checkpoint.folder.Checkpoint.read_rows", None)
    refused(shared.checkpoint, out, PackageError, "exists", "--overwrite")
    open_package(out, verify=True)


# -- a full disk


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk_is_said_and_loses_nothing(
    call: str, existing: bool, shared: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = place(tmp_path)
    if existing:
        edgepack.export(shared.checkpoint, out=out, recipe="fp32", context=64)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, no_space)
        refused(shared.checkpoint, out, PackageError, "No space left on device", str(out), overwrite=existing)
    assert out.exists() == existing
    edgepack.export(shared.checkpoint, out=out, recipe="int4", context=64, overwrite=existing)
    assert open_package(out, verify=True).manifest.plan.recipe.name == "int4"


def test_a_disk_that_fills_up_at_the_graphs_or_manifest_loses_nothing(
    shared: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = place(tmp_path)
    for function in ("onnx_ir.save", "edgepack.exporting.write_manifest", "shutil.copyfile"):
        with monkeypatch.context() as patch:
            patch.setattr(function, no_space)
            refused(shared.checkpoint, out, PackageError, "No space left on device", str(out))


# -- interrupted

SLOW_EXPORT = """
import signal, sys, time
import edgepack
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with SIGINT ignored
from edgepack.checkpoint.folder import Checkpoint
read_rows = Checkpoint.read_rows
def slow(self, *arguments, **options):
    time.sleep(0.05)
    return read_rows(self, *arguments, **options)
Checkpoint.read_rows = slow
edgepack.export(sys.argv[1], out=sys.argv[2], recipe="int4", context=64, threads=1, overwrite=True)
"""


def interrupt(checkpoint: Path, out: Path, number: signal.Signals) -> int:
    """Start an export, send it `number` once it writes weights, and return its exit code."""
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "converters", "runtimes"))
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW_EXPORT, str(checkpoint), str(out)],
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
    )
    limit = time.monotonic() + 60
    while not list(out.parent.glob("out.partial-*/onnx/*_data")):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)
    child.send_signal(number)
    child.communicate(timeout=30)
    return child.returncode


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_export_loses_nothing_and_the_next_one_works(
    number: signal.Signals, existing: bool, shared: Tiny, tmp_path: Path
) -> None:
    out = place(tmp_path)
    if existing:
        edgepack.export(shared.checkpoint, out=out, recipe="fp32", context=64)
    assert interrupt(shared.checkpoint, out, number) != 0
    if number == signal.SIGINT:  # Python's own handler runs: not even the partial folder stays
        assert [path.name for path in out.parent.iterdir()] == (["out"] if existing else [])
    if existing:
        assert open_package(out, verify=True).manifest.plan.recipe.name == "fp32"
    else:
        assert not out.exists()
    edgepack.export(shared.checkpoint, out=out, recipe="int4", context=64, overwrite=existing)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert open_package(out, verify=True).manifest.plan.recipe.name == "int4"


# -- tokenizer and chat template


@pytest.mark.parametrize(
    ("name", "content", "needle"),
    [
        ("tokenizer.json", '{"model": {"vocab": {"<pad>": 0, "<eos', "a file that is cut or something else"),
        ("tokenizer.json", "<html>not found</html>", "a file that is cut or something else"),
        ("tokenizer_config.json", '{"bos_token": ', "not valid JSON"),
        ("generation_config.json", '{"eos_token_id": "</s>"}', "eos_token_id is '</s>'"),
        ("chat_template.jinja", "{% if messages %}", "the chat template is not valid Jinja"),
    ],
)
def test_damaged_text_files_are_refused_before_the_work(
    name: str, content: str, needle: str, shared: Tiny, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(shared.checkpoint, checkpoint)
    (checkpoint / name).write_text(content, encoding="utf-8")
    refused(checkpoint, place(tmp_path), EdgepackError, needle)
