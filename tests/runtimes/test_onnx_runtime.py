"""Our ONNX runtime layer: bound caches, windows that drop rows, chunks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import edgepack
from edgepack.errors import EdgepackError, PackageError
from edgepack.package.folder import open_package
from edgepack_runtimes.onnx.runtime import OnnxRuntime
from tests.support import tiny
from tests.support.paths import ROOT
from tests.support.tiny import Tiny, TinyPackages
from tests.support.tolerances import FP32_LOGITS, SAME_GRAPH_LOGITS

LENGTH = 100  # over twelve windows: window-sized caches are compacted several times whatever their slack
PATHS = os.pathsep.join(str(ROOT / part) for part in (".", "converters", "runtimes"))


@pytest.fixture(params=tiny.NAMES)
def case(request: pytest.FixtureRequest, tiny_packages: TinyPackages) -> Tiny:
    return tiny_packages(request.param)


@pytest.fixture
def shared(tiny_packages: TinyPackages) -> Tiny:
    return tiny_packages("shared")


# -- logits, prefill and decode


@pytest.mark.parametrize(("chunk", "slack"), [(1, 0), (7, 0), (16, 3), (60, 3), (5, 30), (128, 30)])
def test_prefill_and_decode_are_those_of_transformers(case: Tiny, chunk: int, slack: int) -> None:
    ids = tiny.token_ids(LENGTH)
    expected = tiny.reference(case.model, ids)[0]
    prompt = 23
    with OnnxRuntime(case.package, threads=1, chunk_tokens=chunk, slack_tokens=slack) as runtime:
        last = runtime.prefill(ids[0, :prompt].tolist())
        np.testing.assert_allclose(last, expected[prompt - 1], rtol=0, atol=FP32_LOGITS)
        steps = np.array([runtime.decode(int(token)) for token in ids[0, prompt:]])
    np.testing.assert_allclose(steps, expected[prompt:], rtol=0, atol=FP32_LOGITS)


def test_a_second_prompt_goes_behind_the_first(case: Tiny) -> None:
    # A turn of a chat: prefill over a cache that has already dropped rows.
    ids = tiny.token_ids(LENGTH)
    expected = tiny.reference(case.model, ids)[0]
    with OnnxRuntime(case.package, threads=1, chunk_tokens=11, slack_tokens=3) as runtime:
        for start, stop in ((0, 30), (30, 31), (31, 77), (77, LENGTH)):
            last = runtime.prefill(ids[0, start:stop].tolist())
            np.testing.assert_allclose(last, expected[stop - 1], rtol=0, atol=FP32_LOGITS)


@pytest.mark.parametrize("chunk", [9, 128])
def test_logits_of_every_position(case: Tiny, chunk: int) -> None:
    ids = tiny.token_ids(LENGTH)
    with OnnxRuntime(case.package, threads=1, chunk_tokens=chunk) as runtime:
        logits = runtime.logits(ids[0].tolist())
    assert logits.shape == (LENGTH, tiny.VOCAB)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, tiny.reference(case.model, ids)[0], rtol=0, atol=FP32_LOGITS)


@pytest.mark.parametrize("last", [1, 9, 20, LENGTH])
def test_logits_of_the_last_positions(case: Tiny, last: int) -> None:
    ids = tiny.token_ids(LENGTH)
    with OnnxRuntime(case.package, threads=1, chunk_tokens=9) as runtime:
        logits = runtime.logits(ids[0].tolist(), last)
        for wrong in (0, LENGTH + 1):
            with pytest.raises(EdgepackError, match=f"last is {wrong}: expected 1 to {LENGTH}, the number of tokens"):
                runtime.logits(ids[0].tolist(), wrong)
    np.testing.assert_allclose(logits, tiny.reference(case.model, ids)[0, -last:], rtol=0, atol=FP32_LOGITS)


def test_growing_caches_keep_their_rows(shared: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack_runtimes.onnx.runtime.FIRST_CAPACITY_TOKENS", 4)
    ids = tiny.token_ids(LENGTH)
    expected = tiny.reference(shared.model, ids)[0]
    with OnnxRuntime(shared.package, threads=1, chunk_tokens=3) as runtime:
        np.testing.assert_allclose(runtime.prefill(ids[0, :7].tolist()), expected[6], rtol=0, atol=FP32_LOGITS)
        steps = np.array([runtime.decode(int(token)) for token in ids[0, 7:]])
        np.testing.assert_allclose(steps, expected[7:], rtol=0, atol=FP32_LOGITS)
        np.testing.assert_allclose(runtime.logits(ids[0].tolist()), expected, rtol=0, atol=FP32_LOGITS)


def test_reset_forgets_everything(shared: Tiny) -> None:
    first, second = tiny.token_ids(60, seed=1)[0].tolist(), tiny.token_ids(60, seed=2)[0].tolist()
    with OnnxRuntime(shared.package, threads=1, slack_tokens=2) as runtime:
        fresh = [runtime.prefill(second[:20]), *(runtime.decode(token) for token in second[20:])]
        runtime.reset()
        runtime.prefill(first)
        runtime.reset()
        again = [runtime.prefill(second[:20]), *(runtime.decode(token) for token in second[20:])]
    np.testing.assert_array_equal(np.array(again), np.array(fresh))


def test_logits_leave_the_cache_of_a_generation_alone(shared: Tiny) -> None:
    ids = tiny.token_ids(40)[0].tolist()
    with OnnxRuntime(shared.package, threads=1) as runtime:
        runtime.prefill(ids[:30])
        expected = runtime.logits(ids)[30]
        np.testing.assert_allclose(runtime.decode(ids[30]), expected, rtol=0, atol=SAME_GRAPH_LOGITS)


def test_greedy_generation_is_that_of_transformers(case: Tiny) -> None:
    prompt = tiny.token_ids(21, seed=5)
    with torch.no_grad():
        expected = case.model.generate(
            torch.tensor(prompt), max_new_tokens=30, min_new_tokens=30, do_sample=False, eos_token_id=None
        )[0, 21:].tolist()
    with edgepack.load(case.package.path, threads=1) as runtime:
        found = list(runtime.generate(prompt[0].tolist(), max_new_tokens=30, stop_token_ids=()))
    assert found == expected


# -- limits and misuse


def test_a_full_context_is_said_and_loses_nothing(shared: Tiny) -> None:
    ids = tiny.token_ids(tiny.CONTEXT)
    expected = tiny.reference(shared.model, ids)[0]
    with OnnxRuntime(shared.package, threads=1, chunk_tokens=16) as runtime:
        runtime.prefill(ids[0, :-1].tolist())
        with pytest.raises(EdgepackError, match=r"context is full: it holds 128 tokens, 130 are asked for"):
            runtime.prefill(ids[0, -3:].tolist())
        np.testing.assert_allclose(runtime.decode(int(ids[0, -1])), expected[-1], rtol=0, atol=FP32_LOGITS)
        with pytest.raises(EdgepackError, match="context is full"):
            runtime.decode(5)


def test_a_prefill_that_does_not_fit_appends_no_chunk(shared: Tiny) -> None:
    ids = tiny.token_ids(110)[0].tolist()
    with OnnxRuntime(shared.package, threads=1, chunk_tokens=4) as runtime:
        runtime.prefill(ids[:100])
        with pytest.raises(EdgepackError, match="context is full"):
            runtime.prefill(ids[:40])
        after = runtime.decode(ids[100])
        runtime.reset()
        runtime.prefill(ids[:100])
        np.testing.assert_array_equal(after, runtime.decode(ids[100]))


@pytest.mark.parametrize("token", [-1, tiny.VOCAB, 10**9])
def test_ids_outside_the_vocabulary_are_refused(shared: Tiny, token: int) -> None:
    with OnnxRuntime(shared.package, threads=1) as runtime:
        calls: list[Callable[[], object]] = [lambda: runtime.prefill([5, token]), lambda: runtime.logits([5, token])]
        for call in calls:
            with pytest.raises(EdgepackError, match=f"token 1 is {token}"):
                call()
        runtime.prefill([5])
        with pytest.raises(EdgepackError, match=f"token 0 is {token}"):
            runtime.decode(token)


def test_a_closed_runtime_says_so(shared: Tiny) -> None:
    runtime = OnnxRuntime(shared.package, threads=1)
    runtime.prefill([5, 6])
    runtime.close()
    runtime.close()
    calls: list[Callable[[], object]] = [
        lambda: runtime.prefill([5]),
        lambda: runtime.decode(5),
        lambda: runtime.logits([5]),
    ]
    for call in calls:
        with pytest.raises(EdgepackError, match="this model is closed"):
            call()
    assert runtime._full is None  # no session was opened to say so


def test_a_chunk_size_below_one_is_refused(shared: Tiny) -> None:
    for chunk in (0, -3):
        with pytest.raises(EdgepackError, match=f"chunk_tokens is {chunk}"):
            OnnxRuntime(shared.package, chunk_tokens=chunk)


@pytest.mark.parametrize("version", ["1.23.2", "1.28.1", "0.9"])
def test_an_onnxruntime_that_computes_wrongly_is_refused(
    version: str, shared: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    with pytest.raises(
        EdgepackError, match=rf"onnxruntime {version} computes these graphs wrongly or not at all: expected 1.29"
    ):
        OnnxRuntime(shared.package)


def test_a_missing_graph_is_named_at_load(shared: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "package"
    edgepack.export(shared.checkpoint, out=out, recipe="fp32", context=64)
    graph = open_package(out).file("decoder")
    graph.unlink()
    with pytest.raises(PackageError, match=graph.name):
        edgepack.load(out)


# -- without torch


def test_no_torch_and_no_transformers_is_needed(shared: Tiny) -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'safetensors', 'onnx_ir'):\n"
        "    sys.modules[name] = None\n"
        "import edgepack_runtimes.onnx.runtime, edgepack\n"
        "with edgepack.load(sys.argv[1], threads=1) as model:\n"
        "    print(*model.generate([2, 5, 9], max_new_tokens=5, stop_token_ids=()))\n"
    )
    command = [sys.executable, "-c", script, str(shared.package.path)]
    environment = {**os.environ, "PYTHONPATH": PATHS}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 5


def test_generation_stops_at_the_stop_tokens_of_the_checkpoint(shared: Tiny) -> None:
    with edgepack.load(shared.package.path) as runtime:
        assert runtime.eos_token_ids == frozenset({1})
        # Make the model's own first choice the stop token: nothing must come out.
        first = int(runtime.prefill([2, 5, 9]).argmax())
        generation = runtime.generate([2, 5, 9], max_new_tokens=5, stop_token_ids={first})
        start = time.monotonic()
        assert list(generation) == []
        assert generation.finish_reason == "stop"
        assert time.monotonic() - start < 30
