"""T2: the fp32 export computes what Transformers computes, in every way a prompt can be fed to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import edgepack
from edgepack_runtimes.onnx.runtime import NOTHING
from tests.support import tiny
from tests.support.raw_graphs import RawGraphs
from tests.support.tiny import Tiny, TinyPackages
from tests.support.tolerances import FP32_LOGITS, FP32_PROBABILITIES

# Five windows long: rows leave every sliding cache, and KV-sharing layers look back across several of them.
LENGTH = 5 * tiny.WINDOW
SPLITS = {
    "whole": [LENGTH],
    "token by token": [1] * LENGTH,
    "in windows": [tiny.WINDOW] * 5,
    "uneven": [3, 11, 1, 9, 1, 15],
    "prompt, then tokens": [17] + [1] * (LENGTH - 17),
}


@pytest.fixture(scope="module", params=tiny.NAMES)
def case(request: pytest.FixtureRequest, tiny_packages: TinyPackages) -> Tiny:
    return tiny_packages(request.param)


def probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    result: npt.NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


@pytest.mark.parametrize("split", SPLITS)
def test_every_position_is_that_of_transformers(case: Tiny, split: str) -> None:
    ids = tiny.token_ids(LENGTH)
    logits = RawGraphs(case.package).logits(ids, SPLITS[split])
    expected = tiny.reference(case.model, ids)
    assert logits.shape == expected.shape == (1, LENGTH, tiny.VOCAB)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=FP32_LOGITS)
    # Greedy output does not notice a missing softcap, probabilities do.
    np.testing.assert_allclose(probabilities(logits), probabilities(expected), rtol=0, atol=FP32_PROBABILITIES)


@pytest.mark.parametrize("keep", [1, 3])
def test_only_the_last_positions_are_computed_when_asked(case: Tiny, keep: int) -> None:
    # KV-sharing layers then see the wanted positions alone, and must still see all keys before them.
    ids = tiny.token_ids(LENGTH)
    logits = RawGraphs(case.package).logits(ids, [19, 21], keep=keep)
    expected = tiny.reference(case.model, ids)
    wanted = [*range(19 - keep, 19), *range(LENGTH - keep, LENGTH)]
    assert logits.shape == (1, 2 * keep, tiny.VOCAB)
    np.testing.assert_allclose(logits, expected[:, wanted], rtol=0, atol=FP32_LOGITS)


def test_nothing_is_computed_for_a_chunk_whose_logits_nobody_wants(case: Tiny) -> None:
    ids = tiny.token_ids(LENGTH)
    assert RawGraphs(case.package).logits(ids, [19, 21], keep=NOTHING).shape == (1, 0, tiny.VOCAB)


def test_two_prompts_of_one_length_at_once(case: Tiny) -> None:
    # GroupQueryAttention takes a batch for a whole prompt and for single tokens; a second chunk must have batch 1.
    ids = tiny.token_ids(LENGTH, batch=2)
    logits = RawGraphs(case.package).logits(ids, [19] + [1] * (LENGTH - 19))
    np.testing.assert_allclose(logits, tiny.reference(case.model, ids), rtol=0, atol=FP32_LOGITS)


def test_a_prompt_as_long_as_the_context(case: Tiny) -> None:
    ids = tiny.token_ids(tiny.CONTEXT)
    logits = RawGraphs(case.package).logits(ids, [100, 28])
    np.testing.assert_allclose(logits, tiny.reference(case.model, ids), rtol=0, atol=FP32_LOGITS)


def test_the_tiny_models_reach_the_softcap(tiny_packages: TinyPackages) -> None:
    # Without this the comparison of probabilities above would prove nothing.
    for name in ("untied", "gemma3_untied"):
        logits = tiny.reference(tiny_packages(name).model, tiny.token_ids(LENGTH))
        cap = tiny_packages(name).package.manifest.plan.spec.final_logit_softcap
        assert cap == 2.0
        assert np.abs(logits).max() > 0.8 * cap


def test_ids_over_the_per_layer_vocabulary_read_row_zero(tiny_packages: TinyPackages) -> None:
    graphs = RawGraphs(tiny_packages("shared").package)
    ids = np.array([[0, tiny.PLE_VOCAB - 1, tiny.PLE_VOCAB, tiny.VOCAB - 1]])
    rows = graphs.embedded(ids)["per_layer_inputs"][0]
    np.testing.assert_array_equal(rows[2], rows[0])
    np.testing.assert_array_equal(rows[3], rows[0])
    assert np.abs(rows[1] - rows[0]).max() > 0.1


def test_a_bfloat16_checkpoint(tiny_packages: TinyPackages) -> None:
    case = tiny_packages("shared", dtype=torch.bfloat16)
    ids = tiny.token_ids(LENGTH)
    np.testing.assert_allclose(
        RawGraphs(case.package).logits(ids, [LENGTH]), tiny.reference(case.model, ids), rtol=0, atol=FP32_LOGITS
    )


def onnx_files(package: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((package / "onnx").iterdir())}


def test_multimodal_names_give_the_same_graphs_and_weights(tiny_packages: TinyPackages, tmp_path: Path) -> None:
    text = tiny_packages("shared")
    folder = tiny.as_multimodal(text.checkpoint, tmp_path / "multimodal")
    package = edgepack.export(folder, out=tmp_path / "out", recipe="fp32", context=tiny.CONTEXT).package
    assert package.manifest.plan.spec.names.prefix == "model.language_model."
    assert onnx_files(package.path) == onnx_files(text.package.path)


@pytest.mark.parametrize("name", ["unshared_one_kv_head", "gemma3_untied"])
def test_old_rope_keys_give_the_same_graphs_and_weights(name: str, tiny_packages: TinyPackages, tmp_path: Path) -> None:
    new = tiny_packages(name)
    folder = tiny.edit_tensors(new.checkpoint, tmp_path / "old", dict, tiny.with_old_rope_keys)
    package = edgepack.export(folder, out=tmp_path / "out", recipe="fp32", context=tiny.CONTEXT).package
    assert onnx_files(package.path) == onnx_files(new.package.path)


def test_key_and_value_tensors_of_sharing_layers_change_nothing(tiny_packages: TinyPackages, tmp_path: Path) -> None:
    case = tiny_packages("shared")

    def scramble(tensors: dict[str, tiny.FloatArray]) -> dict[str, tiny.FloatArray]:
        spec = case.package.manifest.plan.spec
        for index in range(spec.first_shared_layer, len(spec.layers)):
            for name, shape in (("k_proj", (32, 64)), ("v_proj", (32, 64)), ("k_norm", (16,))):
                tensors[f"model.layers.{index}.self_attn.{name}.weight"] = np.full(shape, 7, np.float32)
        return tensors

    folder = tiny.edit_tensors(case.checkpoint, tmp_path / "scrambled", scramble)
    package = edgepack.export(folder, out=tmp_path / "out", recipe="fp32", context=tiny.CONTEXT).package
    assert onnx_files(package.path) == onnx_files(case.package.path)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_prefix_of_the_layers(count: int, tiny_packages: TinyPackages, tmp_path: Path) -> None:
    # Where a decoder is wrong, the smallest failing count names the layer.
    whole = tiny_packages("unshared_one_kv_head")
    rows = count * 16

    def cut(tensors: dict[str, tiny.FloatArray]) -> dict[str, tiny.FloatArray]:
        later = tuple(f"model.layers.{i}." for i in range(count, 4))
        kept = {name: value for name, value in tensors.items() if not name.startswith(later)}
        table, projection = "model.embed_tokens_per_layer.weight", "model.per_layer_model_projection.weight"
        return {**kept, table: kept[table][:, :rows], projection: kept[projection][:rows]}

    def shorten(values: dict[str, Any]) -> dict[str, Any]:
        lists = ("layer_types", "activation_sparsity_pattern", "intermediate_size")
        return {**values, "num_hidden_layers": count, **{key: values[key][:count] for key in lists}}

    folder = tiny.edit_tensors(whole.checkpoint, tmp_path / "prefix", cut, shorten)
    model = type(whole.model).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    package = edgepack.export(folder, out=tmp_path / "out", recipe="fp32", context=tiny.CONTEXT).package
    ids = tiny.token_ids(LENGTH)
    logits = RawGraphs(package).logits(ids, [LENGTH - 5, 5])
    np.testing.assert_allclose(logits, tiny.reference(model, ids), rtol=0, atol=FP32_LOGITS)
