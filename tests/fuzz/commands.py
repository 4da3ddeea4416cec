"""Mutated command lines: options of every verb with values of the wrong type, none, several, or not even text."""

from __future__ import annotations

import os
import random
from functools import cache
from pathlib import Path
from typing import Any

from typer.main import get_command

from edgepack.cli.main import app
from tests.fuzz.bases import Bases
from tests.fuzz.case import Case, generator
from tests.fuzz.mutations import NUMBERS, TEXTS

VALUES = (
    *(text for text in TEXTS if "\x00" not in text and "\ud800" not in text),  # the system passes no such argument
    *map(str, NUMBERS),
    os.fsdecode(b"\xff\xfe"),
    os.fsdecode(b"caf\xe9"),
    "-",
    "--",
    "-1",
    "nan",
    "inf",
    "1e3",
    "2GB",
    "0GB",
    "-1GB",
    "999999999999999999TB",
    "2 GB",
    "2",
    "rpi4",
    "android-none",
    "1,2,3",
    ",",
    "1,,2",
    "128,x",
    "onnx",
    "litert",
    "litert-lm",
    "fp32",
    "int3",
    "5%",
    "-5%",
    "decode_tokens_per_s >= 10",
    "decode_tokens_per_s = ",
    "nothing >= 1",
    "no/such/folder",
    "/",
    "/dev/null",
    "/proc/self/mem",
    "org/name",
    "org/name@main",
    "a" * 300,
    "a/" * 3_000,
)
# Commands that would start minutes of work where everything else about them is right.
LONG = {"demo": ["--out", "/dev/null/x"], "synth": ["--preset", "nothing"]}


@cache
def verbs() -> dict[str, Any]:
    """The verbs of the command line; those of a group by two words, ``cache list``."""
    known: dict[str, Any] = {}
    for name, verb in get_command(app).commands.items():  # type: ignore[attr-defined]
        below = getattr(verb, "commands", None)
        known |= {name: verb} if below is None else {f"{name} {other}": found for other, found in below.items()}
    return known


def make(seed: int, number: int, folder: Path, bases: Bases) -> Case:
    """Case `number`, with files in the new folder `folder`."""
    rng = generator("commands", seed, number)
    folder.mkdir()
    verb = rng.choice(list(verbs()))
    words = _good(verb, folder, rng, bases)
    done = [_change(words, verb, rng) for _ in range(rng.choice([1, 1, 2, 3]))]
    if verb in LONG:
        words += LONG[verb]
    arguments = [*verb.split(), *words]
    if rng.random() < 0.05:
        arguments[0] = rng.choice(VALUES)
        done.append("another verb")
    if rng.random() < 0.05:
        arguments.insert(0, rng.choice(["--version", "--help", "-h", "--nothing", "-x", ""]))
        done.append(f"{arguments[0]!r} first")
    if rng.random() < 0.4:
        arguments.append("--json")
    outs = sum(word.partition("=")[0] == "--out" for word in arguments)
    out = folder / "out" if outs == 1 and str(folder / "out") in arguments else None
    return Case("commands", seed, number, f"{verb}: {'; '.join(done)}"[:300], tuple(arguments), out)


def _good(verb: str, folder: Path, rng: random.Random, bases: Bases) -> list[str]:
    """Arguments that work, and end before anything long."""
    package = str(bases.packages[rng.choice(["onnx int4", "litert int4"])])
    if verb in ("inspect", "plan"):
        return [str(bases.bare)]
    if verb == "export":
        return [str(bases.bare), "--out", str(folder / "out"), "--context", "64"]
    if verb == "generate":
        return [package, "--token-ids", "2,7", "--max-new-tokens", "2"]
    if verb == "validate":
        return [package, "--threshold", "kl_mean <= 1"]
    return []


def _change(words: list[str], verb: str, rng: random.Random) -> str:
    at = rng.randint(0, len(words))
    draw = rng.random()
    options = [found for found in verbs()[verb].params if found.param_type_name == "option"]
    if draw < 0.6 and options:
        parameter = rng.choice(options)
        option = rng.choice(parameter.opts)
        if parameter.is_flag:
            words.append(option if rng.random() < 0.8 else f"{option}=1")
            return option
        value = rng.choice(VALUES)
        words += rng.choice([[option, value], [option, value], [f"{option}={value}"], [option]])
        return f"{option} {value[:40]!r}"
    if draw < 0.75 and words:
        at = rng.randrange(len(words))
        words[at] = rng.choice(VALUES)
        return f"argument {at} is {words[at][:40]!r}"
    if draw < 0.85 and words:
        return f"{words.pop(rng.randrange(len(words)))[:40]!r} left out"
    value = rng.choice(VALUES)
    words.insert(at, value)
    return f"{value[:40]!r} put in at {at}"
