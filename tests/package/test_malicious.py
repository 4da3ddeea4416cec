"""A stranger's package is refused before anything is loaded: its manifest, its files, its texts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.errors import EdgepackError, PackageError
from edgepack.package.folder import MANIFEST, FileEntry, Package, hash_file, hash_files, open_package
from edgepack.text.codec import TextCodec, check_text_files, read_tokenizer
from edgepack.text.files import read_json
from edgepack.text.templates import ChatTemplates, compile_template
from edgepack.text.tokenizer_file import read_tokenizer_file
from tests.support.malicious import copied, edit, forbid_native, refused, seal
from tests.support.paths import ROOT
from tests.support.tiny import TinyPackages
from tests.support.tokenizer_packages import gemma_like, write_package

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links and pipes")


@pytest.fixture
def folder(tiny_packages: TinyPackages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of this test's own, and nothing native to load it with."""
    copy = copied(tiny_packages("shared").package.path, tmp_path / "package")
    forbid_native(monkeypatch)
    return copy


# -- paths and files


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "a/../../b", "a\\b", "a//b", "./a", "a/", "a\nb", "a\x00b", "\x1b[2J", ".."]
)
def test_paths_that_are_not_plain(path: str) -> None:
    with pytest.raises(ValueError, match="is not a path inside the package"):
        FileEntry(path=path, size_bytes=1, sha256="0" * 64)


def test_a_link_in_between_that_leads_out(folder: Path) -> None:
    outside = folder.parent / "outside"
    (folder / "onnx").rename(outside)
    (folder / "onnx").symlink_to(outside)
    refused(folder, "onnx/", "leads outside the package")


def test_a_link_that_leads_in_circles(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    refused(folder, "config.json", "cannot be read")


@pytest.mark.parametrize("listed", [True, False])
def test_a_pipe_in_place_of_a_file(folder: Path, listed: bool) -> None:
    name = "generation_config.json" if listed else "tokenizer.json"  # to open one would wait for ever
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refused(folder, name, "is a pipe" if listed else "is not in the manifest")


@pytest.mark.parametrize("kind", ["pipe", "link", "folder", "huge"])
def test_a_manifest_that_is_no_plain_file(folder: Path, kind: str) -> None:
    manifest = folder / MANIFEST
    kept = manifest.rename(folder.parent / "kept.json")
    {
        "pipe": lambda: os.mkfifo(manifest),
        "link": lambda: manifest.symlink_to(kept),
        "folder": lambda: manifest.mkdir(),
        "huge": lambda: manifest.write_bytes(b" " * 16_000_001),
    }[kind]()
    refused(folder, MANIFEST, "expected at most" if kind == "huge" else f"is a {kind}")


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "chat_template.json",
        "config.json",
        "generation_config.json",
    ],
)
def test_a_file_that_a_runtime_would_read_and_nobody_listed(folder: Path, name: str) -> None:
    (folder / name).write_text("{}")
    edit(folder, lambda data: data.update(files=[e for e in data["files"] if e["path"] != name]))
    refused(folder, name, "is not in the manifest")


def test_a_file_that_no_runtime_reads_does_no_harm(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    open_package(folder, verify=True)


def test_a_small_file_that_was_changed_is_noticed_without_verifying(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("1", "2"))
    refused(folder, "config.json was changed", "sha256")


def test_a_file_that_is_listed_twice(folder: Path) -> None:
    edit(folder, lambda data: data["files"].append(data["files"][0]))
    refused(folder, "is listed 2 times")


def test_a_graph_that_is_no_listed_file(folder: Path) -> None:
    (folder / "onnx" / "other.onnx").write_bytes(b"x")
    edit(folder, lambda data: data["graphs"].update({"decoder\n": "onnx/other.onnx"}))
    refused(folder, "decoder\\x0a", "onnx/other.onnx, which is no file of the package")


@pytest.mark.parametrize("role", ["decoder", "embed"])
@pytest.mark.parametrize("runtime", ["onnx", "litert", "litert-lm"])
def test_a_graph_that_is_missing(tiny_packages: TinyPackages, tmp_path: Path, runtime: str, role: str) -> None:
    backend = "onnx" if runtime == "onnx" else "litert"
    folder = copied(tiny_packages("shared", to=backend).package.path, tmp_path / "package")
    edit(folder, lambda data: data["graphs"].pop(role))
    refused(folder, str(folder), runtime=runtime)


@pytest.mark.parametrize("text", [b"[" * 10**6, b'{"plan":' * 10**5, b'{"a\\u001b[2Jb": 1}'])
def test_a_manifest_of_nested_or_unprintable_json(folder: Path, text: bytes) -> None:
    (folder / MANIFEST).write_bytes(text)
    refused(folder, MANIFEST)


def test_files_are_hashed_in_parallel_to_the_same_result(tmp_path: Path) -> None:
    paths = [tmp_path / str(i) for i in range(5)]
    for i, path in enumerate(paths):
        path.write_bytes(np.random.default_rng(i).bytes(100_000 * i))
    assert hash_files(paths, 3) == {path: hash_file(path) for path in paths}


# -- numbers


def of_spec(**numbers: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["plan"]["spec"].update(numbers)


def of_plan(**numbers: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["plan"].update(numbers)


def of_attention(kind: str, **numbers: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["plan"]["spec"]["attention"][kind].update(numbers)


def grown(data: dict[str, Any]) -> None:
    """A vocabulary that spec and tensors agree on, and the files do not have."""
    data["plan"]["spec"]["vocab_size"] = 10**7
    for tensor in data["plan"]["tensors"]:
        if tensor["name"] == "embed_tokens.weight":
            tensor["shape"][0] = 10**7


ABSURD: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "context": (of_plan(context_tokens=10**12), "1000000000000"),
    "both contexts": (
        lambda data: (of_plan(context_tokens=10**12)(data), of_spec(max_context_tokens=10**12)(data))[0],
        "max_context_tokens is 1000000000000",
    ),
    "a number that fills the screen": (
        of_attention("full", head_dim=10**4000),
        "attention.full.head_dim is a number of 13288 bits",
    ),
    "vocabulary": (of_spec(vocab_size=10**9), "vocab_size is 1000000000"),
    "vocabulary and table": (grown, "bytes, all files together have"),
    "no heads": (of_attention("sliding", num_kv_heads=0), "attention.sliding.num_kv_heads is 0"),
    "heads": (of_attention("full", num_heads=10**8), "attention.full.num_heads is 100000000"),
    "head size": (of_attention("full", head_dim=32), "layers.2.self_attn.q_proj.weight as (64, 64): plan.spec expects"),
    "window": (of_attention("sliding", window=-1), "attention.sliding.window is -1"),
    "window of a full layer": (of_attention("full", window=10**8), "attention.full.window is 100000000"),
    "a scale without end": (of_attention("full", scale=1e999), "plan.spec.attention.full.scale"),
    "frequencies of nothing": (of_attention("full", rope={"theta": 0}), "plan.spec.attention.full.rope.theta"),
    "no scaling": (of_attention("full", rope={"theta": 1, "linear_factor": -1}), "full.rope.linear_factor"),
    "a family of nobody": (
        of_spec(family="gemma9\n"),
        "family is 'gemma9\\n': expected one of gemma3, gemma3n",
    ),
    "no attention": (of_spec(attention={}), "attention is given for [], the layers are ['full', 'sliding']"),
    "layers": (
        lambda data: data["plan"]["spec"].update(layers=data["plan"]["spec"]["layers"] * 5000),
        "layers (their number) is 40000",
    ),
    "no layers": (of_spec(layers=[], attention={}), "layers (their number) is 0"),
    "owner ahead": (lambda data: data["plan"]["spec"]["layers"][0].update(kv_owner=3), "layers.0.kv_owner is 3"),
    "owner of another kind": (lambda data: data["plan"]["spec"]["layers"][5].update(kv_owner=4), "layers.5.kv_owner"),
    "owner without keys": (lambda data: data["plan"]["spec"]["layers"][7].update(kv_owner=6), "layers.7.kv_owner"),
    "ffn": (lambda data: data["plan"]["spec"]["layers"][0].update(ffn_width=10**8), "layers.0.ffn_width"),
    "streams": (lambda data: data["plan"]["spec"]["altup"].update(num_inputs=10**6), "altup.num_inputs"),
    "table width": (lambda data: data["plan"]["spec"]["ple"].update(dim=10**8), "ple.dim"),
    "prefill": (of_plan(prefill_tokens=[10**9]), "prefill of 1000000000 tokens"),
    "runtime": (of_plan(runtime="litert-lm"), ": expected onnx, or --to litert"),
    "prefills": (of_plan(prefill_tokens=[1] * 1000), "1000 prefill lengths"),
    "tensors": (lambda data: data["plan"].update(tensors=data["plan"]["tensors"] * 3), "tensors: expected"),
}


@pytest.mark.parametrize(("change", "needle"), ABSURD.values(), ids=ABSURD)
def test_absurd_numbers(folder: Path, change: Callable[[dict[str, Any]], None], needle: str) -> None:
    edit(folder, change)
    refused(folder, MANIFEST if needle[0].isalpha() and "prefill of" not in needle else "", needle)


# -- texts


TEMPLATES = {
    "loops": ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "more than 100000 steps"),
    "macros": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "more than 100000 steps",
    ),
    "doubling": (
        "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "a value of size",
    ),
    "doubling by sum": (
        "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "a value of size",
    ),
    "product": ("{{ 'a' * 10 ** 10 }}", "a value of size 10000000000"),
    "list": ("{{ [1] * 10 ** 10 }}", "a value of size"),
    "power": ("{{ 9 ** 999999999 }}", "a value of size"),
    "insides": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "change": ("{{ messages.append(1) }}", "unsafe"),
}


@pytest.mark.parametrize(("source", "needle"), TEMPLATES.values(), ids=TEMPLATES)
def test_templates_that_would_not_end_or_look_inside(tmp_path: Path, source: str, needle: str) -> None:
    (tmp_path / "chat_template.jinja").write_text(source)
    templates = ChatTemplates(tmp_path)
    for _ in range(2):  # counted anew each time
        with pytest.raises(EdgepackError, match="the chat template refused the messages: ") as caught:
            templates.render([{"role": "user", "content": "Hi"}])
        assert needle in str(caught.value)


def test_a_template_that_nests_too_deeply(tmp_path: Path) -> None:
    with pytest.raises(EdgepackError, match="not valid Jinja"):
        compile_template(tmp_path, "{{ " + "(" * 10**5)


def test_honest_templates_are_not_changed_by_counting(tmp_path: Path) -> None:
    source = "{% for m in messages if m %}{{ loop.index ~ ':' ~ m }}{{ ',' if not loop.last }}{% else %}no{% endfor %}"
    render = compile_template(tmp_path, source)
    assert render(messages=[1, 0, 2]) == "1:1,2:2"
    assert render(messages=[]) == "no"


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, "9" * 10**5])
def test_nested_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(PackageError, match="not valid JSON"):
        read_json(tmp_path / "config.json")


READERS: list[tuple[str, Callable[[Path], object]]] = [
    ("config.json", lambda folder: read_json(folder / "config.json")),
    ("tokenizer.json", TextCodec),
    ("tokenizer.json", read_tokenizer),
    ("tokenizer.json", check_text_files),
    ("tokenizer.json", lambda folder: read_tokenizer_file(folder / "tokenizer.json")),
    ("manifest.json", open_package),
]


@pytest.mark.parametrize(("name", "read"), READERS)
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pipe", "is a pipe: expected a file; "),
        ("folder", "is a folder: expected a file; "),
        ("huge", r"has 10,000,000,001 bytes: expected at most \d+,000,000; "),
    ],
)
def test_texts_that_never_end(tmp_path: Path, name: str, read: Callable[[Path], object], kind: str, said: str) -> None:
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"")
        os.truncate(path, 10**10 + 1)
    with pytest.raises(PackageError, match=f"{path} {said}"):
        read(tmp_path)


def test_a_panic_of_the_tokenizer_is_one_line(tmp_path: Path) -> None:
    write_package(tmp_path)
    charsmap = '{"type": "Precompiled", "precompiled_charsmap": "AAAA"}'
    text = (tmp_path / "tokenizer.json").read_text()
    begin = text.index('"normalizer"')
    end = text.index('"pre_tokenizer"')
    (tmp_path / "tokenizer.json").write_text(f'{text[:begin]}"normalizer": {charsmap}, {text[end:]}')
    with pytest.raises(PackageError, match="the tokenizer cannot be used"):
        TextCodec(tmp_path)


def test_a_pattern_that_takes_for_ever(tmp_path: Path) -> None:
    from tokenizers import Regex, pre_tokenizers

    tokenizer = gemma_like()
    tokenizer.normalizer = None  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    write_package(tmp_path, tokenizer)
    with pytest.raises(PackageError, match=r"the tokenizer cannot be used: .*retry-limit"):
        TextCodec(tmp_path).encode("a" * 40 + "b")


# -- the command line


@pytest.mark.parametrize("verb", [["validate"], ["generate", "--prompt", "Hi"]], ids=["validate", "generate"])
def test_the_command_line_says_one_line_and_exits_with_2(
    tiny_packages: TinyPackages, tmp_path: Path, verb: list[str]
) -> None:
    package: Package = tiny_packages("shared").package
    folder = copied(package.path, tmp_path / "package")
    graph = folder / package.manifest.graphs["embed"]
    graph.write_bytes(graph.read_bytes().replace(b"embed_tokens.onnx_data", b"../../../etc/ssl_certs"))
    seal(folder)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "converters", ROOT / "runtimes"))),
    }
    command = [sys.executable, "-m", "edgepack.cli.main", verb[0], str(folder), *verb[1:]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2, done.stderr
    said = " ".join(done.stderr.split())
    assert "../../../etc/ssl_certs" in said.replace(" ", "") and "Traceback" not in said
