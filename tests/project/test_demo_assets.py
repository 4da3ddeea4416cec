"""The committed demo checkpoint: small, whole, trained, and with every feature of Gemma 3n in use."""

from __future__ import annotations

import importlib
import json
import math
import struct
from collections.abc import Iterator
from itertools import islice
from types import ModuleType
from typing import Any

import jinja2
import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.support.paths import ROOT

DEMO = ROOT / "edgepack" / "assets" / "demo"
LIMIT_BYTES = 8_000_000


def read_json(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DEMO / name).read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return read_json("config.json")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Every tensor as float32, read through the header alone: bfloat16 is the upper half of a float32."""
    data = (DEMO / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    loaded = {}
    for name, entry in header.items():
        assert entry["dtype"] == "BF16", name
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        halves = np.frombuffer(data[begin:end], dtype="<u2").astype(np.uint32)
        loaded[name] = (halves << 16).view(np.float32).reshape(entry["shape"])
    return loaded


@pytest.fixture(scope="module")
def demo_text() -> Iterator[ModuleType]:
    """The generator of the training text; `tools` is a folder of scripts, not a package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools")
        yield importlib.import_module("demo_text")


def test_folder_is_complete_and_small() -> None:
    names = {path.name for path in DEMO.iterdir()}
    assert names == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json", "validation.txt",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in DEMO.iterdir()) < LIMIT_BYTES
    assert (DEMO / "validation.txt").stat().st_size <= 12_000
    assert "Apache-2.0" in (DEMO / "README.md").read_text(encoding="utf-8")


def test_config_uses_every_feature(config: dict[str, Any]) -> None:
    layers, shared = config["num_hidden_layers"], config["num_kv_shared_layers"]
    owners, users = config["layer_types"][: layers - shared], config["layer_types"][layers - shared :]
    assert config["model_type"] == "gemma3n_text"
    # Several owners of each kind: "the last owner of the kind" then differs from "the first" and from "the last owner".
    assert owners.count("sliding_attention") >= 2 and owners.count("full_attention") >= 2
    assert set(users) == {"sliding_attention", "full_attention"}
    assert config["activation_sparsity_pattern"] == [0.95] * 3 + [0.0] * (layers - 3)
    assert len(set(config["intermediate_size"])) >= 3 and all(width % 128 == 0 for width in config["intermediate_size"])
    assert config["vocab_size"] > config["vocab_size_per_layer_input"]
    assert config["num_attention_heads"] > config["num_key_value_heads"] > 1
    assert config["sliding_window"] < 256 and config["altup_num_inputs"] == 4 and config["laurel_rank"] > 0
    assert config["hidden_size"] % 128 == 0 and (layers * config["hidden_size_per_layer_input"]) % 128 == 0
    assert config["final_logit_softcapping"] == 30.0 and config["tie_word_embeddings"] is True
    assert config["rope_parameters"]["sliding_attention"]["rope_theta"] == 10_000.0
    assert config["rope_parameters"]["full_attention"]["rope_theta"] == 1_000_000.0


def test_weights_are_complete_finite_and_trained(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    per_layer = config["hidden_size_per_layer_input"]
    assert "lm_head.weight" not in tensors
    assert tensors["model.embed_tokens.weight"].shape == (config["vocab_size"], hidden)
    ple = tensors["model.embed_tokens_per_layer.weight"]
    assert ple.shape == (config["vocab_size_per_layer_input"], layers * per_layer)
    assert np.count_nonzero(ple[0]) == 0  # the pad row, which stands in for ids past the table
    for name, values in tensors.items():
        assert np.isfinite(values).all(), name
    for i in range(layers):
        prefix = f"model.layers.{i}."
        owner = i < layers - config["num_kv_shared_layers"]
        assert (f"{prefix}self_attn.k_proj.weight" in tensors) is owner
        assert tensors[f"{prefix}mlp.gate_proj.weight"].shape == (config["intermediate_size"][i], hidden)
        assert tensors[f"{prefix}laurel.linear_left.weight"].shape == (config["laurel_rank"], hidden)
        # These all start as constants (see tools/train_demo.py), so any spread in them is what training did.
        vectors = "altup.correct_output_scale altup.router_norm.weight laurel.post_laurel_norm.weight "
        vectors += "post_per_layer_input_norm.weight self_attn.q_norm.weight input_layernorm.weight"
        for vector in vectors.split():
            assert tensors[f"{prefix}{vector}"].std() > 0.01, f"{prefix}{vector}"


def test_special_tokens_have_gemma_ids(tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    expected = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<start_of_turn>": 105, "<end_of_turn>": 106}
    assert {token: tokenizer.token_to_id(token) for token in expected} == expected
    assert read_json("generation_config.json")["eos_token_id"] == [1, 106]
    assert tokenizer.get_vocab_size() == config["vocab_size_per_layer_input"]


@pytest.mark.parametrize(
    "text", ["Once upon a time, there was a fox.", " two  spaces\n\ttab", "Zażółć 猫 🦊 <b>0x41</b>", "12 + 7 = 19"]
)
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert ids[0] == 2 and 3 not in ids
    assert tokenizer.decode(ids) == text


def test_common_words_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("Once upon a time, there was a little girl.").ids) == 12  # <bos>, 9 words, 2 signs


def test_chat_template_writes_what_the_model_has_read(demo_text: ModuleType) -> None:
    template = jinja2.Environment().from_string((DEMO / "chat_template.jinja").read_text(encoding="utf-8"))
    chats = [doc for doc in islice(demo_text.documents(11), 60) if doc.turns]
    for doc in chats:
        messages = [{"role": turn.role, "content": turn.text} for turn in doc.turns]
        assert template.render(messages=messages, bos_token="<bos>") == f"<bos>{doc.render()}"
    system = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": " Hi "}]},
    ]
    assert template.render(messages=system, bos_token="<bos>", add_generation_prompt=True) == (
        "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n"
    )


def test_text_is_seeded_and_keeps_its_promises(demo_text: ModuleType) -> None:
    first, again, other = (list(islice(demo_text.documents(seed), 50)) for seed in (5, 5, 6))
    assert first == again and first != other
    known = {
        (f"What is the capital of {c}?", f"The capital of {c} is {city}.") for c, city in demo_text.CAPITALS.items()
    }
    sums = 0
    for doc in islice(demo_text.documents(7), 2_000):
        for user, model in zip(doc.turns[::2], doc.turns[1::2], strict=True):
            if user.text.startswith("What is the capital"):
                assert (user.text, model.text) in known
            if " + " in model.text:
                left, right = model.text.rstrip(".").split(" = ")
                assert sum(map(int, left.split(" + "))) == int(right)
                sums += 1
    assert sums > 20


def test_model_has_learned_its_world(tokenizer: Tokenizer) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.Gemma3nForCausalLM.from_pretrained(DEMO, dtype=torch.float32, attn_implementation="eager")
    ids = torch.tensor([tokenizer.encode((DEMO / "validation.txt").read_text(encoding="utf-8")).ids[:512]])
    with torch.no_grad():
        perplexity = math.exp(model(input_ids=ids, labels=ids, use_cache=False).loss.item())
    assert perplexity < 1.7  # an untrained model has about 2,000, one that cannot copy a name 1.85
    prompt = "<start_of_turn>user\nWhat is the capital of France?<end_of_turn>\n<start_of_turn>model\n"
    asked = torch.tensor([tokenizer.encode(prompt).ids])
    answer = model.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=16, do_sample=False)
    assert tokenizer.decode(answer[0, asked.shape[1] :].tolist()) == "The capital of France is Paris."
