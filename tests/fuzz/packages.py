"""Mutated packages under `generate`: every runtime that the package is for."""

from __future__ import annotations

import random
from pathlib import Path

from edgepack.package.folder import MANIFEST
from tests.fuzz.bases import Bases
from tests.fuzz.case import Case, generator
from tests.fuzz.checkpoints import TEMPLATES
from tests.fuzz.mutations import change_bytes, change_file, change_json, change_text, copied
from tests.support.malicious import seal


def make(seed: int, number: int, folder: Path, bases: Bases) -> Case:
    """Case `number` in the new folder `folder`."""
    rng = generator("packages", seed, number)
    name = rng.choice(list(bases.packages))
    package = copied(bases.packages[name], folder / "pkg")
    told = [name, _change(package, rng)]
    # Half of the packages are consistent in themselves: somebody made them so.
    if rng.random() < 0.6 and not told[-1].startswith(MANIFEST) and _seal(package):
        told.append("sealed")
    return Case("packages", seed, number, "; ".join(told), _command(package, name, rng))


def _seal(package: Path) -> bool:
    """List the files anew; not where one of them never ends or cannot be read."""
    if any(path.is_symlink() or not (path.is_file() or path.is_dir()) for path in package.rglob("*")):
        return False
    if any(path.stat().st_size > 1 << 24 for path in package.rglob("*")):
        return False
    seal(package)
    return True


def _change(package: Path, rng: random.Random) -> str:
    files = sorted(path for path in package.rglob("*") if path.is_file() and path.name != MANIFEST)
    models = [path for path in files if path.parent != package]
    texts = [path for path in files if path.parent == package]
    draw = rng.random()
    if draw < 0.25:
        text, done = change_json((package / MANIFEST).read_text("utf-8"), rng)
        (package / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
        return f"{MANIFEST}: {done}"
    if draw < 0.6:
        return _edit_model(rng.choice(models), rng)
    if draw < 0.75:
        path = rng.choice([path for path in texts if path.suffix == ".json"])
        text, done = change_json(path.read_text("utf-8"), rng)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        return f"{path.name}: {done}"
    if draw < 0.8:
        template = rng.choice(TEMPLATES)
        (package / "chat_template.jinja").write_text(template, "utf-8")
        return f"template {template[:60]!r}"
    if draw < 0.88:
        path = rng.choice([*texts, package / MANIFEST])
        data, done = change_text(path.read_bytes(), rng)
        path.write_bytes(data)
        return f"{path.name}: {done}"
    if draw < 0.96:
        return change_file(rng.choice([*files, package / MANIFEST]), rng, package.parent / "outside")
    name = rng.choice(["tokenizer.model", "chat_template.json", "onnx/extra.onnx_data", "litert/x", "__init__.py"])
    path = package / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(rng.choice([b"", b"{}", rng.randbytes(100)]))
    return f"{name} added"


def _edit_model(path: Path, rng: random.Random) -> str:
    """Bytes of a graph, of weights or of a bundle; mostly near its beginning, where structures stand."""
    data, done = path.read_bytes(), []
    for _ in range(rng.choice([1, 1, 2, 5])):
        head = range(min(len(data), rng.choice([64, 1_000, 60_000]))) if rng.random() < 0.6 else None
        data, words = change_bytes(data, rng, head)
        done.append(words)
    path.write_bytes(data)
    return f"{path.name}: {'; '.join(done)}"


def _command(package: Path, name: str, rng: random.Random) -> tuple[str, ...]:
    arguments = ["generate", str(package), "--max-new-tokens", "2", "--threads", "1"]
    if name.startswith("litert") and rng.random() < 0.4:
        arguments += ["--runtime", "litert-lm"]
    prompts = (["--prompt", "the fox"], ["--prompt", "Hi", "--chat"], ["--token-ids", "2,7,9"])
    arguments += rng.choice(prompts)
    if rng.random() < 0.5:
        arguments.append("--json")
    return tuple(arguments)
