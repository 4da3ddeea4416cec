"""The command line as a user meets it: exit codes, one-line errors, JSON on stdout and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgepack.cli.plan import print_plan
from edgepack.cli.validating.validate import print_report
from edgepack.planning.plan import Plan
from edgepack.planning.targets import DeviceProfile
from tests.support.paths import ROOT
from tests.support.report_sample import failing

PATHS = os.pathsep.join(map(str, (ROOT, ROOT / "converters", ROOT / "runtimes")))
CONFIG = {
    "model_type": "gemma3n_text",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "num_kv_shared_layers": 2,
    "activation_sparsity_pattern": [0.9, 0.0, 0.0, 0.0],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 300,
    "vocab_size_per_layer_input": 256,
    "hidden_size_per_layer_input": 16,
    "laurel_rank": 16,
    "sliding_window": 16,
    "max_position_embeddings": 128,
    "final_logit_softcapping": 30.0,
    "eos_token_id": [1, 106],
}
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run `edgepack` with arguments in a process of its own."""
    environment = {
        **os.environ,
        "PYTHONPATH": PATHS,
        "EDGEPACK_CACHE": str(tmp_path_factory.mktemp("cli-cache")),
    }

    def run(*arguments: object, stdout: Any = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgepack.cli.main", *map(str, arguments)]
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,  # a prompt is read there where none is given
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            check=False,
            timeout=120,
        )

    return run


@pytest.fixture(scope="module")
def checkpoint(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    done = run("synth", "--config", folder / "config.json", "--out", folder / "ck")
    assert done.returncode == 0, done.stderr
    return folder / "ck"


@pytest.fixture(scope="module")
def package(run: Run, checkpoint: Path) -> Path:
    folder = checkpoint.parent / "pkg"
    done = run("export", checkpoint, "--out", folder, "--context", 64, "--target", "1GB")
    assert done.returncode == 0, done.stderr
    assert "fits 1GB" in done.stdout
    return folder


def one_error_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def test_inspect_tells_caches_and_components(run: Run, checkpoint: Path) -> None:
    done = run("inspect", checkpoint)
    assert done.returncode == 0
    assert "1 full, 1 sliding" in done.stdout
    facts: dict[str, Any] = json.loads(run("inspect", checkpoint, "--json").stdout)
    assert facts["components"]["ple"]["parameters"] == 256 * 4 * 16
    assert facts["spec"]["layers"][2]["kv_owner"] == 0


def test_plan_saved_and_printed_are_the_same(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    done = run("plan", checkpoint, "--target", "1GB", "--context", 64, "--json", "--save", tmp_path / "plan.json")
    assert done.returncode == 0, done.stderr
    plan = Plan.model_validate_json(done.stdout)
    assert plan == Plan.model_validate_json((tmp_path / "plan.json").read_bytes())
    assert plan.fits
    exported = run("export", checkpoint, "--out", tmp_path / "pkg", "--plan", tmp_path / "plan.json", "--json")
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout)["planned_total_bytes"] == plan.total_bytes


def test_over_budget_is_exit_code_1_with_the_one_to_blame(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    done = run("plan", checkpoint, "--target", "1MB", "--context", 64)
    assert done.returncode == 1
    assert done.stdout.startswith("does not fit 1MB")
    assert "largest: runtime, code" in done.stdout.splitlines()[0]
    exported = run("export", checkpoint, "--target", "1MB", "--context", 64, "--out", tmp_path / "pkg")
    assert exported.returncode == 1
    assert not list(tmp_path.iterdir())


def test_generate_from_token_ids(run: Run, package: Path) -> None:
    arguments = ("generate", package, "--token-ids", "2,5,7", "--max-new-tokens", 6, "--temperature", 1, "--seed", 3)
    first, second = (json.loads(run(*arguments, "--json").stdout) for _ in range(2))
    assert len(first["token_ids"]) <= 6
    assert first["token_ids"] == second["token_ids"]
    assert first["prompt_tokens"] == 3


def test_validate_gives_a_verdict_and_an_exit_code(run: Run, package: Path) -> None:
    done = run("validate", package, "--prompt-tokens", 20, "--new-tokens", 5, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] is True
    small = run("validate", package, "--target", "2MB", "--prompt-tokens", 20, "--new-tokens", 5)
    assert small.returncode == 1
    assert "2,000,000 bytes" in small.stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("inspect", "/nowhere/at/all"), "/nowhere/at/all"),
        (("plan", "{checkpoint}", "--target", "2 elephants"), "2 elephants"),
        (("plan", "{checkpoint}", "--recipe", "int3"), "int4"),
        (("plan", "{checkpoint}", "--to", "coreml"), "onnx, litert"),
        (("plan", "{checkpoint}", "--to", "onnx", "--runtime", "litert-lm"), "--to litert"),
        (("export", "{checkpoint}", "--runtime", "litertlm", "--out", "x"), "onnx, litert, litert-lm"),
        (("plan", "{checkpoint}", "--to", "tflite", "--prefill", "1x"), "128,1024"),
        (("export", "{checkpoint}", "--to", "litert", "--prefill", "13", "--out", "x"), "prime"),
        (("plan", "{checkpoint}", "--context", "999"), "max_position_embeddings"),
        (("export", "{checkpoint}", "--out", "{package}"), "--overwrite"),
        (("export", "{checkpoint}", "--out", "{checkpoint}", "--overwrite"), "not a package"),
        (("generate", "{package}", "--prompt", "hello"), "tokenizer"),
        (("generate", "{package}"), "--token-ids"),
        (("generate", "{package}", "--token-ids", "1,x"), "whole numbers"),
        (("generate", "{package}", "--token-ids", "1,300"), "299"),
        (("generate", "{checkpoint}", "--token-ids", "1"), "manifest.json"),
        (("validate", "{package}", "--runtime", "litert"), "litert"),
        (("synth", "--preset", "e3b", "--out", "x"), "gemma-3n-e2b"),
        (("synth", "--out", "x"), "--config"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Run, checkpoint: Path, package: Path, arguments: tuple[str, ...], expected: str
) -> None:
    filled = [argument.format(checkpoint=checkpoint, package=package) for argument in arguments]
    assert expected in one_error_line(run(*filled))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("plan", "x", "--no-such-option"), "--no-such-option"),
        (("plan",), "no checkpoint was given"),
        (("validate", "x", "--prompt-tokens", "0"), "--prompt-tokens"),
        (("synth", "--preset", "gemma-3n-e2b", "--out", "x", "--seed", "-1"), "seed is -1"),
        (("plan", "x" * 3, "--target", "9" * 400), "xxx"),
        (("generate", "x", "--token-ids", "1", "--chat"), "--chat"),
        (("export", ""), "CHECKPOINT is empty"),
        (("export", "x", "--out", ""), "--out is empty"),
        (("export", "x", "--plan", ""), "--plan is empty"),
        (("export", "x", "--recipe", ""), "--recipe is empty"),
        (("generate", "", "--token-ids", "1"), "PACKAGE is empty"),
    ],
)
def test_wrong_usage_is_one_line_too(run: Run, arguments: tuple[str, ...], expected: str) -> None:
    assert expected in one_error_line(run(*arguments))


def test_verbs_of_a_verb_are_shown_where_none_is_given(run: Run) -> None:
    for arguments in ((), ("cache",)):
        bare, asked = run(*arguments), run(*arguments, "--help")
        assert (bare.returncode, bare.stderr, bare.stdout.strip()) == (0, "", asked.stdout.strip())


def test_help_of_validate(run: Run) -> None:
    text = run("validate", "--help").stdout
    assert "[OPTIONS] [PACKAGE]" in text
    assert "how often long" in " ".join(text.replace("│", " ").split())
    assert "[OPTIONS] [CHECKPOINT]" in run("export", "--help").stdout


def test_a_plan_and_what_it_decides_are_not_both_taken(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert run("plan", checkpoint, "--context", 64, "--save", plan).returncode == 0
    done = run("export", checkpoint, "--plan", plan, "--target", "1MB", "--out", tmp_path / "pkg")
    assert "--plan" in one_error_line(done)
    assert not (tmp_path / "pkg").exists()


@pytest.mark.parametrize(("target", "code"), [("1GB", 0), ("1MB", 1)])
def test_the_exit_code_is_true_when_nobody_reads(run: Run, checkpoint: Path, target: str, code: int) -> None:
    # The reader is gone before the first line; the verdict must neither be lost nor turn into another.
    ends, writer = os.pipe()
    os.close(ends)
    try:
        assert run("plan", checkpoint, "--target", target, stdout=writer).returncode == code
    finally:
        os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_under_stdout_is_an_error(run: Run, checkpoint: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = run("inspect", checkpoint, stdout=full)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: standard output cannot be written: No space left on device"]


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(checkpoint: Path, closed: str) -> None:
    environment = {**os.environ, "PYTHONPATH": PATHS}
    for verb, code in ((["--version"], 0), (["plan", str(checkpoint), "--target", "1MB"], 1)):
        command = ["sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-m", "edgepack.cli.main", *verb]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr


def test_a_mistake_of_ours_is_no_answer() -> None:
    script = (
        "import sys, edgepack.cli.validating.validate as verb\n"
        "from edgepack.cli.main import main\n"
        "def broken(file): raise KeyError('a [/x] mistake')\n"
        "verb.read_config = broken\n"
        "sys.argv = ['edgepack', 'validate']\n"
        "main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": PATHS}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 70
    *trace, last = done.stderr.splitlines()
    assert trace[0].startswith("Traceback") and "in broken" in done.stderr
    assert last == "error: a mistake of edgepack itself, please report it: KeyError: 'a [/x] mistake'"


def test_what_users_write_is_never_markup(
    run: Run, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "Board [/x] [rev 2] [bold]:smile:"
    report = failing()
    named = report.predictions[0].model_copy(update={"title": hostile, "basis": hostile})
    print_report(report.model_copy(update={"predictions": (named,), "config": hostile, "notes": (hostile,)}))
    assert capsys.readouterr().out.count(hostile) == 4
    plan = Plan.model_validate_json(run("plan", checkpoint, "--target", "1GB", "--context", 64, "--json").stdout)
    target = plan.target.model_copy(update={"name": hostile}) if plan.target else None
    device = DeviceProfile(
        name="board", title=hostile, ram_bytes=8 * 10**9, limit_bytes=10**9, read_bandwidth_bytes_per_s=1e10
    )
    print_plan(plan.model_copy(update={"target": target}), device)
    assert capsys.readouterr().out.count(hostile) == 2
    done = run("export", checkpoint, "--context", 64, "--out", tmp_path / "[/x] [b]")
    assert done.returncode == 0 and "[/x] [b]: " in done.stdout
