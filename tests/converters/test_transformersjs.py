"""Rung T5: packages in somebody else's client. transformers.js on Node, with the ONNX Runtime that it brings along."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import Gemma3nForCausalLM

import edgepack
from edgepack.package.folder import Package
from edgepack.text.codec import TextCodec
from tests.support import tiny
from tests.support.paths import DEMO, ROOT
from tests.support.raw_graphs import RawGraphs
from tests.support.tiny import FloatArray, TinyPackages
from tests.support.tolerances import FP32_LOGITS, SAME_GRAPH_LOGITS

pytestmark = pytest.mark.slow

INTEROP = ROOT / "tests" / "support" / "interop"
TEXT_GRAPHS = ["decoder_model_merged", "embed_tokens"]
ENCODERS = ["audio_encoder", "vision_encoder"]
DTYPES = {
    "fp32": "fp32",
    "int8": "q8",
    "int4": "q4",
}  # what transformers.js calls the storage type of each recipe's graphs
PROMPT_TOKENS, NEW_TOKENS = 30, 40  # both several times the tiny window of 8
DEMO_NEW_TOKENS = 90  # the demo's window is 64
DEMO_TEXT = "Once upon a time, there was"
MESSAGES = [
    {"role": "user", "content": "What is 3 + 5?"},
    {"role": "assistant", "content": "3 + 5 = 8."},
    {"role": "user", "content": "Count from 3 to 9."},
]


@dataclass(frozen=True)
class Client:
    """transformers.js, installed in a folder."""

    folder: Path

    def ask(self, package: Path, **request: Any) -> dict[str, Any]:
        """Send one request to the script; a failure of the model comes back as its `error`."""
        document = json.dumps([{"package": str(package), **request}])
        done = subprocess.run(
            ["node", "transformersjs.mjs"],
            cwd=self.folder,
            input=document,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        answer: dict[str, Any] = json.loads(done.stdout)["answers"][0]
        return answer


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Client:
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: nothing was tested in transformers.js")
    folder = tmp_path_factory.mktemp("interop")
    for name in ("package.json", "transformersjs.mjs"):
        shutil.copyfile(INTEROP / name, folder / name)
    # No install scripts: the CPU library of onnxruntime-node is in its archive, the scripts fetch GPU ones.
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
        pytest.skip(f"npm could not install transformers.js: {reason[0]}")
    return Client(folder)


@dataclass(frozen=True)
class Expected:
    """What a client must find: logits [S, V] of the prompt, and the greedy tokens behind it."""

    logits: FloatArray
    tokens: list[int]
    tolerance: float

    def compare(self, answer: dict[str, Any], graphs: list[str]) -> None:
        assert "error" not in answer, answer["error"]
        assert answer["sessions"] == graphs
        np.testing.assert_allclose(np.array(answer["logits"]), self.logits, rtol=0, atol=self.tolerance)
        assert answer["tokens"] == self.tokens


def of_transformers(model: Any, prompt: list[int], count: int) -> Expected:
    with torch.no_grad():
        ids = torch.tensor([prompt])
        out = model.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False, eos_token_id=None)
    return Expected(tiny.reference(model, ids.numpy())[0], out[0, len(prompt) :].tolist(), FP32_LOGITS)


def of_our_runtime(package: Package, prompt: list[int], count: int) -> Expected:
    with edgepack.load(package.path, threads=1) as runtime:
        tokens = list(runtime.generate(prompt, max_new_tokens=count, stop_token_ids=()))
        return Expected(runtime.logits(prompt), tokens, SAME_GRAPH_LOGITS)


def of_the_graphs_from_position_one(package: Package, prompt: list[int], count: int) -> Expected:
    """Both graphs in our ONNX Runtime, positions counted from 1 as transformers.js does for Gemma 3.

    Only differences of positions matter, so in float this changes logits by 4e-6. But such a difference can tip the
    int8 rounding of an activation over, and a random network amplifies that (0.06 in a logit, then other tokens):
    int4 is comparable for equal positions only.
    """
    graphs = RawGraphs(package)
    tokens: list[int] = []
    rows: list[FloatArray] = []
    past, ids, start = graphs.empty(1), list(prompt), 0
    while len(tokens) < count:
        stop = start + len(ids)
        feeds = {
            **graphs.embedded(np.array([ids], np.int64)),
            **past,
            "attention_mask": np.ones((1, stop), np.int64),
            "position_ids": np.arange(start + 1, stop + 1)[None],
            "num_logits_to_keep": np.array(0, np.int64),
        }
        results = dict(zip(graphs.outputs, graphs.decoder.run(None, feeds), strict=True))
        rows.append(results.pop("logits")[0])
        past = {name.replace("present", "past_key_values"): value for name, value in results.items()}
        tokens.append(int(rows[-1][-1].argmax()))
        ids, start = tokens[-1:], stop
    return Expected(rows[0], tokens, SAME_GRAPH_LOGITS)


@pytest.mark.parametrize("recipe", DTYPES)
@pytest.mark.parametrize(
    ("name", "model_class"),
    [("shared", "Gemma3nForCausalLM"), ("gemma3", "Gemma3ForCausalLM"), ("gemma3_untied", "Gemma3ForCausalLM")],
)
def test_a_text_only_checkpoint(
    client: Client, tiny_packages: TinyPackages, name: str, model_class: str, recipe: str
) -> None:
    case = tiny_packages(name, recipe)
    prompt = tiny.token_ids(PROMPT_TOKENS, seed=3)[0].tolist()
    answer = client.ask(
        case.package.path, dtype=DTYPES[recipe], modelClass=model_class, prompt=prompt, newTokens=NEW_TOKENS
    )
    if recipe == "fp32":
        expected = of_transformers(case.model, prompt, NEW_TOKENS)
    elif name in tiny.GEMMA3:
        expected = of_the_graphs_from_position_one(case.package, prompt, NEW_TOKENS)
    else:
        expected = of_our_runtime(case.package, prompt, NEW_TOKENS)
    expected.compare(answer, TEXT_GRAPHS)


@pytest.mark.parametrize("recipe", DTYPES)
def test_the_demo_in_text_and_chat(client: Client, tmp_path: Path, recipe: str) -> None:
    package = edgepack.export(DEMO, out=tmp_path / "demo", recipe=recipe, threads=1).package
    codec = TextCodec(package.path)
    prompt = codec.encode(DEMO_TEXT)
    answer = client.ask(
        package.path,
        dtype=DTYPES[recipe],
        modelClass="AutoModelForCausalLM",
        prompt=prompt,
        newTokens=DEMO_NEW_TOKENS,
        text=DEMO_TEXT,
        messages=MESSAGES,
    )
    if recipe == "fp32":
        model: Any = Gemma3nForCausalLM.from_pretrained(DEMO, dtype=torch.float32, attn_implementation="eager")
        expected = of_transformers(model.eval(), prompt, DEMO_NEW_TOKENS)
    else:
        expected = of_our_runtime(package, prompt, DEMO_NEW_TOKENS)
    expected.compare(answer, TEXT_GRAPHS)
    assert answer["ids"] == prompt
    assert answer["chat"] == codec.render_chat(MESSAGES)


def official_layout(source: Path, target: Path) -> Path:
    """The tiny Gemma 3n as an official multimodal checkpoint names things, the class in its config included."""
    folder = tiny.as_multimodal(source, target)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["architectures"] = ["Gemma3nForConditionalGeneration"]
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def add_encoders(package: Path) -> None:
    """Put encoders beside the text graphs that open and compute nothing of interest."""
    for name in ENCODERS:
        value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
        node = ir.node("Identity", [value])
        out = node.outputs[0]
        out.name, out.type, out.shape = "y", value.type, value.shape
        graph = ir.Graph([value], [out], nodes=[node], opset_imports={"": 21}, name=name)
        ir.save(ir.Model(graph, ir_version=10), package / "onnx" / f"{name}.onnx")


@pytest.mark.parametrize(
    ("model_class", "graphs"),
    [
        ("AutoModelForCausalLM", TEXT_GRAPHS),
        ("Gemma3nForConditionalGeneration", sorted(TEXT_GRAPHS + ENCODERS)),
    ],
)
def test_a_checkpoint_of_official_layout(
    client: Client, tiny_packages: TinyPackages, tmp_path: Path, model_class: str, graphs: list[str]
) -> None:
    case = tiny_packages("shared")
    checkpoint = official_layout(case.checkpoint, tmp_path / "checkpoint")
    package = edgepack.export(checkpoint, out=tmp_path / "package", recipe="fp32", context=tiny.CONTEXT).package
    if graphs != TEXT_GRAPHS:
        add_encoders(package.path)
    prompt = tiny.token_ids(PROMPT_TOKENS, seed=3)[0].tolist()
    answer = client.ask(package.path, dtype="fp32", modelClass=model_class, prompt=prompt, newTokens=NEW_TOKENS)
    of_transformers(case.model, prompt, NEW_TOKENS).compare(answer, graphs)
