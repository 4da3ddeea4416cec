"""T5 for LiteRT: Google's own engine runs the bundle and says what Transformers says; what it refuses is one line."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from litert_lm_builder import litertlm_peek
from litert_lm_builder.runtime.proto import llm_metadata_pb2

import edgepack
from edgepack.errors import EdgepackError, PackageError, UnsupportedError
from edgepack.package.folder import Package, open_package
from edgepack.validation.result import Report
from edgepack_converters.litert.container import Kind
from edgepack_runtimes.litert.runtime import LitertRuntime
from edgepack_runtimes.litert_lm.runtime import LitertLmRuntime
from edgepack_runtimes.sampling import SamplingParams
from tests.support import tiny
from tests.support.paths import DEMO
from tests.support.tokenizer_packages import GEMMA_TEMPLATE, gemma_like, write_package

PROMPT = "over the moon jumped a lazy modest fox who read time upon words"
NEW = 40


@dataclass(frozen=True)
class Speaking:
    """A tiny checkpoint with a tokenizer, and its package."""

    model: Any
    checkpoint: Path
    package: Package


def save(name: str, folder: Path) -> Any:
    """A tiny random model that speaks: tokens that are no text have logits of 0, and the best one is above that."""
    tokenizer = gemma_like()
    vocab = tokenizer.get_vocab_size(with_added_tokens=True)
    config = tiny.config(name)
    config.vocab_size, config.tie_word_embeddings = vocab, True
    config.bos_token_id, config.eos_token_id = 2, [1, 5]
    if name in tiny.GEMMA3N:
        config.vocab_size_per_layer_input = vocab - 8
    model = tiny.build(name, config)
    silent = [i for token, i in tokenizer.get_vocab().items() if token.startswith("<")]
    with torch.no_grad():
        model.get_input_embeddings().weight[silent] = 0
    model.save_pretrained(folder)
    write_package(folder, tokenizer)
    return model


@pytest.fixture(scope="module", params=["shared", "gemma3"])
def speaking(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Speaking:
    folder = tmp_path_factory.mktemp("speaking")
    model = save(request.param, folder / "checkpoint")
    package = edgepack.export(
        folder / "checkpoint",
        to="litert",
        out=folder / "package",
        recipe="fp32",
        context=tiny.CONTEXT,
        prefill=(16,),
        threads=1,
    ).package
    return Speaking(model, folder / "checkpoint", package)


def expected_ids(case: Speaking, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.no_grad():
        return list(case.model.generate(ids, max_new_tokens=NEW, do_sample=False)[0].tolist()[len(prompt) :])


def test_both_runtimes_say_what_transformers_says(speaking: Speaking) -> None:
    # The prompt is longer than a piece of prefill, and what follows leaves the window of 8 several times.
    with LitertLmRuntime(speaking.package, threads=1) as engine:
        prompt = engine.codec.encode(PROMPT)
        assert len(prompt) > 17 and len(prompt) + NEW < tiny.CONTEXT
        expected = expected_ids(speaking, prompt)
        assert len(set(expected)) > 5  # a model that repeats itself would prove little
        answer = engine.generate_text(PROMPT, max_new_tokens=NEW)
        assert "".join(answer) == engine.codec.decode(expected)
        assert (answer.finish_reason, answer.stats.new_tokens) == ("length", NEW)
        assert answer.stats.prompt_tokens == len(prompt)
        again = "".join(engine.generate_text(PROMPT, max_new_tokens=NEW))
        assert again == engine.codec.decode(expected)  # a session leaves nothing behind in the caches
    with LitertRuntime(speaking.package, threads=1) as runtime:
        assert list(runtime.generate(prompt, max_new_tokens=NEW)) == expected


def test_the_trained_demo_says_the_same_everywhere(tmp_path: Path) -> None:
    package = edgepack.export(DEMO, to="litert", out=tmp_path / "package", recipe="fp32").package
    prompt = "Tell me a story about Emil"
    texts = []
    for kind in (LitertRuntime, LitertLmRuntime):
        with kind(package, threads=1) as runtime:
            texts.append("".join(runtime.generate_text(prompt, max_new_tokens=60, chat=True)))
    onnx = edgepack.export(DEMO, out=tmp_path / "onnx", recipe="fp32").package
    with edgepack.load(onnx.path, threads=1) as runtime:
        texts.append("".join(runtime.generate_text(prompt, max_new_tokens=60, chat=True)))
    assert texts[0] == texts[1] == texts[2] and len(texts[0]) > 100


def test_the_engine_takes_ids_that_are_a_text_and_no_others(speaking: Speaking) -> None:
    with LitertLmRuntime(speaking.package, threads=1) as engine:
        prompt = engine.codec.encode("the quick brown fox")
        ids = list(engine.generate(prompt, max_new_tokens=5))
        assert engine.codec.decode(ids) == engine.codec.decode(expected_ids(speaking, prompt)[:5])
        with pytest.raises(EdgepackError, match="--runtime litert"):
            engine.generate(prompt[1:], max_new_tokens=5)
        with pytest.raises(EdgepackError, match="no logits"):
            engine.logits(prompt)
        with pytest.raises(EdgepackError, match="seeds up to 2147483647, got 2147483648"):
            engine.generate_text("the", max_new_tokens=5, sampling=SamplingParams(temperature=1, seed=2**31))
        with pytest.raises(EdgepackError, match="repetition penalty"):
            engine.generate_text("the", max_new_tokens=5, sampling=SamplingParams(repetition_penalty=1.2))
        with pytest.raises(EdgepackError, match="max_new_tokens is 0"):
            engine.generate_text("the", max_new_tokens=0)
    with pytest.raises(EdgepackError, match="closed"):
        engine.generate_text("the", max_new_tokens=1)


def test_sampling_with_a_seed_is_repeatable(speaking: Speaking) -> None:
    with LitertLmRuntime(speaking.package, threads=1) as engine:
        params = SamplingParams(temperature=1.0, top_k=20, top_p=0.9, seed=7)
        first, second = ("".join(engine.generate_text("the", max_new_tokens=20, sampling=params)) for _ in range(2))
        other = engine.generate_text("the", max_new_tokens=20, sampling=params.model_copy(update={"seed": 8}))
        third = "".join(other)
    assert first == second and first and third != first


def sections(bundle: Path) -> dict[tuple[int, str], bytes]:
    """Content of every section of a bundle, by its kind and model type, as Google's own reader sees it."""
    with bundle.open("rb") as file:
        header = litertlm_peek.read_litertlm_header(str(bundle), io.StringIO())
        found = {}
        objects = header.SectionMetadata()
        for i in range(objects.ObjectsLength()):
            entry = objects.Objects(i)
            items = [entry.Items(j) for j in range(entry.ItemsLength())]
            kind = "".join(item.Key().decode() for item in items)
            file.seek(entry.BeginOffset())
            found[entry.DataType(), f"{kind}{i}"] = file.read(entry.EndOffset() - entry.BeginOffset())
    return found


def test_the_metadata_says_what_the_checkpoint_says(speaking: Speaking) -> None:
    bundle = speaking.package.file("decoder")
    content = next(c for (kind, _), c in sections(bundle).items() if kind == Kind.LlmMetadataProto)
    metadata = llm_metadata_pb2.LlmMetadata.FromString(content)
    spec = speaking.package.manifest.plan.spec
    assert metadata.llm_model_type.WhichOneof("model_type") == spec.family
    assert list(metadata.start_token.token_ids.ids) == [2]
    assert [list(stop.token_ids.ids) for stop in metadata.stop_tokens] == [[1], [5]]
    assert metadata.max_num_tokens == tiny.CONTEXT
    assert metadata.jinja_prompt_template == GEMMA_TEMPLATE.removesuffix("\n")
    assert metadata.prompt_templates.user.prefix == "<start_of_turn>user\n"


def test_the_same_checkpoint_gives_the_same_bytes(speaking: Speaking, tmp_path: Path) -> None:
    plan = speaking.package.manifest.plan
    again = edgepack.export(speaking.checkpoint, to="litert", out=tmp_path / "again", plan=plan, threads=1).package
    assert again.manifest == speaking.package.manifest
    assert again.file("decoder").read_bytes() == speaking.package.file("decoder").read_bytes()


def test_weights_are_stored_once_for_all_signatures(speaking: Speaking, tmp_path: Path) -> None:
    more = edgepack.export(
        speaking.checkpoint,
        to="litert",
        out=tmp_path / "more",
        recipe="fp32",
        context=tiny.CONTEXT,
        prefill=(8, 16, 32),
        threads=1,
    ).package
    weights = sum(row.disk_bytes for row in more.manifest.plan.rows if "cache" not in row.name or "KV" in row.name)
    for package in (more, speaking.package):
        assert package.file("decoder").stat().st_size < weights + 1_200_000  # graphs, tokenizer, alignment
    with LitertRuntime(more, threads=1) as runtime:
        prompt = runtime.codec.encode(PROMPT)
        assert list(runtime.generate(prompt, max_new_tokens=8)) == expected_ids(speaking, prompt)[:8]


def test_without_a_tokenizer_the_engine_is_refused_and_litert_is_not(speaking: Speaking, tmp_path: Path) -> None:
    checkpoint = tmp_path / "mute"
    shutil.copytree(speaking.checkpoint, checkpoint, ignore=shutil.ignore_patterns("tokenizer*"))
    package = edgepack.export(
        checkpoint, to="litert", out=tmp_path / "package", recipe="fp32", context=64, prefill=(16,)
    ).package
    with pytest.raises(PackageError, match="has no tokenizer"):
        LitertLmRuntime(package)
    with LitertRuntime(package, threads=1) as runtime:
        assert np.isfinite(runtime.prefill([2, 5, 7])).all()


@pytest.mark.parametrize(("runtime", "to"), [("onnx", "litert"), ("litert", "onnx"), ("litert-lm", "onnx")])
def test_a_package_of_another_backend_is_refused(tiny_packages: tiny.TinyPackages, runtime: str, to: str) -> None:
    package = tiny_packages("shared", to=to, prefill=(8,)).package
    with pytest.raises(PackageError, match=f"is a package for {to}, which the runtime {runtime} cannot run"):
        edgepack.load(package.path, runtime=runtime)


@pytest.mark.parametrize(
    ("context", "prefill", "expected"),
    [
        (11, (8,), "choose 12"),
        (127, (8,), "choose 128"),
        (128, (13,), "choose 14"),
        (100, (8,), "choose --context 104"),
        (1, (1,), "2 or more"),
    ],
)
def test_lengths_that_the_engine_cannot_have_fail_in_the_plan(
    speaking: Speaking, context: int, prefill: tuple[int, ...], expected: str
) -> None:
    with pytest.raises(UnsupportedError, match=expected):
        edgepack.plan(speaking.checkpoint, to="litert", context=context, prefill=prefill)


@pytest.mark.parametrize("context", [2, 64, 100, 122, 128])
def test_without_lengths_a_short_context_is_one_piece(speaking: Speaking, context: int) -> None:
    assert edgepack.plan(speaking.checkpoint, to="litert", context=context).prefill_tokens == (context,)


def test_the_engine_fills_the_context_to_its_end(speaking: Speaking) -> None:
    with LitertLmRuntime(speaking.package, threads=1) as engine:
        ids = [int(token) for token in engine.engine.tokenize(f"{PROMPT} " * 8)]
        for count in (97, 112, 113, 126):
            text = engine.engine.detokenize(ids[: count - 1])
            answer = engine.generate_text(text, max_new_tokens=NEW)
            said = "".join(answer)
            expected = engine.codec.decode(expected_ids(speaking, engine.codec.encode(text)))
            assert said and expected.startswith(said) and answer.finish_reason in ("context", "length")


def test_an_answer_may_be_left_early(speaking: Speaking) -> None:
    with LitertLmRuntime(speaking.package, threads=1) as engine:
        whole = "".join(engine.generate_text("the fox", max_new_tokens=NEW))
        for _ in range(3):
            left = engine.generate_text("the lazy dog", max_new_tokens=60)
            next(left)
            del left
            assert "".join(engine.generate_text("the fox", max_new_tokens=NEW)) == whole
        earlier = engine.generate_text("the lazy dog", max_new_tokens=60)
        next(earlier)
        assert "".join(engine.generate_text("the fox", max_new_tokens=NEW)) == whole
        with pytest.raises(EdgepackError, match="another generation has started"):
            next(earlier)
        engine.generate_text("never asked for", max_new_tokens=5)
        running = engine.generate_text("the lazy dog", max_new_tokens=60)
        next(running)
    with pytest.raises(EdgepackError):
        next(running)


def test_a_stop_token_is_not_counted(tmp_path: Path) -> None:
    package = edgepack.export(DEMO, to="litert", out=tmp_path / "package").package
    facts = []
    for kind in (LitertRuntime, LitertLmRuntime):
        with kind(package, threads=1) as runtime:
            answer = runtime.generate_text("Hi", max_new_tokens=200, chat=True)
            text = "".join(answer)
            facts.append((text, answer.finish_reason, answer.stats.new_tokens, answer.stats.prompt_tokens))
    assert facts[0] == facts[1] and facts[0][1] == "stop"


def test_logits_end_a_running_generation(speaking: Speaking) -> None:
    with LitertRuntime(speaking.package, threads=1) as runtime:
        generation = runtime.generate([2, 8, 9], max_new_tokens=10)
        next(generation), next(generation)
        runtime.logits([2] * runtime.past_tokens)
        with pytest.raises(EdgepackError, match="another generation"):
            next(generation)


SPAN_EDITS: dict[str, Any] = {
    "one is missing": lambda spans: spans.pop("embed"),
    "two are one": lambda spans: spans.update(decoder=spans["embed"]),
    "beyond the file": lambda spans: spans.update(embed=[0, 10**12]),
    "one too many": lambda spans: spans.update({"a:b": spans["embed"]}),
    "empty": lambda spans: spans.update(embed=[spans["embed"][0], 0]),
}


@pytest.mark.parametrize("runtime", ["litert", "litert-lm"])
@pytest.mark.parametrize("edit", SPAN_EDITS.values(), ids=SPAN_EDITS)
def test_edited_spans_are_refused(speaking: Speaking, tmp_path: Path, runtime: str, edit: Any) -> None:
    folder = tmp_path / "package"
    shutil.copytree(speaking.package.path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest["spans"])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PackageError, match=r"the manifest('s models are not| at .*embed).* export the package again"):
        edgepack.load(folder, runtime=runtime)


@pytest.mark.parametrize("runtime", ["litert", "litert-lm"])
def test_a_bundle_that_is_no_bundle_is_one_line(
    speaking: Speaking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "package"
    shutil.copytree(speaking.package.path, folder)
    bundle = folder / "litert" / "model.litertlm"
    size = bundle.stat().st_size
    bundle.write_bytes(bytes(size))
    with pytest.raises(PackageError) as caught:
        edgepack.load(folder, runtime=runtime, threads=1)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("[!.]*"))


def test_a_manifest_of_another_model_is_refused(speaking: Speaking, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    shutil.copytree(speaking.package.path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["plan"]["context_tokens"] = 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PackageError, match="context_tokens is 128 where the manifest says 64"):
        LitertRuntime(open_package(folder), threads=1)


def test_a_damaged_cache_is_rebuilt(speaking: Speaking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    for kind in (LitertRuntime, LitertLmRuntime):
        for _ in range(2):
            with kind(speaking.package, threads=1) as runtime:
                prompt = runtime.codec.encode("the quick brown fox")
                said = "".join(runtime.generate_text("the quick brown fox", max_new_tokens=5))
                assert said == runtime.codec.decode(expected_ids(speaking, prompt)[:5])
            for file in (tmp_path / "cache").glob("*/*xnn*"):
                file.write_bytes(bytes(file.stat().st_size))


def test_validate_measures_it(speaking: Speaking) -> None:
    report = edgepack.validate(speaking.package.path, target="2GB", prompt_tokens=30, new_tokens=8, repeat=1, threads=1)
    assert report.verdict and report.runtime == "litert"
    require_measured(report)


def require_measured(report: Report) -> None:
    measured = {metric.name for metric in report.metrics}
    assert {"ttft_ms@30", "prefill_tokens_per_s@30", "decode_tokens_per_s", "peak_rss_bytes"} <= measured
    assert report.prompt_tokens == (30,) and report.new_tokens == 8
    assert report.plan is not None and abs(report.plan.filled_tokens - 38) <= 3


def test_what_is_exported_for_the_engine_runs_in_it_by_default(speaking: Speaking, tmp_path: Path) -> None:
    package = edgepack.export(
        speaking.checkpoint, runtime="litert-lm", out=tmp_path / "package", recipe="fp32", context=tiny.CONTEXT,
        prefill=(16,), threads=1, target="2GB",
    ).package  # fmt: skip
    plan = package.manifest.plan
    assert package.manifest.files == speaking.package.manifest.files
    assert plan.total_bytes > speaking.package.manifest.plan.total_bytes
    with edgepack.load(package.path) as model:
        assert isinstance(model, LitertLmRuntime)
    report = edgepack.validate(
        package.path, reference=package.path, prompt_tokens=30, new_tokens=8, repeat=1, threads=1
    )
    assert report.verdict and report.runtime == "litert-lm"
    require_measured(report)
    assert report.plan is not None and report.plan.full_context_total_bytes == plan.total_bytes
    assert report.quality is not None and report.quality.kl_mean < 1e-6
    assert "the same models were compared in the runtime litert" in " ".join(report.quality.notes)
