"""Chat templates at export for LiteRT: rendered by the engine as Transformers renders them, or refused by name."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from litert_lm_builder.runtime.proto import llm_metadata_pb2

import edgepack
from edgepack.checkpoint.folder import open_checkpoint
from edgepack.errors import EdgepackError, UnsupportedError
from edgepack.model.families import read_spec
from edgepack.model.spec import ModelSpec
from edgepack.text.codec import read_chat_template
from edgepack.text.start_token import read_start_token
from edgepack.text.templates import ChatTemplates
from edgepack_converters.litert.metadata import TextFacts, llm_metadata, uses_tools
from edgepack_converters.litert.template import check as template
from edgepack_converters.litert.template.check import CHATS, TOOL_CHATS, Conversation, check_template
from edgepack_converters.litert.template.constructs import constructs_of
from tests.support.paths import DEMO
from tests.support.specs import E2B, preset_spec
from tests.support.tokenizer_packages import GEMMA_TEMPLATE, gemma_like, write_package

# As the templates of Gemmas that call functions are made: tools as JSON, calls and results in turns of their own.
TOOL_TEMPLATE = """{{ bos_token }}
{%- macro words(content) -%}
    {%- if content is string -%}
        {{ content | trim }}
    {%- else -%}
        {%- for item in content if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(first=true) -%}
{%- if tools or messages[0].role == 'system' -%}
    {{ '<start_of_turn>developer\n' }}
    {%- if messages[0].role == 'system' -%}{{ words(messages[0].content) }}{%- endif -%}
    {%- for tool in tools or [] -%}
        {{ '\n' + (tool | tojson) + '\n' }}
        {%- for name, argument in tool.function.parameters.properties.items() -%}
            {{ name.strip() ~ ':' ~ argument.type | upper ~ ' ' ~ argument['description'] }}
        {%- endfor -%}
    {%- endfor -%}
    {{ '<end_of_turn>\n' }}
{%- endif -%}
{%- for message in messages if message.role != 'system' -%}
    {{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}
    {%- if message.content is defined -%}{{ words(message.content) }}{%- endif -%}
    {%- for call in message.tool_calls or [] -%}
        {{ '<call>' ~ call.function.name ~ ' ' ~ call.function.arguments | tojson }}
    {%- endfor -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""
# One turn a line, as much as a template needs that only chats.
PLAIN = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m.role + ']' }}"
    "{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}{{ '[/]' }}\n"
    "{% endfor %}"
)


@dataclass(frozen=True)
class Case:
    """A checkpoint's text files and its spec."""

    folder: Path
    spec: ModelSpec

    def check(self, bos: str | None = None, always: bool = True) -> None:
        chat = ChatTemplates(self.folder)
        source = read_chat_template(self.folder)
        assert source is not None
        bos = read_start_token(self.folder).text if bos is None else bos
        names = chat.special_tokens
        check_template(self.spec, source, chat.render, bos_token=bos, always=always, names=names, where=self.folder)


def case(folder: Path, source: str, spec: ModelSpec | None = None, **config: Any) -> Case:
    return Case(write_package(folder, **{"chat_template": source, **config}), spec or GEMMA3N)


GEMMA3N = preset_spec(E2B)
OTHER = {"family": "gemma3", "model_type": "gemma3_text", "ple": None, "altup": None, "laurel_rank": None}
SPECS = {"gemma3n": GEMMA3N, "gemma3": GEMMA3N.model_copy(update=OTHER)}


@pytest.mark.parametrize(
    ("family", "source"),
    [("gemma3n", GEMMA_TEMPLATE), ("gemma3n", TOOL_TEMPLATE), ("gemma3n", PLAIN), ("gemma3", GEMMA_TEMPLATE)],
    ids=["gemma3n", "tools", "plain", "gemma3"],
)
def test_templates_that_render_equal_are_accepted(tmp_path: Path, family: str, source: str) -> None:
    case(tmp_path, source, SPECS[family]).check()


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
def test_line_breaks_are_those_that_python_reads(tmp_path: Path, line_break: str) -> None:
    source = PLAIN + "{{ 'a' if add_generation_prompt else '' }}\n"
    case(tmp_path, source.replace("\n", line_break)).check()
    assert ChatTemplates(tmp_path).render([{"role": "user", "content": "b"}]) == "<bos>[user]b[/]\na"


def test_the_demo_renders_equal() -> None:
    with open_checkpoint(DEMO) as checkpoint:
        Case(DEMO, read_spec(checkpoint)).check()


def rendered(case: Case, source: str, chats: tuple[Conversation, ...]) -> list[str]:
    results = template._run_engine(case.spec, source, "<bos>", [chat.case for chat in chats])
    assert not [result.reason for result in results if result.reason]
    return [result.text for result in results]


def test_the_engine_writes_what_transformers_writes(tmp_path: Path) -> None:
    """Not through `check_template`: what is compared there is what Transformers and the engine themselves say."""
    from transformers import PreTrainedTokenizerFast

    chats = CHATS + TOOL_CHATS
    package = case(tmp_path, TOOL_TEMPLATE)
    theirs = PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    expected = [
        theirs.apply_chat_template(list(chat.messages), tools=chat.tools, tokenize=False, add_generation_prompt=True)
        for chat in chats
    ]
    texts = rendered(package, TOOL_TEMPLATE, chats)
    assert [f"<bos>{text}" for text in texts] == expected and len(set(texts)) == len(chats)
    assert '<call>get_weather {"city": "Zürich", "days": 2}' in texts[-1] and '\n{"degrees": 21}<end' in texts[-1]
    assert '{"type": "function", "function": {"name": "get_weather"' in texts[-1]


def test_rendering_does_not_depend_on_the_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = case(tmp_path, GEMMA_TEMPLATE)
    stand_in = rendered(package, GEMMA_TEMPLATE, CHATS)
    facts, tokenizer = template.TextFacts, gemma_like()
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    narrow = template._narrow
    content = tokenizer.to_str().encode()
    monkeypatch.setattr(template, "TextFacts", lambda _, stop, source, **more: facts(content, stop, source, **more))
    monkeypatch.setattr(template, "_narrow", lambda spec, _: narrow(spec, size))
    assert rendered(package, GEMMA_TEMPLATE, CHATS) == stand_in


@pytest.mark.parametrize("source", [GEMMA_TEMPLATE, TOOL_TEMPLATE], ids=["gemma", "tools"])
def test_the_metadata_keeps_tools_as_they_are(source: str) -> None:
    """A Gemma's type would turn them into Python source, which no template of a checkpoint expects."""
    text = TextFacts(b"{}", (1,), source)
    metadata = llm_metadata_pb2.LlmMetadata.FromString(llm_metadata(GEMMA3N, 64, text))
    kind = metadata.llm_model_type.WhichOneof("model_type")
    assert kind == ("generic_model" if uses_tools(source) else "gemma3n") and metadata.jinja_prompt_template in source


# --- refused, each with the construct


def put(text: str, source: str = PLAIN) -> str:
    """`text` as a third line of `source`."""
    return f"{source.rstrip()}{{# #}}\n{text}\n"


REFUSED = {
    "method": (put("{{ messages[0].role.title() }}"), r"line 3: method \.title\(\) is not known to LiteRT-LM"),
    "method with arguments": (put("{{ messages[0].get('x') }}"), r'line 3: method \.get\("x"\) is not known'),
    "method on anything": (put("{% for k in messages[0].keys() %}{% endfor %}"), r"line 3: method \.keys\(\) is"),
    "where nobody goes": (put("{% if messages | length > 99 %}{{ 'a'.upper() }}{% endif %}"), r"method \.upper\(\)"),
    "filter": (
        put("{{ 'a' | wordwrap(3) }}"),
        r"line 3: filter wordwrap\(3\) is not known .*filter wordwrap is unknown",
    ),
    "filter's argument": (
        put("{{ messages[0].role | tojson(indent=2) }}"),
        r"filter tojson\(indent=2\) .*too many arg",
    ),
    "argument by name": (
        put("{{ x | default('', boolean=true) }}"),
        r'filter default\("", boolean=true\) is not known',
    ),
    "test": (put("{{ 'a' if 1 is callable }}"), r"line 3: test 'is callable' is not known .*test callable is unknown"),
    "function": (put("{{ cycler('a') }}"), r"line 3: function cycler\(\) is not known"),
    "tag": (
        put("{% for m in messages %}{% break %}{% endfor %}"),
        r"line 3 \(.*\): LiteRT-LM cannot read it: .*unknown statement break",
    ),
    "generation tag": (put("{%- generation %}{% endgeneration %}"), r"line 3 .*unknown statement generation"),
    "rewritten method": (
        put("{{ 'a b'.split(' ')[1:] }}"),
        r"line 3 \(\{\{ 'a b'\.split\(' '\)\[1:\] \}\}\): .*unexpected",
    ),
    "content as a text": (
        PLAIN.replace("{% if m.content is string %}", "{% if true %}"),
        r"a user's message differently from Transformers, from character 6 on: expected .*always a list of parts",
    ),
    "system content as a text": (
        put("{% if messages[0].role == 'system' %}\n{{ messages[0].content + 'x' }}\n{% endif %}"),
        r"line 4 \(.*\): LiteRT-LM cannot render a system and a user's message: .*sequence and string.* list of parts",
    ),
    "truth": (put("{{ add_generation_prompt }}"), r"expected 'True', got 'true'"),
    "end of text": (put("{{ eos_token }}"), r"expected '<eos>', got ''.*eos_token: empty in LiteRT-LM"),
    "start of text": (
        PLAIN.replace("{{ bos_token }}", "<bos>"),
        r"puts <bos> before the text by itself: write \{\{ bos",
    ),
    "null": (put("{{ 'a' if none is none else 'b' }}"), r"expected 'a', got 'b'"),
    "looking ahead": (
        PLAIN.replace("'[/]'", "'[/]' if loop.last else ''"),
        r"messages before the last one of a second turn changes, from character \d+ on: .*only adds",
    ),
    "history": (
        put("{% if messages[-1].role != 'user' %}{{ raise_exception('no') }}{% endif %}"),
        r"messages before the last one of a second turn is refused; LiteRT-LM only adds",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_engine_renders_otherwise_is_refused_by_name(tmp_path: Path, name: str) -> None:
    source, message = REFUSED[name]
    with pytest.raises(UnsupportedError, match=message) as caught:
        case(tmp_path, source).check()
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}: chat template") and "\n" not in text and "--to onnx" in text


def test_tools_count_where_a_template_writes_them(tmp_path: Path) -> None:
    source = TOOL_TEMPLATE.replace("call.function.arguments | tojson", "call.function.arguments")
    with pytest.raises(
        UnsupportedError, match=r"a tool call and its result differently .*city.*Zürich.*days.*: 2\}<end"
    ):
        case(tmp_path, source).check()


def test_a_conversation_that_transformers_refuses_does_not_count(tmp_path: Path) -> None:
    source = put("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}")
    case(tmp_path, source).check()


def test_a_method_is_asked_of_texts_lists_and_maps() -> None:
    """A release of the engine may know one of maps only."""
    (found,) = constructs_of("\n{{ x.get('a', y, b=none) }}{{ loop.cycle(1) }}")
    assert (found.line, found.name) == (2, 'method .get("a", ..., b=none)')
    assert [probe.split(".get(")[0] for probe in found.probes] == ["{{ ''", "{{ []", "{{ {}"]
    assert constructs_of("{% if %}") == []


def test_a_bundle_without_a_start_token_may_not_count_on_one(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"from character 0 on: expected '<bos>\[user\]"):
        case(tmp_path, PLAIN).check(bos="")


def test_a_name_of_a_token_that_the_engine_does_not_have_is_told(tmp_path: Path) -> None:
    package = case(tmp_path, put("{{ turn }}"), extra_special_tokens={"turn": "<start_of_turn>"})
    with pytest.raises(UnsupportedError, match=r"expected '<start_of_turn>', got ''.*turn: empty in LiteRT-LM"):
        package.check()


def test_a_start_token_that_only_some_conversations_have(tmp_path: Path) -> None:
    """The engine has one for all; where plain texts have it too, it counts as left out by mistake."""
    source = PLAIN.replace("{{ bos_token }}", "{% if messages[0].role != 'system' %}{{ bos_token }}{% endif %}")
    case(tmp_path, source).check()
    message = r"does not write the start token <bos> before a system and a user's message as it does elsewhere"
    with pytest.raises(UnsupportedError, match=message):
        case(tmp_path, source).check(always=False)


def test_a_template_for_tools_goes_into_the_same_one(tmp_path: Path) -> None:
    """LiteRT-LM has room for one template; line breaks at the seams count as those at the ends of a file."""
    tools = "\n  {% if tools %}\nTOOLS {% endif %}{% for m in messages %}[{{ m.role }}]{% endfor %}\n\n"
    both = [{"name": "tool_use", "template": tools}, {"name": "default", "template": f"{PLAIN}\n"}]
    package = case(tmp_path, "", chat_template=both)
    package.check()
    chat, merged = ChatTemplates(tmp_path), read_chat_template(tmp_path)
    for conversation in (CHATS[0], CHATS[4]):
        expected = chat.render(conversation.messages, tools=conversation.tools)
        assert rendered(package, str(merged), (conversation,)) == [expected.removeprefix("<bos>")]
    assert expected == "\nTOOLS [user]"


# --- the export


def demo_with(folder: Path, source: str) -> Path:
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    for file in DEMO.iterdir():
        if file.name != "chat_template.jinja":
            (checkpoint / file.name).write_bytes(file.read_bytes())
    (checkpoint / "chat_template.jinja").write_text(source, encoding="utf-8")
    return checkpoint


def test_an_export_is_refused_and_leaves_nothing(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    checkpoint = demo_with(tmp_path, REFUSED["method"][0])
    with pytest.raises(UnsupportedError, match=r"method \.title\(\)"):
        edgepack.export(checkpoint, to="litert", out=tmp_path / "package")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"] and not list(scratch.iterdir())
    assert edgepack.export(checkpoint, to="onnx", out=tmp_path / "package").package.path.is_dir()


def test_an_export_without_the_engine_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litert_lm", None)
    with pytest.raises(
        EdgepackError, match=r"litert_lm is not installed: pip install -c constraints.txt '\.\[litert\]'"
    ):
        edgepack.export(DEMO, to="litert", out=tmp_path / "package")
    assert not list(tmp_path.iterdir())


def test_a_dying_engine_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "_write_stand_in", lambda path, *_: path.write_text(json.dumps("no bundle")))
    with pytest.raises(
        UnsupportedError, match=r"LiteRT-LM failed while it rendered the chat template: .*Failed"
    ) as caught:
        case(tmp_path, PLAIN).check()
    assert "\n" not in str(caught.value)


def test_an_engine_that_takes_too_long_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "ENGINE_SECONDS", 0.01)
    with pytest.raises(UnsupportedError, match=r"did not render the chat template within 0\.01 s"):
        case(tmp_path, PLAIN).check()
