"""LiteRT's GPU library stays out of a process that loads a package: on a Raspberry Pi 4 loading it is the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny import TinyPackages

pytestmark = pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="no /proc")

# In a process of its own: other tests may have loaded LiteRT in theirs, and without us.
SCRIPT = """
import sys
from pathlib import Path
import edgepack
checkpoint, out = sys.argv[1:]
package = edgepack.export(checkpoint, to="litert", out=out, context=64, prefill=[8], threads=1).package
with edgepack.load(package.path, threads=1) as model:
    model.prefill([1, 2, 3])
    maps = Path("/proc/self/maps").read_text("utf-8")
print(*sorted({Path(line.split()[-1]).name for line in maps.splitlines() if "/ai_edge_litert/" in line}))
"""


def test_no_accelerator_is_loaded_with_a_package(tiny_packages: TinyPackages, tmp_path: Path) -> None:
    import ai_edge_litert

    library = Path(ai_edge_litert.__path__[0], "libLiteRtWebGpuAccelerator.so")
    assert library.is_file(), "without it this test says nothing"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "EDGEPACK_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", SCRIPT, str(tiny_packages("shared").checkpoint), str(tmp_path / "package")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert "libpywrap_litert_common.so" in loaded
    assert not [name for name in loaded if "Accelerator" in name]
