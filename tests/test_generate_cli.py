"""`edgepack generate`: prompts from options and standard input, sampling of the package, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgepack
from edgepack.threads import available_cores

Run = Callable[..., subprocess.CompletedProcess[bytes]]
PROMPT = "Once upon a time, there was"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return edgepack.export("demo", out=tmp_path_factory.mktemp("generate") / "pkg", context=128).package.path


@pytest.fixture(scope="module")
def generate(package: Path) -> Run:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def run(*arguments: object, data: bytes = b"", of: Path = package, **options: Any) -> Any:
        command = [sys.executable, "-m", "edgepack", "generate", str(of), "--max-new-tokens", "8", *map(str, arguments)]
        given = {"stdin": options["stdin"]} if "stdin" in options else {"input": data}
        return subprocess.run(command, capture_output=True, env=environment, check=False, timeout=120, **given)

    return run


def refused(done: subprocess.CompletedProcess[bytes]) -> str:
    assert (done.returncode, done.stdout) == (2, b""), done.stderr
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "data"),
    [
        ((), PROMPT.encode()),
        ((), f"{PROMPT}\n".encode()),
        (("--prompt", "-"), f"\ufeff{PROMPT}\r\n".encode()),
    ],
)
def test_standard_input_is_a_prompt(generate: Run, arguments: tuple[str, ...], data: bytes) -> None:
    wanted = generate("--prompt", PROMPT)
    done = generate(*arguments, data=data)
    assert wanted.returncode == done.returncode == 0, done.stderr
    assert done.stdout == wanted.stdout and len(done.stdout) > 10


def test_only_the_last_line_break_is_left_out(generate: Run) -> None:
    def tokens(data: bytes) -> int:
        return int(json.loads(generate("--json", data=data).stdout)["prompt_tokens"])

    assert tokens(b"a\nb\n") == tokens(b"a\nb") < tokens(b"a\nb\n\n")


def test_standard_input_is_left_alone_where_a_prompt_is_given(generate: Run) -> None:
    assert generate("--prompt", PROMPT, data=b"\xff\xfe").stdout == generate("--prompt", PROMPT).stdout


@pytest.mark.parametrize(
    ("arguments", "data", "said"),
    [
        ((), b"", "standard input is empty"),
        (("--prompt", "-"), b"\n", "standard input is empty"),
        (("--prompt", ""), b"x", "--prompt is empty"),
        ((), "caf\xe9".encode("latin-1"), "standard input is not UTF-8 (byte 3 of 4)"),
        ((), "Once".encode("utf-16"), "standard input is not UTF-8 (byte 0 of 10)"),
        ((), b"a" * 16_000_001, "standard input is longer than 16.0 MB"),
        (("--prompt", "x", "--token-ids", "2"), b"", "--prompt and --token-ids"),
        (("--prompt", "x", "--top-p", 0.5), b"", "--temperature"),
        (("--prompt", "x", "--sample"), b"", "do_sample"),
        (("--prompt", "x", "--threads", 4096), b"", "threads is 4096: expected 1"),
    ],
)  # fmt: skip
def test_what_is_no_prompt_or_does_nothing_is_one_line(
    generate: Run, arguments: tuple[object, ...], data: bytes, said: str
) -> None:
    assert said in refused(generate(*arguments, data=data))


def test_a_terminal_is_not_read(generate: Run) -> None:
    ours, theirs = os.openpty()
    try:
        assert "--prompt -" in refused(generate(stdin=theirs))
    finally:
        os.close(ours)
        os.close(theirs)


def test_sampling_as_the_package_says(generate: Run, package: Path, tmp_path: Path) -> None:
    sampled = tmp_path / "pkg"
    shutil.copytree(package, sampled)
    config = {"do_sample": True, "top_k": 12, "top_p": 0.8, "eos_token_id": [1, 106]}
    change(sampled, json.dumps(config))
    arguments = ("--prompt", PROMPT, "--sample", "--seed", 5, "--json")
    first, again = (generate(*arguments, of=sampled) for _ in range(2))
    assert first.returncode == 0, first.stderr
    told = json.loads(first.stdout)
    assert told["sampling"] == {
        "temperature": 1.0, "top_k": 12, "top_p": 0.8, "repetition_penalty": 1.0, "seed": 5
    }  # fmt: skip
    assert told["text"] == json.loads(again.stdout)["text"]
    assert first.stderr.decode() == (
        "sampling: temperature 1.0, top_k 12, top_p 0.8, repetition_penalty 1.0, seed 5; "
        "from options (seed), generation_config.json and Transformers' defaults\n"
    )
    warmer = json.loads(generate(*arguments, "--temperature", 0.4, "--top-k", 0, of=sampled).stdout)["sampling"]
    assert (warmer["temperature"], warmer["top_k"], warmer["top_p"]) == (0.4, 0, 0.8)
    assert json.loads(generate("--prompt", PROMPT, "--json", of=sampled).stdout)["sampling"]["temperature"] == 0
    change(sampled, json.dumps({**config, "top_p": "most"}))
    assert "generation_config.json: top_p 'most' is not usable" in refused(generate(*arguments, of=sampled))


def change(package: Path, text: str) -> None:
    """Write generation_config.json of a package, and its entry of the manifest."""
    from edgepack.package import hash_file

    file, manifest = package / "generation_config.json", package / "manifest.json"
    file.write_text(text, "utf-8")
    values = json.loads(manifest.read_text("utf-8"))
    entry = next(entry for entry in values["files"] if entry["path"] == file.name)
    entry.update(size_bytes=file.stat().st_size, sha256=hash_file(file))
    manifest.write_text(json.dumps(values), "utf-8")


@pytest.mark.parametrize("threads", [0, -1, available_cores() + 1, 999, 2.0, True])
def test_threads_that_no_core_runs_are_refused_everywhere(package: Path, tmp_path: Path, threads: Any) -> None:
    from edgepack.errors import EdgepackError
    from edgepack.validation.golden import run_golden
    from edgepack.validation.quality import compare_quality

    for call in (
        lambda: edgepack.load(package, threads=threads),
        lambda: edgepack.export("demo", out=tmp_path / "out", threads=threads),
        lambda: edgepack.validate(package, threads=threads),
        lambda: compare_quality(package, reference=package, threads=threads),
        lambda: run_golden(package, file=tmp_path / "none.jsonl", threads=threads),
    ):
        with pytest.raises(EdgepackError, match=rf"^threads is {threads}: expected 1\b.*or none for all of them$"):
            call()
    assert not list(tmp_path.iterdir())


def test_as_many_threads_as_cores_are_taken(package: Path) -> None:
    with edgepack.load(package, threads=available_cores()) as model:
        assert len(list(model.generate([2, 5], max_new_tokens=2, stop_token_ids=()))) == 2
