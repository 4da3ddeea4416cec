"""Mutated checkpoints under `plan`, `inspect` and `export`."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

from tests.fuzz.bases import CONTEXT, Bases
from tests.fuzz.case import Case, generator
from tests.fuzz.mutations import change_bytes, change_file, change_json, change_text, copied

TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
)
TEMPLATES = (
    "{{ messages[0]['content'] }}",
    "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}",
    "{{ undefined_thing.x.y }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ 'x' * 10**9 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ ''.__class__.__mro__ }}",
    "{% include '/etc/passwd' %}",
    "{{ raise_exception('a\nb' * 3000) }}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{{ messages | map(attribute='x') | list | tojson }}",
    "{% if",
    "{{ strftime_now('%Y' * 5000) }}",
    "{{ 1 / 0 }}",
    "{{ messages[99] }}",
    "{{ bos_token + 1 }}",
)


def make(seed: int, number: int, folder: Path, bases: Bases) -> Case:
    """Case `number` in the new folder `folder`."""
    rng = generator("checkpoints", seed, number)
    bare = rng.random() < 0.3
    name = "bare" if bare else rng.choice(list(bases.checkpoints))
    checkpoint = copied(bases.bare if bare else bases.checkpoints[name], folder / "ckpt")
    told = [name, *(_change(checkpoint, rng) for _ in range(rng.choice([1, 1, 1, 1, 2])))]
    arguments, out = _command(checkpoint, rng, quick=bare)
    return Case("checkpoints", seed, number, "; ".join(told), arguments, out)


def _change(checkpoint: Path, rng: random.Random) -> str:
    present = sorted(path.name for path in checkpoint.iterdir() if path.is_file() and not path.is_symlink())
    weights = [name for name in present if name.endswith(".safetensors")]
    documents = [name for name in present if name.endswith(".json")]
    texts = [name for name in present if name in TEXT_FILES]
    draw = rng.random()
    if draw < 0.45 and "config.json" in present:
        return _edit_json(checkpoint / "config.json", rng)
    if draw < 0.6 and weights:
        return _edit_weights(checkpoint / rng.choice(weights), rng)
    if draw < 0.75 and documents:
        return _edit_json(checkpoint / rng.choice(documents), rng)
    if draw < 0.8 and "chat_template.jinja" in present:
        template = rng.choice(TEMPLATES)
        (checkpoint / "chat_template.jinja").write_text(template, "utf-8")
        return f"template {template[:60]!r}"
    if draw < 0.88 and texts:
        path = checkpoint / rng.choice(texts)
        data, done = change_text(path.read_bytes(), rng)
        path.write_bytes(data)
        return f"{path.name}: {done}"
    if draw < 0.96 and present:
        return change_file(checkpoint / rng.choice(present), rng, checkpoint.parent / "outside")
    return _add_file(checkpoint, rng)


def _edit_json(path: Path, rng: random.Random) -> str:
    try:
        text, done = change_json(path.read_text("utf-8"), rng)
    except (ValueError, RecursionError):  # the change before this one
        return "nothing more"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return f"{path.name}: {done}"


def _edit_weights(path: Path, rng: random.Random) -> str:
    """A safetensors file: its header as JSON, its header's bytes, or any byte."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    draw = rng.random()
    if draw < 0.5:
        try:
            text, done = change_json(data[8:end].decode(), rng)
        except (ValueError, RecursionError):
            return "nothing more"
        header = text.encode("utf-8", "surrogatepass")
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])
        return f"{path.name}, header: {done}"
    if draw < 0.7:
        values = data[:end] + rng.choice([b"\xff\xff", b"\x80\x7f", b"\xc0\x7f"]) * ((len(data) - end) // 2)
        if rng.random() < 0.5:
            at = rng.randrange(end, len(data) - 2) // 2 * 2
            values = data[:at] + b"\x80\x7f" + data[at + 2 :]
        path.write_bytes(values)
        return f"{path.name}: values that are no numbers"
    changed, done = change_bytes(data, rng, range(end) if draw < 0.9 else None)
    path.write_bytes(changed)
    return f"{path.name}: {done}"


def _add_file(checkpoint: Path, rng: random.Random) -> str:
    """Files and links that a checkpoint may have besides, under names that a reader looks for."""
    names = ("model.safetensors.index.json", "tokenizer.model", "chat_template.json", "adapter_config.json", "x.gguf")
    names += ("pytorch_model.bin", "processor_config.json", "tokenizer_\udcff.json", "preprocessor_config.json")
    name = rng.choice(names)
    path = checkpoint / name
    if os.path.lexists(path):
        return "nothing more"
    if rng.random() < 0.3:
        path.symlink_to(rng.choice(["/dev/zero", "/etc/passwd", ".", "nothing", name]))
        return f"{name!r} added, a link"
    contents = (b"", b"{}", b"[]", rng.randbytes(300), json.dumps({"weight_map": {}}).encode(), b'{"chat_template": 3}')
    path.write_bytes(rng.choice(contents))
    return f"{name!r} added"


def _command(checkpoint: Path, rng: random.Random, *, quick: bool) -> tuple[tuple[str, ...], Path | None]:
    """A verb that reads checkpoints. The .litertlm of one with a tokenizer takes ten times as long, so it is rare."""
    verb = rng.choice(["plan", "plan", "inspect", "export", "export"])
    arguments, out = [verb, str(checkpoint)], None
    if verb != "inspect":
        to = rng.choice(["onnx", "litert"]) if quick or verb == "plan" else rng.choice(["onnx"] * 9 + ["litert"])
        arguments += ["--to", to, "--recipe", rng.choice(["fp32", "int8", "int4"])]
        if rng.random() < 0.7:
            arguments += ["--context", str(rng.choice([CONTEXT, 8, 100]))]
        if rng.random() < 0.3:
            arguments += ["--target", rng.choice(["2GB", "1MB", "rpi5"])]
    if verb == "export":
        out = checkpoint.parent / "out"
        arguments += ["--out", str(out), "--threads", "1"]
    if rng.random() < 0.5:
        arguments.append("--json")
    return tuple(arguments), out
