"""Mutated files that users write: settings, recipes, plans, device profiles, golden prompts, baselines, texts."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from tests.fuzz.bases import CONTEXT, Bases
from tests.fuzz.case import Case, generator
from tests.fuzz.mutations import TEXTS, change_file, change_json, change_text, dumped, strange
from tests.support.report_sample import passing

SETTINGS = """target = "2GB"
[export]
checkpoint = "ckpt"
to = "onnx"
recipe = "int4"
context = 64
prefill = [16, 32]
out = "build/package"
[validate]
package = "build/package"
runtime = "onnx"
threads = 1
prompt_tokens = [16]
new_tokens = 4
repeat = 1
golden = "prompts.jsonl"
baseline = "baseline/report.json"
max_regression = "5%"
history = "history.jsonl"
report = "build/report"
[thresholds]
decode_tokens_per_s = 10
peak_rss_bytes = "<= 1.9GB"
"""
PROFILE = """{"name": "my-board", "title": "My board", "ram_bytes": 2147483648, "limit_bytes": 1500000000,
"read_bandwidth_bytes_per_s": 6.5e9, "cores": 4, "isa": ["asimd", "asimddp"],
"sources": {"read_bandwidth_bytes_per_s": "mbw, four processes"}}"""
GOLDEN = """{"name": "counts", "prompt": "one,", "max_new_tokens": 8, "must_match": "^ two", "must_not_contain": "x"}
{"name": "call", "messages": [{"role": "user", "content": "Weather?"}], "max_new_tokens": 22, "chat": true, \
"tools": [{"name": "get", "description": "d", "parameters": {"type": "object", "properties": \
{"city": {"type": "string"}}, "required": ["city"]}}], "must_call": {"name": "get", "arguments": {"city": "x"}}}
{"name": "capital", "prompt": "The capital of France is", "must_contain": ["Paris"], "may_be_empty": false}"""
# A threshold that cannot be measured without a file that is not given: what comes before measuring is run, and no more.
NO_MEASURING = {"golden": "kl_mean <= 1", "other": "golden_pass_rate >= 1"}


def make(seed: int, number: int, folder: Path, bases: Bases) -> Case:
    """Case `number` in the new folder `folder`."""
    rng = generator("files", seed, number)
    folder.mkdir()
    what, build = rng.choice(list(BUILDERS.items()))
    arguments, told = build(folder, rng, bases)
    if rng.random() < 0.5 and what != "synth":
        arguments.append("--json")
    out = Path(arguments[arguments.index("--out") + 1]) if "--out" in arguments else None
    return Case("files", seed, number, f"{what}: {told}", tuple(arguments), out)


def _changed(path: Path, text: str, rng: random.Random, *, is_json: bool = True) -> str:
    """Write `text`, changed, to `path`."""
    draw = rng.random()
    if draw < 0.7 and is_json:
        new, told = change_json(text, rng)
        path.write_bytes(new.encode("utf-8", "surrogatepass"))
    elif draw < 0.92:
        data, told = change_text(text.encode(), rng)
        path.write_bytes(data)
    else:
        path.write_text(text, "utf-8")
        told = change_file(path, rng, path.parent / "outside", also=())
    return told


def _recipe(folder: Path, rng: random.Random, bases: Bases) -> tuple[list[str], str]:
    to = rng.choice(["onnx", "litert"])
    names = sorted(file.name for file in (resources.files("edgepack.quant") / "recipes" / to).iterdir())
    text = (resources.files("edgepack.quant") / "recipes" / to / rng.choice(names)).read_text("utf-8")
    path = folder / "recipe.json"
    told = _changed(path, text, rng)
    arguments = ["plan", str(bases.bare), "--to", to, "--context", str(CONTEXT), "--recipe", str(path)]
    if rng.random() < 0.5:
        arguments[0] = "export"
        arguments += ["--out", str(folder / "out"), "--threads", "1"]
    return arguments, told


def _plan(folder: Path, rng: random.Random, bases: Bases) -> tuple[list[str], str]:
    path = folder / "plan.json"
    told = _changed(path, bases.plan.read_text("utf-8"), rng)
    return ["export", str(bases.bare), "--plan", str(path), "--out", str(folder / "out"), "--threads", "1"], told


def _profile(folder: Path, rng: random.Random, bases: Bases) -> tuple[list[str], str]:
    path = folder / "device.json"
    told = _changed(path, PROFILE, rng)
    return ["plan", str(bases.bare), "--context", str(CONTEXT), "--target", str(path)], told


def _settings(folder: Path, rng: random.Random, bases: Bases) -> tuple[list[str], str]:
    """TOML: a line in another state, or a value of another kind."""
    path, text = folder / "edgepack.toml", SETTINGS
    if rng.random() < 0.7:
        lines = text.splitlines()
        at = rng.randrange(len(lines))
        key = lines[at].partition(" = ")[0]
        value = dumped(strange(rng)) if rng.random() < 0.7 else repr(rng.choice(TEXTS))
        lines[at : at + 1] = rng.choice([[], [lines[at]] * 2, [f"{key} = {value}"], [f"{key}.x = {value}"], [value]])
        told = f"line {at + 1} is {lines[at : at + 1]}"[:100]
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    else:
        told = _changed(path, text, rng, is_json=False)
    if rng.random() < 0.3:
        return ["validate", str(folder / "nothing"), "--config", str(path)], told
    verb = rng.choice(["plan", "export"])
    arguments = [verb, *rng.choice([[], [str(bases.bare)]]), "--config", str(path)]
    return [*arguments, *(["--out", str(folder / "out")] if verb == "export" else [])], told


def _golden(folder: Path, rng: random.Random, bases: Bases) -> tuple[list[str], str]:
    path, lines = folder / "golden.jsonl", GOLDEN.splitlines()
    at = rng.randrange(len(lines))
    if rng.random() < 0.7:
        lines[at], told = change_json(lines[at], rng)
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    else:
        told = _changed(path, "\n".join(lines), rng, is_json=False)
    package = str(bases.packages["onnx int4"])
    return ["validate", package, "--golden", str(path), "--threshold", NO_MEASURING["golden"]], told


def _baseline(folder: Path, rng: random.Random, bases: Bases) -> tuple[list[str], str]:
    path = folder / "report.json"
    told = _changed(path, passing().model_dump_json(), rng)
    package = str(bases.packages["onnx int4"])
    arguments = ["validate", package, "--baseline", str(path), "--threshold", NO_MEASURING["other"]]
    return [*arguments, *rng.choice([[], ["--force"]])], told


def _text(folder: Path, rng: random.Random, bases: Bases) -> tuple[list[str], str]:
    path = folder / "text.txt"
    told = _changed(path, "Once upon a time. " * 20, rng, is_json=False)
    package = str(bases.packages["onnx int4"])
    given = ["--text", str(path), "--reference", str(bases.checkpoints["gemma3n"])]
    return ["validate", package, *given, "--threshold", NO_MEASURING["other"]], told


def _synth(folder: Path, rng: random.Random, bases: Bases) -> tuple[list[str], str]:
    path = folder / "config.json"
    source = bases.checkpoints[rng.choice(list(bases.checkpoints))] / "config.json"
    text = source.read_text("utf-8")
    told = _changed(path, re.sub(r"\s+", " ", text), rng)
    return ["synth", "--config", str(path), "--out", str(folder / "out")], told


BUILDERS: dict[str, Callable[[Path, random.Random, Bases], tuple[list[str], str]]] = {
    "recipe": _recipe,
    "plan": _plan,
    "profile": _profile,
    "settings": _settings,
    "golden": _golden,
    "baseline": _baseline,
    "text": _text,
    "synth": _synth,
}
