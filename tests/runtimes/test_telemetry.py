"""Nothing that edgepack starts leaves a trace of telemetry in the user's home, whatever the runtime."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgepack
from tests.support.paths import DEMO


@pytest.mark.parametrize("runtime", ["onnx", "litert", "litert-lm"])
def test_a_home_stays_empty(runtime: str, tmp_path: Path) -> None:
    home, package = tmp_path / "home", tmp_path / "package"
    home.mkdir()
    taken = ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "ORT_DISABLE_TELEMETRY")
    environment = {name: value for name, value in os.environ.items() if name not in taken}
    environment |= {"HOME": str(home), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    edgepack.export(DEMO, to=runtime.partition("-")[0], out=package, context=64, threads=1)
    # The first packs in a process of its own, the second does not; `validate` would start the same loads.
    script = (
        "import sys, edgepack\n"
        "for _ in range(2):\n"
        "    with edgepack.load(sys.argv[1], runtime=sys.argv[2], threads=1) as model:\n"
        "        print(''.join(model.generate_text('Once', max_new_tokens=4)))\n"
    )
    command = [sys.executable, "-c", script, str(package), runtime]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 2
    assert [str(path.relative_to(home)) for path in home.rglob("*")] == []
