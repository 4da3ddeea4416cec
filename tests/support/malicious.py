"""Packages as a stranger would make them: consistent in themselves, every sha256 right."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from contextlib import redirect_stderr
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

import pytest

import edgepack
from edgepack.errors import EdgepackError
from edgepack.package.folder import MANIFEST, list_files
from edgepack.system.child import Ended
from edgepack_runtimes import cache


def copied(source: Path, folder: Path) -> Path:
    """A package to spoil."""
    return Path(shutil.copytree(source, folder))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest."""
    data = json.loads((folder / MANIFEST).read_text("utf-8"))
    change(data)
    (folder / MANIFEST).write_text(json.dumps(data), "utf-8")


def seal(folder: Path) -> None:
    """List all files anew, with the sizes and hashes that they have now."""
    files = [entry.model_dump() for entry in list_files(folder, 1)]
    edit(folder, lambda data: data.update(files=files))


def forbid_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a native library gets to see a file; the process that checks a package runs inside this one."""

    def fail(*arguments: Any, **options: Any) -> NoReturn:
        pytest.fail(f"something native was called: {arguments}")

    import ai_edge_litert.compiled_model
    import litert_lm
    import onnxruntime

    import edgepack_runtimes.litert.runtime

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    monkeypatch.setattr(ai_edge_litert.compiled_model.CompiledModel, "from_file", fail)
    monkeypatch.setattr(edgepack_runtimes.litert.runtime.CompiledModel, "from_file", fail)
    monkeypatch.setattr(litert_lm, "Engine", fail)
    monkeypatch.setattr(cache, "run_python", _run_inside)
    monkeypatch.setattr(subprocess, "Popen", fail)


def _run_inside(*arguments: str, **options: Any) -> Ended:
    """What ``python -P -m MODULE ...`` of ours does, here."""
    assert arguments[0] == "-m" and arguments[1].startswith("edgepack_runtimes."), arguments
    with redirect_stderr(StringIO()) as errors:
        code = import_module(arguments[1]).main(arguments[2:])
    return Ended(code, b"", errors.getvalue().strip() if code else None)


def refused(folder: Path, *needles: str, runtime: str | None = None) -> None:
    """`edgepack.load` gives one line that says these things."""
    with pytest.raises(EdgepackError) as caught:
        edgepack.load(folder, runtime=runtime, threads=1)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1000
    for needle in needles:
        assert needle in message, message
