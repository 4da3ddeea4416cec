"""Chat templates and special tokens from everywhere that Transformers looks: its texts, and the files in a package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import edgepack
from edgepack.checkpoint import hub
from edgepack.errors import CheckpointError, EdgepackError, PackageError
from edgepack.package.folder import open_package
from edgepack.text.templates import ChatTemplates
from edgepack_runtimes import TextCodec
from tests.support import tiny
from tests.support.tokenizer_packages import GEMMA_TEMPLATE, USER, write_package
from tests.text.test_start_token import write

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "größe", "parameters": {"b": [1, None], "a": "<'&\"\u2028>"}}}
]
TALK = [USER, {"role": "assistant", "content": "So?", "thinking": "hm"}, {"role": "user", "content": "東京"}]
# Everything that Transformers may have a name for in these tests; one that it does not have is empty.
NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask", "turn", "image", "sound", "add_bos")
EVERY_NAME = "".join(f"{name}={{{{ {name}_token }}}} " for name in NAMES) + "{{ turn }} {{ messages[0].content }}"
ADDED = {"__type": "AddedToken", "content": "<end_of_turn>", "lstrip": False, "rstrip": False, "normalized": False,
         "single_word": False, "special": True}  # fmt: skip


def compare(folder: Path, messages: Any = TALK, tools: Any = None) -> str:
    """The text that Transformers gives, which is ours too."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    for add_generation_prompt in (False, True):
        expected = theirs.apply_chat_template(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, tokenize=False
        )
        assert TextCodec(folder).render_chat(messages, add_generation_prompt, tools) == expected
    return str(expected)


def checkpoint(folder: Path, template: Any = EVERY_NAME, **config: Any) -> Path:
    config = {"bos_token": None, "eos_token": None, **config}
    write_package(folder, chat_template=template, **config)
    return write(folder, config={"model_type": "gemma3_text"})


# --- special tokens


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "bos=<bos> eos=<eos> unk=<unk> sep= pad=<pad> cls= mask=<mask>"),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, "bos= eos= unk= sep= pad= cls= mask="),
        ({"tokenizer_class": "GemmaTokenizerFast", "eos_token": ADDED}, "eos=<end_of_turn> unk=<unk>"),
        ({"tokenizer_class": "TokenizersBackend", "cls_token": "<eos>", "sep_token": ADDED}, "sep=<end_of_turn>"),
        ({"turn_token": "<start_of_turn>", "image_token": ADDED}, "turn=<start_of_turn> image=<end_of_turn>"),
        ({"add_bos_token": True}, "add_bos="),
        ({"extra_special_tokens": {"turn": "<start_of_turn>", "sound_token": "<unk>"}}, "sound=<unk>"),
        ({"extra_special_tokens": {"bos_token": "<pad>"}, "bos_token": "<unk>"}, "bos=<pad>"),
        ({"extra_special_tokens": ["<start_of_turn>"]}, "turn="),
        ({"model_specific_special_tokens": {"turn": "<start_of_turn>", "turn_token": "<unk>"}}, "turn=<unk>"),
        ({"model_specific_special_tokens": {"turn_token": "<unk>"}, "image_token": "<pad>"}, "turn= image=<pad>"),
    ],
)
def test_tokens_of_the_tokenizer_config(tmp_path: Path, config: dict[str, Any], expected: str) -> None:
    assert expected in compare(checkpoint(tmp_path, **config))


@pytest.mark.parametrize("decoder", [False, True], ids=["", "with added_tokens_decoder"])
def test_tokens_of_the_special_tokens_map(tmp_path: Path, decoder: bool) -> None:
    """It comes first, and does not count where tokenizer_config.json has the added tokens as well."""
    more = {"added_tokens_decoder": {"2": {"content": "<bos>", "special": True}}} if decoder else {}
    checkpoint(tmp_path, bos_token="<pad>", extra_special_tokens={"turn": "<start_of_turn>"}, **more)
    tokens = {"bos_token": {"content": "<bos>", "lstrip": False}, "unk_token": None, "image_token": "<eos>"}
    write(tmp_path, special_tokens_map={**tokens, "extra_special_tokens": {"sound_token": "<unk>"}})
    text = compare(tmp_path)
    assert ("bos=<bos>" in text, "unk= " in text, "sound=<unk>" in text) == (not decoder,) * 3
    assert "<start_of_turn>   Hi" in text


def test_null_in_a_file_is_no_token(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    write(folder, tokenizer_config={"bos_token": None, "chat_template": EVERY_NAME})
    assert "bos= eos=<eos>" in compare(folder)


@pytest.mark.parametrize(
    "config", [{"bos_token": 2}, {"extra_special_tokens": {"turn": ["<eos>"]}}, {"eos_token": {"id": 1}}]
)
def test_a_token_that_is_no_text_is_refused(tmp_path: Path, config: Any) -> None:
    with pytest.raises(PackageError, match=r"config\.json or .* gives .* '\w+' as .*: expected a text; ") as caught:
        ChatTemplates(write(tmp_path, tokenizer_config=config))
    assert "\n" not in str(caught.value)


# --- templates


FILES: dict[str, dict[str, str]] = {
    "default": {"chat_template.jinja": "file {{ tools }}"},
    "default and tools": {"chat_template.jinja": "file", "additional_chat_templates/tool_use.jinja": "T{{ tools }}"},
    "tools and another": {
        "chat_template.jinja": "file",
        "additional_chat_templates/rag.jinja": "R",
        "additional_chat_templates/tool_use.jinja": "{{ tools | map(attribute='type') | join }}",
    },
    "default in the folder": {"chat_template.jinja": "file", "additional_chat_templates/default.jinja": "folder"},
    "nothing but a folder": {"additional_chat_templates/default.jinja": "{{ messages | length }}"},
    "no template": {"additional_chat_templates/tool_use.txt": "x"},
}
CONFIGS: dict[str, Any] = {
    "one": "one {{ tools }}",
    "list": [
        {"name": "default", "template": "list"},
        {"name": "tool_use", "template": "list {{ tools | map(attribute='type') | join }}"},
    ],
    "object": {"default": "object", "tool_use": "object {{ tools | length }}", "x": "{{ 1 / 0 }}"},
}


@pytest.mark.parametrize("tools", [None, TOOLS, []], ids=["", "tools", "no tools"])
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("files", FILES)
def test_templates_come_from_the_same_place(tmp_path: Path, files: str, config: str, tools: Any) -> None:
    checkpoint(tmp_path, CONFIGS[config])
    for name, text in FILES[files].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    compare(tmp_path, tools=tools)
    assert TextCodec(tmp_path).has_chat_template


def test_without_a_default_template_those_there_are_named(tmp_path: Path) -> None:
    """Transformers refuses as well: a file in the folder replaces what the config has."""
    checkpoint(tmp_path, GEMMA_TEMPLATE)
    (tmp_path / "additional_chat_templates").mkdir()
    for name in ("tool_use", "rag"):
        (tmp_path / "additional_chat_templates" / f"{name}.jinja").write_text(name)
    with pytest.raises(EdgepackError, match=r"no chat template \(.*\), only rag, tool_use: pass"):
        TextCodec(tmp_path).render_chat([USER])
    assert TextCodec(tmp_path).render_chat([USER], tools=TOOLS) == "tool_use"


@pytest.mark.parametrize("value", [[{"name": "default"}], ["x"], 5, {"default": None}, [{"name": 1, "template": "x"}]])
def test_a_template_that_is_none_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(PackageError, match=r"tokenizer_config\.json: key 'chat_template' is .*: expected a template"):
        ChatTemplates(write(tmp_path, tokenizer_config={"chat_template": value})).render([USER])


def test_what_transformers_saves_is_read(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    checkpoint(tmp_path, CONFIGS["list"], extra_special_tokens={"turn_token": "<start_of_turn>"}, bos_token="<bos>")
    saved = tmp_path / "saved"
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(saved)
    write(saved, config={"model_type": "gemma3_text"})
    assert (saved / "additional_chat_templates" / "tool_use.jinja").is_file()
    assert compare(saved, tools=TOOLS) == "list function"
    (saved / "chat_template.jinja").write_text(EVERY_NAME)
    assert "turn=<start_of_turn>" in compare(saved)


@pytest.mark.parametrize(
    "call",
    [
        "tojson",
        "tojson(true)",
        "tojson(false, 2)",
        "tojson(true, none, [',', ':'], true)",
        "tojson(indent=1, sort_keys=true)",
        "tojson(separators=(' , ', ' : '), ensure_ascii=true)",
        "tojson(false, '--')",
    ],
)
def test_tojson_takes_what_it_takes_in_transformers(tmp_path: Path, call: str) -> None:
    text = compare(checkpoint(tmp_path, f"{{{{ tools | {call} }}}}"), tools=TOOLS)
    assert "<'&" in text


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.reasoning }};{% endfor %}",
        "{% set n = namespace(self=1, b=2) %}{% set n.c = n.b %}{{ n.c }}{{ dict(a=1) }}{{ dict.fromkeys('ab', 2) }}",
        "{{ documents is none }}{{ tools is none }}{{ undefined_thing }}{{ add_generation_prompt }}",
    ],
)
def test_values_that_templates_see(tmp_path: Path, template: str) -> None:
    compare(checkpoint(tmp_path, template), [*TALK, {"role": "assistant", "content": "", "reasoning": "r"}])


@pytest.mark.parametrize("template", ["{% set n = namespace() %}{% set n._a = 1 %}", "{{ namespace(_a=1) }}"])
def test_names_that_templates_may_not_store(tmp_path: Path, template: str) -> None:
    with pytest.raises(EdgepackError, match="takes no name that begins with an underscore, got '_a'"):
        TextCodec(checkpoint(tmp_path, template)).render_chat([USER])


# --- the files of a package


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speaking")
    tiny.save("gemma3", folder)
    write_package(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ bos_token }}{{ tools | tojson }}")
    (folder / "additional_chat_templates" / "notes.txt").write_text("not a template")
    write(folder, special_tokens_map={"eos_token": "<end_of_turn>"})
    return folder


def test_a_package_has_the_files_and_lists_them(speaking: Path, tmp_path: Path) -> None:
    package = edgepack.export(speaking, out=tmp_path / "package", context=64, threads=1).package
    listed = {entry.path for entry in package.manifest.files}
    assert {"additional_chat_templates/tool_use.jinja", "special_tokens_map.json"} <= listed
    assert not (package.path / "additional_chat_templates" / "notes.txt").exists()
    assert TextCodec(package.path).render_chat([USER], tools=TOOLS).startswith('<bos>[{"type"')
    for name in ("additional_chat_templates/rag.jinja", "special_tokens_map.json"):
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(package.path, copy)
        (copy / name).write_text("{}")
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["files"] = [entry for entry in manifest["files"] if entry["path"] != name]
        write(copy, manifest=manifest)
        with pytest.raises(PackageError, match=f"{name} is not in the manifest, but a runtime would read it"):
            open_package(copy)
    (package.path / "additional_chat_templates" / "tool_use.jinja").write_text("another")
    with pytest.raises(PackageError, match=r"tool_use\.jinja"):
        open_package(package.path)


def test_a_folder_of_templates_that_leads_out_is_refused(speaking: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(speaking, folder)
    (folder / "additional_chat_templates").rename(tmp_path / "elsewhere")
    (folder / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"a link to .*outside the checkpoint folder"):
        edgepack.export(folder, out=tmp_path / "out", context=64)


def test_the_templates_are_downloaded_and_other_folders_are_not() -> None:
    from huggingface_hub.utils._paths import filter_repo_objects

    folder = "additional_chat_templates"
    wanted = [f"{folder}/a.jinja", f"{folder}/tool_use.jinja", "special_tokens_map.json"]
    others = [f"{folder}/{name}" for name in ("a.json", "a.safetensors", "b/a.jinja")]
    others += [f"{name}/a.jinja" for name in (f"x/{folder}", f"{folder}2", folder[:-1], "a", "zz", folder.upper())]
    got = filter_repo_objects([*wanted, *others], allow_patterns=list(hub.WANTED), ignore_patterns=list(hub.IGNORED))
    assert list(got) == wanted
