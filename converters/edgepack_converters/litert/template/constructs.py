"""What a chat template uses of Jinja, each with a small template that shows whether LiteRT-LM knows it.

LiteRT-LM renders with minijinja, which has no Python methods but those that the engine rewrites to filters, and which
notices an unknown name only when a conversation gets there. Asking the engine itself keeps no list here to grow old.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from jinja2 import Environment, TemplateSyntaxError, nodes

_GENERATION_TAG = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
# Known inside a loop or a macro only, where a template of one line cannot ask for them.
_LOCAL_NAMES = {"loop", "caller", "self", "varargs", "kwargs"}
_BAD_ARGUMENTS = ("too many arguments", "unknown keyword argument")


@dataclass(frozen=True, slots=True)
class Construct:
    """One use of something that LiteRT-LM may not know.

    Attributes:
        line: where it stands in the template, from 1.
        name: what a message calls it.
        probes: templates; the construct is refused if the engine refuses all of them for one of `marks`.
        marks: beginnings or parts of the engine's reasons that blame the construct and not what it was applied to.
    """

    line: int
    name: str
    probes: tuple[str, ...]
    marks: tuple[str, ...]

    def blamed(self, reason: str) -> bool:
        """Whether the engine's `reason` is about this construct."""
        return any(mark in reason for mark in self.marks)


def constructs_of(source: str) -> list[Construct]:
    """All filters, tests, functions and methods in `source`, by line; none where it is no Jinja that Python knows."""
    tree = _parse(source)
    if tree is None:
        return []
    free = _free_names(tree) - _LOCAL_NAMES
    found = {construct for node in tree.find_all(nodes.Expr) for construct in _constructs(node, free)}
    return sorted(found, key=lambda construct: (construct.line, construct.name))


def variables_of(source: str) -> set[str]:
    """Names that `source` takes from outside."""
    tree = _parse(source)
    return set() if tree is None else _free_names(tree)


def _parse(source: str) -> nodes.Template | None:
    # LiteRT-LM knows this tag of Transformers, Jinja does not.
    plain = _GENERATION_TAG.sub(lambda tag: "\n" * tag[0].count("\n"), source)
    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    try:
        return environment.parse(plain)
    except TemplateSyntaxError:
        return None


def _free_names(tree: nodes.Template) -> set[str]:
    names = list(tree.find_all(nodes.Name))
    own = {macro.name for macro in tree.find_all(nodes.Macro)} | {name.name for name in names if name.ctx != "load"}
    return {name.name for name in names} - own


def _constructs(node: nodes.Expr, free: set[str]) -> Iterator[Construct]:
    if isinstance(node, nodes.Filter):
        # An argument by name ends up as a map where the filter takes its arguments by position only.
        marks = ("unknown filter", "unknown test", *_BAD_ARGUMENTS, *(["cannot convert map"] if node.kwargs else []))
        probe = f"{{{{ '' | {node.name}{_arguments(node, optional=True)} }}}}"
        yield Construct(node.lineno, f"filter {node.name}{_shown(node, optional=True)}", (probe,), marks)
    elif isinstance(node, nodes.Test):
        probe = f"{{{{ '' is {node.name}{_arguments(node, optional=True)} }}}}"
        yield Construct(node.lineno, f"test 'is {node.name}'", (probe,), ("unknown test",))
    elif isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name):
        if node.node.name in free:
            probe = f"{{{{ {node.node.name}{_arguments(node)} }}}}"
            yield Construct(node.lineno, f"function {node.node.name}()", (probe,), ("unknown function",))
    elif isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
        owner, name = node.node.node, node.node.attr
        if not (isinstance(owner, nodes.Name) and owner.name in _LOCAL_NAMES):
            probes = tuple(f"{{{{ {value}.{name}{_arguments(node)} }}}}" for value in ("''", "[]", "{}"))
            yield Construct(node.lineno, f"method .{name}{_shown(node)}", probes, ("unknown method",))


def _arguments(node: nodes.Call | nodes.Filter | nodes.Test, *, optional: bool = False, other: str = "'a'") -> str:
    """The arguments of a call as Jinja; `other` for those that are no literals."""
    values = [_literal(value, other) for value in node.args]
    values += [f"{pair.key}={_literal(pair.value, other)}" for pair in node.kwargs]
    return "" if optional and not values else f"({', '.join(values)})"


def _shown(node: nodes.Call | nodes.Filter | nodes.Test, *, optional: bool = False) -> str:
    return _arguments(node, optional=optional, other="...")


def _literal(value: nodes.Expr, other: str) -> str:
    if not isinstance(value, nodes.Const):
        return other
    return "none" if value.value is None else json.dumps(value.value, ensure_ascii=False)
