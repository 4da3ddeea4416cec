"""Tables at 80 columns, the width of a pipe: no name, scheme, size or note is cut."""

from __future__ import annotations

import re

import pytest

from edgepack.cli import inspect, plan, tables
from edgepack.cli.console import Console
from edgepack.planning.plan import Plan
from edgepack.planning.planner import make_plan
from edgepack.planning.targets import parse_target
from edgepack.units import format_bytes
from tests.support.specs import E2B, E4B, preset_spec

ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


@pytest.fixture
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow(monkeypatch, 80)


def narrow(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False, width=columns)
    for module in (inspect, plan, tables):
        monkeypatch.setattr(module, "out", console, raising=False)


def shown(made: Plan, capsys: pytest.CaptureFixture[str]) -> list[str]:
    plan.print_plan(made)
    return capsys.readouterr().out.splitlines()


def cells(lines: list[str]) -> list[tuple[str, ...]]:
    """Rows of the table, lines that continue a row joined to it."""
    rows: list[tuple[str, ...]] = []
    for line in lines:
        if line.startswith("│"):
            found = tuple(cell.strip() for cell in line.strip("│").split("│"))
            if found[0] or not rows:
                rows.append(found)
            else:
                rows[-1] = tuple(f"{a} {b}".strip() for a, b in zip(rows[-1], found, strict=True))
    return rows


@pytest.mark.parametrize("recipe", ["int4", "int8", "fp32"])
@pytest.mark.parametrize("backend", ["onnx", "litert"])
@pytest.mark.parametrize("preset", [E2B, E4B])
@pytest.mark.usefixtures("width")
def test_a_plan_at_80_columns(preset: str, backend: str, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_plan(preset_spec(preset), backend=backend, recipe=recipe, target=parse_target("rpi5"))
    lines = shown(made, capsys)
    assert ELLIPSIS not in "".join(lines)
    assert max(len(line) for line in lines if line[:1] in "┏┡│├└") <= 80
    rows = {row[0]: row for row in cells(lines)}
    for row in made.rows:
        schemes = dict.fromkeys(tensor.scheme.name for tensor in made.tensors if tensor.component == row.name)
        disk = format_bytes(row.disk_bytes) if row.disk_bytes else ""
        assert rows[row.name] == (row.name, ", ".join(schemes), disk, format_bytes(row.resident_bytes), row.kind)
        assert not row.note or f"  {row.name}: {row.note}" in lines
    assert any(len(line) <= 80 and row.note in line for row in made.rows if row.note for line in lines)


@pytest.mark.usefixtures("width")
def test_several_schemes_of_a_component_wrap_between_them(capsys: pytest.CaptureFixture[str]) -> None:
    made = make_plan(preset_spec(E2B, hidden_size=2080, laurel_rank=48))
    found = {row[0]: row[1] for row in cells(shown(made, capsys))}
    assert found["ffn"] == "int4-b32-zp, int4-b128-zp" and found["laurel"] == "int8-b32, int8-b16"


def test_a_narrow_terminal_gets_a_wider_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_plan(preset_spec(E2B), backend="litert")
    narrow(monkeypatch, 80)
    wide = cells(shown(made, capsys))
    narrow(monkeypatch, 30)
    assert cells(shown(made, capsys)) == wide


@pytest.mark.parametrize("columns", [80, 30])
def test_inspect_keeps_its_names(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow(monkeypatch, columns)
    inspect.command("demo")
    text = capsys.readouterr().out
    assert ELLIPSIS not in text
    names = {"embedding", "altup_projection", "attention_value", "1,048,576", "chat_template.jinja", "assets/demo"}
    assert all(name in text for name in names)
    assert re.search(r"KV caches +2 full, 3\s+sliding", text)
