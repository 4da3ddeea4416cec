"""The commands that README.md, CONTRIBUTING.md and docs/ tell people to type, and the shape of their outputs."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.support.scratch import ROOT

OTHERS = r"make|optimum-cli|adb|scp|split|cat|git|gh|node|npm"
PROGRAMS = rf"(?:\S+=\S+ )*(?:(?:\S*/)?(?:edgepack|python3?|pytest|pre-commit|pip)|{OTHERS})"
_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_PROMPTED = re.compile(r"^\$ (.*)$")
# A line of a shell block, or an item of a build step's list.
_BARE = re.compile(rf"^(?: *- )?({PROGRAMS} .*)$")
_INLINE = re.compile(rf"`({PROGRAMS} [^`]*)`")
SHELLS = ("", "sh", "bash", "console", "shell", "yaml")


@dataclass(frozen=True)
class Documented:
    """One command.

    Attributes:
        text: as it stands there, without what a `#` explains.
        output: what the page shows below it; None where it shows nothing.
        inline: it stands in a sentence or in a table.
    """

    page: str
    text: str
    output: tuple[str, ...] | None = None
    inline: bool = False

    @property
    def is_name(self) -> bool:
        """Whether a sentence only calls a command by its name: `edgepack validate`. The demo takes no arguments."""
        return self.inline and len(self.text.split()) < 3 and self.text != "edgepack demo"


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[Documented]:
    """Every command once a page, in order."""
    found: dict[tuple[str, str], Documented] = {}
    for page in pages():
        text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
        for language, block in _BLOCK.findall(text):
            if language in SHELLS:
                for command in _of_block(name, block):
                    found.setdefault((name, command.text), command)
        for match in _INLINE.finditer(_BLOCK.sub("", text)):
            words = " ".join(match.group(1).split())
            found.setdefault((name, words), Documented(name, words, inline=True))
    return list(found.values())


def python_blocks() -> list[tuple[str, str]]:
    """Page and source of every block of Python."""
    return [
        (page.relative_to(ROOT).as_posix(), block)
        for page in pages()
        for language, block in _BLOCK.findall(page.read_text(encoding="utf-8"))
        if language in ("python", "py")
    ]


def _of_block(page: str, block: str) -> list[Documented]:
    lines = block.splitlines()
    starts = [i for i, line in enumerate(lines) if _PROMPTED.match(line)]
    if not starts:
        return [Documented(page, _without_comment(match.group(1))) for line in lines if (match := _BARE.match(line))]
    found = []
    for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True):
        output = tuple(line for line in lines[start + 1 : stop] if line.strip())
        found.append(Documented(page, _without_comment(lines[start][2:]), output or None))
    return found


def _without_comment(line: str) -> str:
    """What stands before a `#` that no quotes are around."""
    return re.sub(r"""^((?:[^'"#]|'[^']*'|"[^"]*")*?)\s+#.*$""", r"\1", line).strip()


def typed(text: str) -> str:
    """What somebody types for a line with choices: the last of ``A|B``, and what stands in brackets."""
    chosen = re.sub(r"\b[A-Z]+(?:\|[A-Z]+)+\b", lambda match: match.group().rpartition("|")[2], text)
    return re.sub(r"\[(--[^\]]+)\]", r"\1", chosen)


def edgepack_words(text: str) -> list[str] | None:
    """The words after ``edgepack`` of a line that runs it; None for another program."""
    line = typed(text).partition(";")[0]
    try:
        words = shlex.split(line)
    except ValueError:
        words = line.split()
    if words and words[0].rpartition("/")[2] == "edgepack":
        return words[1:]
    return words[3:] if words[:3] == ["python", "-m", "edgepack"] else None


# -- the shape of an output

_SIZE = re.compile(r"[-+]?\d[\d,.]*\s?(?:[kMGT]i?B|bytes)\b")
_TIME = re.compile(r"[-+]?\d[\d,.]*\s?(?:ms|s|min)\b")
_PATH = re.compile(r"(?<!\S)~?/[\w.@+/-]+")
_ROW = re.compile(r"[│┃].*[│┃]")
_BORDER = re.compile(r"[\s━─┏┳┓┡╇┩├┼┤└┴┘╭╮╰╯┢┪┌┬┐]*")
_NUMBER = re.compile(r"[-+]?\d[\d,.]*\d|[-+]?\d")
# Where the kernel cannot be asked for a limit, the memory is watched; the rest of a line says the same.
_LIMIT = re.compile(
    r"ran within a hard limit of (SIZE \(SIZE\)), peak RSS SIZE|peak RSS SIZE is within the target (SIZE \(SIZE\))"
)


def shape(line: str) -> str:
    """`line` with sizes, durations, paths and numbers as words, and single blanks.

    Of a row of a table its number of cells is left, of the heading its words.
    """
    if _ROW.fullmatch(line.strip()) and "│" in line:
        return f"a row of {line.count('│') - 1}"
    for pattern, word in ((_PATH, "PATH"), (_SIZE, "SIZE"), (_TIME, "TIME"), (_NUMBER, "N")):
        line = pattern.sub(word, line)
    line = line.replace("N entry", "N entries")
    return _LIMIT.sub(lambda match: f"within {match.group(1) or match.group(2)}", " ".join(line.split()))


def shapes(text: str) -> list[str]:
    """Shapes of the lines of `text`, without the borders of tables; rows of one table are one."""
    lines = [shape(line) for line in text.splitlines() if not _BORDER.fullmatch(line)]
    return [line for i, line in enumerate(lines) if not (line.startswith("a row of") and line in lines[i - 1 : i])]


def differences(told: tuple[str, ...], output: str, errors: str) -> list[str]:
    """What of the documented lines is not so: each is the beginning of the next line of the output or of stderr.

    ``...`` stands for any lines of the output. Lines on stderr may be left out: people see them, pages need not.
    """
    lines, notes = shapes(output), shapes(errors)
    wrong, skipping = [], False
    for line in shapes("\n".join(told)):
        if line == "...":
            skipping = True
            continue
        line = line.removesuffix("...").rstrip()
        place = next((i for i, actual in enumerate(lines) if actual.startswith(line)), None)
        if place is not None and (place == 0 or skipping):
            lines, skipping = lines[place + 1 :], False
        elif (note := next((i for i, actual in enumerate(notes) if actual.startswith(line)), None)) is not None:
            notes = notes[note + 1 :]
        else:
            wrong.append(f"documented and not there: {line}")
    if lines and not skipping:
        wrong.append(f"there and not documented: {lines[0]}")
    return wrong
