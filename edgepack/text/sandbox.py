"""The environment of chat templates: Jinja's sandbox, and an end to templates that would compute for ever.

A template comes with the checkpoint and is a program. The sandbox keeps it away from Python's insides; here its steps
and the length of what it puts together are counted. A filter that pads a text to a huge width is not caught.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from jinja2 import Environment, Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from edgepack.shown import shown

# Turns of all loops and calls of all macros in one rendering. Gemma's template makes three for a message.
MOST_STEPS = 100_000
MOST_CHARACTERS = 20_000_000
MOST_POWER_BITS = 10_000


class GenerationTag(Extension):
    """`{% generation %}` marks the model's words for training; here it only has to be let through."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """The statements inside, in a scope of their own."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class CountedNodes(NodeTransformer):
    """Puts a call of `ChatSandbox.step` into every loop and macro, and of `join_texts` in place of every `~`."""

    def visit(self, node: nodes.Node, *args: Any, **options: Any) -> Any:
        """`node` with what is in it changed, and itself if it is one of these."""
        self.generic_visit(node)
        if isinstance(node, nodes.Concat):
            return _call("join_texts", node.nodes).set_lineno(node.lineno)
        if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock):
            node.body.insert(0, nodes.ExprStmt(_call("step", []), lineno=node.lineno))
        return node


def _call(name: str, arguments: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)


class ChatSandbox(ImmutableSandboxedEnvironment):
    """What Transformers gives to chat templates, with limits."""

    intercepted_binops = frozenset({"+", "*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
        self.steps = 0
        self.filters["tojson"] = _tojson
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        self.globals.update(dict=_Dict(), namespace=_Namespace)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = CountedNodes().visit(super()._parse(source, name, filename))
        return tree.set_environment(self)  # type: ignore[no-any-return]  # the visitor is not typed

    def step(self) -> str:
        """Count one turn of a loop or one call of a macro."""
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise SecurityError(f"it takes more than {MOST_STEPS} steps")
        return ""

    def join_texts(self, *parts: Any) -> str:
        """What `~` gives."""
        texts = [str(part) for part in parts]
        _check_length(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """A sum, product or power whose result is not absurdly large."""
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            _check_length(len(left) + len(right))
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, int) and isinstance(other, str | list | tuple):
                    _check_length(one * len(other))
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_length(right * left.bit_length(), MOST_POWER_BITS)
        return super().call_binop(context, operator, left, right)

    def rendered(self, template: Template, **values: Any) -> str:
        """The text of `template`, which this environment has compiled."""
        self.steps = length = 0
        pieces = []
        for piece in template.generate(**values):
            length += len(piece)
            _check_length(length)
            pieces.append(piece)
        return "".join(pieces)


def _check_length(length: int, most: int = MOST_CHARACTERS) -> None:
    if length > most:
        raise SecurityError(f"it makes a value of size {length}, expected at most {most}")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which would change what the model reads. The order is that of Transformers.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Dict:
    """`dict` and `dict.fromkeys`, and nothing else that a class has."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As `dict.fromkeys`."""
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """Jinja's, without names that begin with an underscore: as in Transformers."""

    def __init__(*args: Any, **values: Any) -> None:
        # The instance is among `args`, as in Jinja: a template may call a value `self`.
        attributes = dict(*args[1:], **values)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name that begins with an underscore, got {shown(name)}")
