"""Every command that README and docs tell people to type is run against small stand-ins, or listed with a reason."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import edgepack
from edgepack.cli.main import app
from edgepack.validation.processes.limit import memory_limit
from tests.support.documented import (
    Documented,
    commands,
    differences,
    edgepack_words,
    pages,
    python_blocks,
    shape,
    typed,
)
from tests.support.paths import DEMO
from tests.support.scratch import ROOT, clean_environment

# What cannot run here, by a pattern for the whole command. Each has to stand in the docs.
NOT_RUN = {
    r"(\S*/)?pip (install|wheel) .*": "installs; the extras are checked below, a wheel by tests/cli/test_optimum.py",
    r"(\S*/)?python benchmarks/.*": "takes minutes or a checkpoint; tests/fuzz/test_fuzz.py runs a part of the fuzzing",
    r"python -m tests\.support\.sampling_vectors": "writes a file; tests/runtimes/test_sampling_vectors.py compares it",
    r"make .*": "builds .venv from the network; that the target exists is checked below",
    r"(\S*/)?(python -m )?(pytest|pre-commit) .*": "this test suite, and a hook in the user's clone",
    r"python3 -m venv .*": "makes an environment in the user's home",
    r"adb .*|scp .*": "needs a device",
    r"split .*": "run by tests/project/test_docs_snippets.py, with a smaller part",
    r"cat report\.md .*": "copies a file into a page of the build server",
    r"optimum-cli .*": "run by tests/cli/test_optimum.py, where the wheel is installed; the options are checked below",
    r"edgepack synth --preset .*": "writes 11 GB; run by tests/checkpoint/test_synth.py with small configs",
    r"edgepack calibrate demo --.*": "writes beside the user; run by tests/calibration/sensitivity/test_bits_cli.py",
    r"edgepack (plan|export) demo --bits .*": "needs what that measured; run by the same test",
    r"edgepack validate --report=\.\.\./.*": "the action's script writes that; run by tests/project/test_action.py",
}
# Folders that documented commands name: a checkpoint with changes of its config, or a package for a backend.
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "google/gemma-3n-E2B-it": {},
    "my-gemma-3n": {},
    "CHECKPOINT": {},
    "ckpt": {},
    "edgepack/assets/demo": {},
    "classifier": {"architectures": ["Gemma3nForSequenceClassification"]},
    "mine": {"mixture_of_depths": 0.5},
}
PACKAGES = {
    "demo-int4": "onnx",
    "PACKAGE": "onnx",
    "E2B": "onnx",
    "edgepack-package": "litert",
    "my-package": "litert",
    "chats-only": "no start",
    "fp32-package": "fp32",
}
# Backend, recipe, context, and whether the tokenizer puts a start token.
MADE = {
    "onnx": ("onnx", "int4", 256, True),
    "litert": ("litert", "int4", 256, True),
    "no start": ("litert", "int4", 256, False),
    "fp32": ("onnx", "fp32", 1024, True),
}


def first_json(page: str) -> str:
    """The first block of JSON of a page."""
    return str(re.findall(r"```json\n(.*?)```", (ROOT / f"docs/{page}.md").read_text("utf-8"), re.DOTALL)[0])


TEXTS = {
    "edgepack.toml": """[export]
checkpoint = "CHECKPOINT"
out = "edgepack-package"
context = 256
[validate]
repeat = 1
new_tokens = 4
prompt_tokens = [16]
threads = 1
""",
    "FILE": "Once upon a time, there was a little boy called Hugo.\n",
    "my-recipe.json": first_json("quantization"),
    "calibrated.json": first_json("calibration"),
    "prompts.jsonl": '{"prompt": "Once upon a time, there was", "max_new_tokens": 4, "must_match": "."}\n',
}
# The Python interface reads no edgepack.toml: its defaults measure for a minute.
QUICK = """import functools, edgepack
edgepack.validate = functools.partial(edgepack.validate, repeat=1, new_tokens=4, prompt_tokens=[16], threads=1)
"""
# The demo has a vocabulary of 512.
SMALL_VOCABULARY = {"818": "81", "5279": "52"}
FOUND = commands()


def reason(command: Documented) -> str | None:
    return next((why for pattern, why in NOT_RUN.items() if re.fullmatch(pattern, command.text)), None)


def to_run() -> list[Documented]:
    """What is neither listed nor a mere name; commands that differ in the package and in sizes only, once."""
    chosen: dict[str, Documented] = {}
    for command in FOUND:
        if reason(command) is None and not command.is_name:
            same = shape(" ".join(PACKAGES.get(word, word) for word in typed(command.text).split()))
            if same not in chosen or chosen[same].output is None:
                chosen[same] = command
    return list(chosen.values())


RUN = to_run()


def label(command: Documented) -> str:
    return f"{Path(command.page).stem}: {command.text[:60]}"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo, and packages of it where they are named."""
    folder = tmp_path_factory.mktemp("documented")
    shutil.copytree(DEMO, folder / "demo")
    plain = Path(shutil.copytree(DEMO, folder / "plain"))
    tokenizer = json.loads((plain / "tokenizer.json").read_text("utf-8"))
    (plain / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}), "utf-8")
    named = {PACKAGES[word] for command in RUN for word in command.text.split() if word in PACKAGES}
    for name in {"onnx", "litert"} | named:
        backend, recipe, context, starts = MADE[name]
        source = folder / ("demo" if starts else "plain")
        edgepack.export(source, to=backend, out=folder / name, recipe=recipe, context=context, threads=1)
    return folder


@pytest.fixture
def place(tmp_path: Path, made: Path) -> Path:
    """A folder with everything that documented commands name."""
    for name, changes in CHECKPOINTS.items():
        shutil.copytree(made / "demo", tmp_path / name, copy_function=os.link)
        config = json.loads((DEMO / "config.json").read_text("utf-8"))
        (tmp_path / name / "config.json").unlink()
        (tmp_path / name / "config.json").write_text(json.dumps(config | changes), "utf-8")
    for name, kind in PACKAGES.items():
        if (made / kind).is_dir():
            shutil.copytree(made / kind, tmp_path / name)
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text, "utf-8")
    (tmp_path / "docs").mkdir()
    return tmp_path


# Three packages that were loaded, two of them equal, in a cache of their own.
LOADED = """
export EDGEPACK_CACHE=$PWD/cache-of-its-own
cp -r {onnx} d1; cp -r {onnx} d2; cp -r {litert} d3
for package in d1 d2 d3; do edgepack generate $package --token-ids 2,7 --max-new-tokens 1 >/dev/null 2>&1; done
"""
OWN_CACHE = "export EDGEPACK_CACHE=$PWD/cache-of-its-own\n"
BEFORE = {("cache", "list"): OWN_CACHE, ("cache", "prune"): f"{OWN_CACHE}rm -r d1 d2\n"}


@pytest.fixture(scope="module")
def loaded(made: Path) -> Path:
    """What `LOADED` leaves. Tests copy it to the folder `loaded` beside it: entries of the cache know their owners."""
    place = made / "loaded"
    place.mkdir()
    done = run(LOADED.format(onnx=made / "onnx", litert=made / "litert"), place)
    assert done.returncode == 0, done.stderr
    return Path(shutil.copytree(place, made / "as-loaded"))


def run(script: str, place: Path) -> subprocess.CompletedProcess[str]:
    """`script` in bash, with our commands for edgepack and python; no network, and a home of its own."""
    python = f'python() {{ "{sys.executable}" "$@"; }}\nedgepack() {{ python -m edgepack.cli.main "$@"; }}\n'
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "converters", "runtimes"))
    own = {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "HOME": str(place), "COLUMNS": "200"}
    return subprocess.run(
        ["bash", "-c", python + script],
        cwd=place,
        env=clean_environment() | own,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        stdin=subprocess.DEVNULL,
    )


def expected_code(told: tuple[str, ...]) -> int:
    """What the documented output says: an error, an answer that is no, or all is well."""
    first = told[0] if told else ""
    return 2 if first.startswith("error:") else int(first.startswith(("does not fit", "killed", "peak RSS", "mean KL")))


@pytest.mark.parametrize("command", RUN, ids=label)
def test_a_documented_command_does_what_its_page_shows(
    command: Documented, place: Path, request: pytest.FixtureRequest
) -> None:
    words = edgepack_words(command.text) or []
    if command.output and command.output[0].startswith("killed"):
        with memory_limit(1 << 30) as limit:
            if not limit.facts.enforced:
                pytest.skip("no hard limit of memory can be set here")
    if "export" in words[:1] and "--overwrite" not in words:  # it is to be written, and not there already
        shutil.rmtree(place / (words[words.index("--out") + 1] if "--out" in words else "edgepack-package"), True)
    before = BEFORE.get((*words[:2],), "")
    if before:
        kept = request.getfixturevalue("loaded")
        place = kept.with_name("loaded")
        shutil.rmtree(place)
        shutil.copytree(kept, place)
    done = run(before + typed(command.text).replace(".venv/bin/edgepack", "edgepack"), place)
    told = command.output or ()
    assert done.returncode == expected_code(told), done.stdout + done.stderr
    if words[:1] == ["generate"] and done.returncode == 0:
        assert done.stdout.strip()  # which words, the kernels of the processor decide
    elif command.output is not None:
        wrong = differences(told, done.stdout, done.stderr)
        assert not wrong, "\n".join([*wrong, done.stdout, done.stderr])


@pytest.mark.parametrize(("page", "source"), python_blocks())
def test_a_documented_block_of_python_runs(page: str, source: str, place: Path) -> None:
    for number, small in SMALL_VOCABULARY.items():
        source = re.sub(rf"\b{number}\b", small, source)
    (place / "block.py").write_text(QUICK + source, "utf-8")
    done = run("python block.py", place)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_listed_as_not_run_still_stands_in_the_docs() -> None:
    texts = [command.text for command in FOUND]
    assert [pattern for pattern in NOT_RUN if not any(re.fullmatch(pattern, text) for text in texts)] == []
    assert len(RUN) > 15  # a page that is written in another way must not empty this test


def options_of(*words: str) -> set[str]:
    """Options of the verb that `words` begin with; some verbs have verbs below them."""
    command: Any = get_command(app)
    for word in words:
        if not hasattr(command, "commands"):
            break
        assert word in command.commands, words
        command = command.commands[word]
    return {name for option in command.params for name in option.opts}


@pytest.mark.parametrize("command", [c for c in FOUND if edgepack_words(c.text) is not None], ids=label)
def test_documented_verbs_and_options_exist(command: Documented) -> None:
    words = edgepack_words(command.text) or ["--help"]
    known = {"--help", "-h"} | {name for option in get_command(app).params for name in option.opts}
    if not words[0].startswith("-"):
        known |= options_of(*words)
    used = {word.partition("=")[0] for word in words if word.startswith("--") and word != "--"}
    assert used <= known


def test_documented_options_of_optimum_are_those_of_export() -> None:
    for command in FOUND:
        if command.text.startswith("optimum-cli export edge"):
            used = set(re.findall(r"(?<= )--[a-z-]+", command.text))
            assert used <= options_of("export"), command.text


def test_documented_targets_of_make_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for command in FOUND:
        if command.text.startswith("make "):
            assert next(word for word in command.text.split()[1:] if "=" not in word) in targets, command.text


def test_documented_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for page in pages():
        text = page.read_text("utf-8")
        for names in re.findall(r"(?:edgepack|whl|\.|\*)\[([a-z][a-z,-]*)\]", text):
            assert set(names.split(",")) <= project["optional-dependencies"].keys(), page


def test_differences_of_outputs_are_told() -> None:
    output = "fits 2GB: 1.74 GB of 2.00 GB, 263 MB spare\ntable\nlast 3 of 4\n"
    assert differences(("fits 3GB: 112 MB of 3.00 GB, 1.89 GB spare", "..."), output, "") == []
    assert differences(("fits 2GB: 112 MB", "...", "last 5 of 6"), output, "note: x\n") == []
    assert differences(("fits 2GB: 112 MB", "note: x", "table", "last"), output, "note: xyz\n") == []
    assert differences(("fits 2GB: 112 MB of 2.00 GB",), output, "") == ["there and not documented: table"]
    assert differences(("does not fit", "..."), output, "") == ["documented and not there: does not fit"]
    assert differences(("table", "..."), output, "") == ["documented and not there: table"]
    assert shape("peak RSS 1.7 GB is within the target 2GB (2,000,000,000 bytes), 0.26 GB to spare") == shape(
        "ran within a hard limit of 300MB (300,000,000 bytes), peak RSS 108 MB, 192 MB to spare"
    )
