"""Seeded changes of values, of JSON documents, of bytes and of files, each with words that say what was done.

JSON is kept as it stands in a file: an object is a list of pairs, so a key may come twice, and a `Raw` is text that no
JSON value could become.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Pairs:
    """A JSON object with its keys in order."""

    items: list[tuple[str, Any]]


@dataclass(frozen=True)
class Raw:
    """Text that stands in the document as it is."""

    text: str


# What a document, a line or an option may hold where something else is expected.
TEXTS = (
    "",
    " ",
    "x" * 5_000,
    "y" * 200_000,
    "line\nbreak\r\ttab",
    "\x00\x01\x1b[31mred\x1b[0m\x7f",
    "\u202eright to left\u200b",
    "Grüße 東京 👩\u200d🚀",
    "../outside",
    "/dev/zero",
    "a\ud800b",
    "NaN",
    "1e999",
    "%s%n{0}{x}${HOME}",
    "[bold]markup[/bold][/x]",
)
NUMBERS: tuple[Any, ...] = (
    0,
    1,
    -1,
    2,
    3,
    7,
    2**15,
    2**31 - 1,
    2**31,
    2**53,
    2**63,
    2**64,
    -(2**63),
    10**40,
    0.5,
    -0.0,
    1.5,
    1e-320,
    1e308,
)
RAWS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "1" + "0" * 5_000,
    "-" + "9" * 5_000,
    "[" * 50 + "]" * 50,
    "[" * 100_000 + "]" * 100_000,
    '{"a":' * 3_000 + "1" + "}" * 3_000,
    '"unclosed',
    "'single'",
    "truE",
    "",
    "01",
    '"\\ud800"',
    '"\\u0000"',
)


def parsed(text: str) -> Any:
    """The document with objects as `Pairs`."""
    return json.loads(text, object_pairs_hook=lambda pairs: Pairs(list(pairs)))


def dumped(value: Any) -> str:
    """The text of a document."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {dumped(item)}" for key, item in value.items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dumped, value)) + "]"
    return json.dumps(value)


Place = tuple[list[Any], int, str]


def places(value: Any, where: str = "$") -> Iterator[Place]:
    """Every value below `value`: the list that holds it, its number there, and its path in words."""
    if isinstance(value, Pairs):
        for i, (key, item) in enumerate(value.items):
            yield value.items, i, f"{where}.{key}"
            yield from places(item, f"{where}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield value, i, f"{where}[{i}]"
            yield from places(item, f"{where}[{i}]")


def strange(rng: random.Random) -> Any:
    """A value that nobody expects."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(TEXTS)
    if kind in (1, 2):
        return rng.choice(NUMBERS)
    if kind == 3:
        return Raw(rng.choice(RAWS))
    if kind == 4:
        return rng.choice([None, True, False])
    if kind == 5:
        return rng.choice([[], [None], [[]], [1, "a", None], ["x" * 5_000] * 3, list(range(3_000)), [Pairs([])]])
    if kind == 6:
        return Pairs(rng.choice([[], [("a", 1)], [("", None)], [("x" * 5_000, "y" * 5_000)], [("a", 1), ("a", [2])]]))
    return rng.random() * 10 ** rng.randint(-3, 12)


def _held(holder: list[Any], at: int) -> Any:
    return holder[at][1] if isinstance(holder[at], tuple) else holder[at]


def _put(holder: list[Any], at: int, value: Any) -> None:
    holder[at] = (holder[at][0], value) if isinstance(holder[at], tuple) else value


def _neighbour(value: Any, rng: random.Random) -> Any:
    """A value of the same type: what a reader that only looks at types takes."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([value + 1, value - 1, value * 2, -value, value // 2, value * 1000, float(value), str(value)])
    if isinstance(value, float):
        return rng.choice([-value, value * 1e6, value / 1e6, 0.0, 1.0, int(value)])
    if isinstance(value, str):
        at = rng.randint(0, len(value))
        return rng.choice(
            [value[:at], value[:at] + rng.choice(TEXTS) + value[at:], value.upper(), value[::-1], [value]]
        )
    if isinstance(value, list):
        wrapped = [[item] for item in value]
        return rng.choice(
            [value[:-1], value + value[-1:], value[::-1], wrapped, [strange(rng), *value[1:]], value * 50]
        )
    if isinstance(value, Pairs):
        shuffled = rng.sample(value.items, len(value.items))
        return rng.choice([Pairs(shuffled), Pairs(value.items[:-1]), Pairs(value.items + value.items[:1]), [value]])
    return strange(rng)


def change_document(document: Any, rng: random.Random) -> str:
    """Change one place of `document`, which must hold something; return what was done."""
    holder, at, where = rng.choice(list(places(document)))
    value, act = _held(holder, at), rng.randrange(10)
    if act == 0:
        del holder[at]
        return f"{where} removed"
    if act == 1:
        holder.insert(at, holder[rng.randrange(len(holder))])
        return f"{where} doubled"
    if act == 2 and isinstance(holder[at], tuple):
        name = rng.choice([*TEXTS, holder[at][0] + "_x", holder[at][0].upper()])
        holder[at] = (name, value)
        return f"{where} renamed {name[:30]!r}"
    if act == 3 and isinstance(holder[at], tuple):
        name = rng.choice([*TEXTS, "extra"])
        holder.append((name, strange(rng)))
        return f"{where}: a key {name[:30]!r} beside"
    new = _neighbour(value, rng) if act < 7 else strange(rng)
    if act == 9:
        new = rng.choice([[value, new], Pairs([(str(at), value)]), [new, value, new]])
    _put(holder, at, new)
    return f"{where} = {dumped(new)[:60]}"


def change_json(text: str, rng: random.Random) -> tuple[str, str]:
    """The text of a JSON document with one to three places changed, and what was done."""
    document, times = parsed(text), rng.choice([1, 1, 1, 2, 3])
    done = [change_document(document, rng) for _ in range(times) if next(places(document), None) is not None]
    return dumped(document), "; ".join(done)


def change_bytes(data: bytes, rng: random.Random, spots: range | None = None) -> tuple[bytes, str]:
    """`data` with one stretch changed, within `spots` where these are given, and what was done."""
    inside = spots if spots is not None and len(spots) else range(len(data) + 1)
    at, length = rng.choice(inside), rng.choice([1, 1, 2, 4, 8, 64])
    number = rng.choice([0, 1, 2**7, 2**16, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1, len(data)])
    changes: dict[str, Callable[[], bytes]] = {
        "one bit": lambda: data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
        "cut off": lambda: data[:at],
        "removed": lambda: data[:at] + data[at + length :],
        "random": lambda: data[:at] + rng.randbytes(length) + data[at + length :],
        "inserted": lambda: data[:at] + rng.randbytes(length) + data[at:],
        "zeros": lambda: data[:at] + bytes(length) + data[at + length :],
        "ones": lambda: data[:at] + b"\xff" * length + data[at + length :],
        "length": lambda: data[:at] + number.to_bytes(8, "little") + data[at + 8 :],
        "short length": lambda: data[:at] + (number % 2**32).to_bytes(4, "little") + data[at + 4 :],
        "doubled": lambda: data[:at] + data[at : at + 100 * length] + data[at:],
        "appended": lambda: data + rng.randbytes(length * 10),
        "text": lambda: data[:at] + rng.choice(TEXTS).encode("utf-8", "surrogatepass") + data[at:],
    }
    name = rng.choice(list(changes) if at < len(data) else ["cut off", "appended", "text"])
    return changes[name](), f"{name} ({length}) at byte {at}"


def change_text(text: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A text file as a whole in another state: empty, another encoding, other ends of lines; or some of its bytes."""
    wholes = {
        "empty": b"",
        "a byte order mark": b"\xef\xbb\xbf" + text,
        "UTF-16": text.decode("utf-8", "replace").encode("utf-16"),
        "zeros": bytes(1000),
        "random": rng.randbytes(500),
        "null": b"null",
        "a list": b"[]",
        "a number": b"3",
        "spaces": b" \n\t " * 10,
        "not UTF-8": text[:50] + b"\xff\xfe" + text[50:],
    }
    if rng.random() < 0.4:
        name = rng.choice(list(wholes))
        return wholes[name], f"the whole file: {name}"
    return change_bytes(text, rng)


PLACES = ("gone", "folder", "dangling", "circle", "outside", "device", "empty", "huge", "renamed")


def change_file(path: Path, rng: random.Random, outside: Path, also: tuple[str, ...] = ("pipe",)) -> str:
    """Put something else in the place of the file `path`; return what was done.

    Args:
        also: a pipe, where one may not be waited for: of a file that a user names it is the user's own.
    """
    kind = rng.choice([*PLACES, *also])
    kept = path.read_bytes()
    path.unlink()
    acts: dict[str, Callable[[], object]] = {
        "gone": lambda: None,
        "folder": path.mkdir,
        "dangling": lambda: path.symlink_to("nothing-here"),
        "circle": lambda: path.symlink_to(path.name),
        "outside": lambda: (outside.write_bytes(kept), path.symlink_to(outside)),
        "device": lambda: path.symlink_to("/dev/zero"),
        "pipe": lambda: os.mkfifo(path),
        "empty": path.touch,
        "huge": lambda: (path.write_bytes(kept), os.truncate(path, 1 << 33)),
        "renamed": lambda: path.with_name(path.name.upper() + ".bak").write_bytes(kept),
    }
    acts[kind]()
    return f"{path.name}: {kind}"


def copied(source: Path, folder: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(source, folder, symlinks=True))
