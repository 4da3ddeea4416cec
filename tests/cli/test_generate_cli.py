"""`edgepack generate`: prompts from options and standard input, sampling of the package, and what is refused."""

from __future__ import annotations

import io
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
from edgepack.cli.generate import command
from edgepack.cli.prompt import read_prompt
from edgepack.errors import EdgepackError
from edgepack.system.threads import available_cores

Run = Callable[..., subprocess.CompletedProcess[bytes]]
PROMPT = "Once upon a time, there was"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return edgepack.export("demo", out=tmp_path_factory.mktemp("generate") / "pkg", context=128).package.path


@pytest.fixture(scope="module")
def generate(package: Path) -> Run:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def run(*arguments: object, data: bytes = b"") -> Any:
        line = [sys.executable, "-m", "edgepack", "generate", str(package), "--max-new-tokens", "8"]
        return subprocess.run(
            [*line, *map(str, arguments)], input=data, capture_output=True, env=environment, check=False, timeout=120
        )

    return run


def refused(done: subprocess.CompletedProcess[bytes]) -> str:
    assert (done.returncode, done.stdout) == (2, b""), done.stderr
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("error: ")
    return line


def test_a_pipe_is_a_prompt(generate: Run) -> None:
    wanted, done = generate("--prompt", PROMPT), generate(data=f"\ufeff{PROMPT}\r\n".encode())
    assert wanted.returncode == done.returncode == 0, done.stderr
    assert done.stdout == wanted.stdout and len(done.stdout) > 10


@pytest.mark.parametrize("prompt", [None, "-"])
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a fox", "a fox"),
        (b"a fox\n", "a fox"),
        (b"a\nfox\n\n", "a\nfox\n"),
        ("\ufeffgrün\r\n".encode(), "grün"),
    ],
)
def test_only_the_last_line_break_is_left_out(
    prompt: str | None, data: bytes, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prompt_from(data, prompt, monkeypatch) == text


def prompt_from(data: bytes, prompt: str | None, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return read_prompt(prompt)


def test_standard_input_is_left_alone_where_a_prompt_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert prompt_from(b"\xff\xfe", PROMPT, monkeypatch) == PROMPT
    assert sys.stdin.buffer.read() == b"\xff\xfe"


@pytest.mark.parametrize(
    ("prompt", "data", "said"),
    [
        (None, b"", "standard input is empty"),
        ("-", b"\n", "standard input is empty"),
        ("", b"x", "--prompt is empty"),
        (None, "caf\xe9".encode("latin-1"), "standard input is not UTF-8 (byte 3 of 4)"),
        (None, "Once".encode("utf-16"), "standard input is not UTF-8 (byte 0 of 10)"),
        (None, b"a" * 16_000_001, "standard input is longer than 16.0 MB"),
    ],
)
def test_what_is_no_prompt_is_refused(
    prompt: str | None, data: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EdgepackError) as caught:
        prompt_from(data, prompt, monkeypatch)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"token_ids": "2"}, "--prompt and --token-ids"),
        ({"top_p": 0.5}, "--temperature"),
        ({"sample": True}, "do_sample"),
        ({"threads": 4096}, "threads is 4096: expected 1"),
    ],
)
def test_what_does_nothing_is_refused(package: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(EdgepackError) as caught:
        command(package, prompt="x", **options)
    assert said in str(caught.value)


def test_a_refusal_is_one_line(generate: Run) -> None:
    assert "standard input is not UTF-8 (byte 3 of 4)" in refused(generate(data="caf\xe9".encode("latin-1")))


def test_a_terminal_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    try:
        with os.fdopen(theirs) as terminal:
            monkeypatch.setattr(sys, "stdin", terminal)
            with pytest.raises(EdgepackError, match="--prompt -"):
                read_prompt(None)
    finally:
        os.close(ours)


def test_sampling_as_the_package_says(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampled = tmp_path / "pkg"
    shutil.copytree(package, sampled)
    config = {"do_sample": True, "top_k": 12, "top_p": 0.8, "eos_token_id": [1, 106]}
    change(sampled, json.dumps(config))

    def answer(**options: Any) -> tuple[dict[str, Any], str]:
        command(sampled, prompt=PROMPT, max_new_tokens=8, json_output=True, **options)
        said = capsys.readouterr()
        return json.loads(said.out), said.err

    (told, errors), (again, _) = (answer(sample=True, seed=5) for _ in range(2))
    assert told["sampling"] == {
        "temperature": 1.0, "top_k": 12, "top_p": 0.8, "repetition_penalty": 1.0, "seed": 5
    }  # fmt: skip
    assert told["text"] == again["text"]
    assert errors == (
        "sampling: temperature 1.0, top_k 12, top_p 0.8, repetition_penalty 1.0, seed 5; "
        "from options (seed), generation_config.json and Transformers' defaults\n"
    )
    warmer = answer(sample=True, seed=5, temperature=0.4, top_k=0)[0]["sampling"]
    assert (warmer["temperature"], warmer["top_k"], warmer["top_p"]) == (0.4, 0, 0.8)
    assert answer()[0]["sampling"]["temperature"] == 0
    change(sampled, json.dumps({**config, "top_p": "most"}))
    with pytest.raises(EdgepackError, match=r"generation_config\.json: top_p 'most' is not usable"):
        answer(sample=True)


def change(package: Path, text: str) -> None:
    """Write generation_config.json of a package, and its entry of the manifest."""
    from edgepack.package.folder import hash_file

    file, manifest = package / "generation_config.json", package / "manifest.json"
    file.write_text(text, "utf-8")
    values = json.loads(manifest.read_text("utf-8"))
    entry = next(entry for entry in values["files"] if entry["path"] == file.name)
    entry.update(size_bytes=file.stat().st_size, sha256=hash_file(file))
    manifest.write_text(json.dumps(values), "utf-8")


@pytest.mark.parametrize("threads", [0, -1, available_cores() + 1, 999, 2.0, True])
def test_threads_that_no_core_runs_are_refused_everywhere(package: Path, tmp_path: Path, threads: Any) -> None:
    for call in (
        lambda: edgepack.load(package, threads=threads),
        lambda: edgepack.export("demo", out=tmp_path / "out", threads=threads),
        lambda: edgepack.validate(package, threads=threads),
    ):
        with pytest.raises(EdgepackError, match=rf"^threads is {threads}: expected 1\b.*or none for all of them$"):
            call()
    assert not list(tmp_path.iterdir())


def test_as_many_threads_as_cores_are_taken(package: Path) -> None:
    with edgepack.load(package, threads=available_cores()) as model:
        assert len(list(model.generate([2, 5], max_new_tokens=2, stop_token_ids=()))) == 2
