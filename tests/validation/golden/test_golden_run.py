"""Golden answers of the demo model, and what becomes of a validation whose package dies over quality."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import edgepack
from edgepack.errors import EdgepackError
from edgepack.package.folder import open_package
from edgepack.validation.golden import run as golden_module
from edgepack.validation.golden.run import run_golden
from edgepack.validation.processes.protocol import FailedRunError, OnPhase
from edgepack.validation.quality import compare as quality_module
from edgepack.validation.quality.compare import compare_quality
from edgepack.validation.result import GoldenAnswer, GoldenReport, QualityReport, Report
from edgepack.validation.settings import QualityRequest
from edgepack.validation.thresholds import parse_threshold
from edgepack.validation.verdict.quality import check_golden
from tests.support.paths import DEMO

NOW: dict[str, Any] = {"type": "function", "function": {"name": "now", "description": "The time."}}


def write(folder: Path, *lines: Any) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
    return file


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("golden") / "package"
    edgepack.export(DEMO, out=out, recipe="int8", context=64, threads=1)
    return out


def asked_golden(package: Path, file: Path, on_phase: OnPhase = lambda phase: None, **asked: Any) -> GoldenReport:
    return run_golden(open_package(package), QualityRequest(golden=file, threads=1, **asked), on_phase=on_phase)


def compare_with_itself(package: Path, text: Path) -> QualityReport:
    return compare_quality(open_package(package), QualityRequest(reference=str(package), text=text, threads=1))


STORY = {"prompt": "Once upon a time, there was a little girl named", "chat": False, "max_new_tokens": 12}


def test_answers_that_pass_and_fail(package: Path, tmp_path: Path) -> None:
    file = write(
        tmp_path,
        {**STORY, "name": "good", "must_match": r"^ [A-Z]\w+\.", "must_not_contain": "dragon"},
        {**STORY, "name": "bad", "must_contain": ["quantum", "She"]},
        {"name": "chat", "prompt": "Hi", "max_new_tokens": 2, "must_match": "(?s).*"},
        {**STORY, "name": "tool", "tools": [NOW], "must_call": True},
    )
    phases: list[str] = []
    report = asked_golden(package, file, on_phase=phases.append)
    good, bad, chat, tool = report.answers
    with edgepack.load(package, threads=1) as model:
        expected = "".join(model.generate_text(str(STORY["prompt"]), max_new_tokens=12))
        rendered = model.codec.render_chat([{"role": "user", "content": "Hi"}])
        in_turns = "".join(model.generate_text(rendered, max_new_tokens=2))
    assert good.answer == bad.answer == expected
    assert chat.answer == in_turns
    assert (good.passed, good.failures, good.prompt) == (True, (), STORY["prompt"])
    assert bad.failures == ("does not contain 'quantum'", "the answer was cut after max_new_tokens, 12")
    assert chat.passed
    assert tool.failures[0] == "no tool call"
    assert report.pass_rate == 0.5
    assert report.file == str(file)
    assert phases[:4] == ["golden load", "golden 1/4", "judging golden 1/4", "golden 2/4"]
    assert phases[-1] == "judging golden 4/4"


def test_what_a_package_cannot_answer_is_refused(package: Path, tmp_path: Path) -> None:
    file = write(tmp_path, {"name": "long", "prompt": "girl " * 99, "must_contain": "x"})
    with pytest.raises(
        EdgepackError, match=r"golden prompt 'long': the prompt has \d+ tokens and the context holds 64"
    ):
        asked_golden(package, file)


def test_a_regular_expression_without_end_is_stopped(package: Path, tmp_path: Path) -> None:
    file = write(tmp_path, {**STORY, "must_match": "(((.*)*)*)*\0"})
    with pytest.raises(
        FailedRunError, match="were not all answered: no result within 6 s, stopped in phase judging golden 1/1"
    ):
        asked_golden(package, file, timeout_s=6)


def test_a_package_without_tokenizer_is_refused(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, {**STORY, "must_contain": "x"})
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: path.name != "tokenizer.json" and is_file(path))
    with pytest.raises(EdgepackError, match=r"has no tokenizer \(tokenizer.json\)") as caught:
        asked_golden(package, file)
    assert caught.type is not FailedRunError


# --- a package that dies ---

HELPER = """
import json, os, sys
import numpy as np
from edgepack.errors import EdgepackError
from edgepack.package.folder import open_package
from edgepack.validation.golden import worker as golden_worker
from edgepack.validation.quality import worker as quality_worker
from edgepack.validation.processes.protocol import child_main

def nan_logits():
    from edgepack_runtimes.onnx.runtime import OnnxRuntime
    OnnxRuntime.logits = lambda self, ids, last=None: np.full((last or len(ids), self.vocab_size), np.nan, np.float32)

def run(line, channel):
    step = json.loads(line).get("step", "golden")
    if step == {step!r}:
        {body}
    (golden_worker if step == "golden" else quality_worker).run(line, channel)

sys.exit(child_main(run))
"""
DIE, LEAVE, NAN = "os.kill(os.getpid(), 9)", "return", "nan_logits()"


@pytest.fixture
def break_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it with a step and what happens there."""

    def break_in(step: str, body: str) -> None:
        (tmp_path / "broken_helper.py").write_text(HELPER.format(step=step, body=body))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(golden_module, "WORKER", "broken_helper")
        monkeypatch.setattr(quality_module, "WORKER", "broken_helper")

    return break_in


def validated(package: Path, **options: Any) -> Report:
    return edgepack.validate(package, threads=1, prompt_tokens=8, new_tokens=2, repeat=1, **options)


def test_a_package_that_dies_in_golden_is_an_answer(package: Path, tmp_path: Path, break_in: Any) -> None:
    break_in("golden", DIE)
    file = write(tmp_path, {**STORY, "must_contain": "x"})
    report = validated(package, golden=file, thresholds=["golden_pass_rate >= 50%"])
    assert not report.verdict and report.golden is None
    assert report.reasons[0].startswith(f"the golden prompts of {file} were not all answered: killed by signal 9")
    assert [(check.kind, check.passed) for check in report.checks[:2]] == [("quality", False)] * 2
    assert {"decode_tokens_per_s", "peak_rss_bytes"} <= {metric.name for metric in report.metrics}


def test_a_package_that_dies_in_the_comparison_is_an_answer(package: Path, tmp_path: Path, break_in: Any) -> None:
    break_in("compare", DIE)
    file = write(tmp_path, {**STORY, "must_match": "(?s)."})
    report = validated(package, reference=package, text=DEMO / "validation.txt", golden=file)
    assert not report.verdict and report.quality is None
    assert report.golden is not None and report.golden.pass_rate == 1.0, "what else was asked is answered"
    assert "did not run: killed by signal 9" in report.reasons[0]
    assert [check.name for check in report.checks if check.passed is False] == ["comparison with the reference"]


@pytest.mark.parametrize(
    ("step", "body", "message"),
    [
        ("tokenize", DIE, "the package .* did not run: killed by signal 9"),
        ("tokenize", LEAVE, "did not tokenize all of the 1 texts"),
        ("compare", NAN, r"the package .*, text .*: the logits at position 0 are not finite"),
        ("compare", LEAVE, r"did not run to its end: 0 of \d texts were compared"),
    ],
)
def test_what_the_package_does_in_a_comparison(
    package: Path, tmp_path: Path, break_in: Any, step: str, body: str, message: str
) -> None:
    break_in(step, body)
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time, there was a little girl. " * 5)
    with pytest.raises(FailedRunError, match=message):
        compare_with_itself(package, text)


@pytest.mark.parametrize("body", [DIE, NAN])
def test_a_reference_that_breaks_is_no_answer(package: Path, tmp_path: Path, break_in: Any, body: str) -> None:
    break_in("reference", body)
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time, there was a little girl. " * 5)
    with pytest.raises(EdgepackError, match=r"the reference .*(did not run|not finite)") as caught:
        compare_with_itself(package, text)
    assert caught.type is EdgepackError


def test_a_helper_that_leaves_early_has_not_answered(package: Path, tmp_path: Path, break_in: Any) -> None:
    break_in("golden", LEAVE)
    file = write(tmp_path, {**STORY, "must_contain": "x"})
    with pytest.raises(FailedRunError, match="were not all answered: 0 of 1 answers came"):
        asked_golden(package, file)


# --- the verdict ---


def test_a_threshold_on_the_share_takes_the_place_of_all(package: Path, tmp_path: Path) -> None:
    answers = tuple(
        GoldenAnswer(name=name, prompt="p", answer="a", passed=name != "b", failures=("missed",) * (name == "b"))
        for name in "abc"
    )
    report = GoldenReport(file="g.jsonl", sha256="0" * 64, pass_rate=2 / 3, answers=answers)
    alone, other = check_golden(report), check_golden(report, [parse_threshold("kl_mean <= 1")])
    assert alone is not None and alone.passed is False and other == alone
    left = check_golden(report, [parse_threshold("golden_pass_rate >= 60%")])
    assert left is not None and left.passed is None
    assert left.text == "1 of 3 golden answers of g.jsonl failed: b: missed; golden_pass_rate >= 60.0 % decides"
    file = write(tmp_path, {**STORY, "name": "a", "must_match": "."}, {**STORY, "name": "b", "must_contain": "quantum"})
    for share, verdict in (("50%", True), ("60%", False)):
        assert validated(package, golden=file, thresholds=[f"golden_pass_rate >= {share}"]).verdict is verdict
