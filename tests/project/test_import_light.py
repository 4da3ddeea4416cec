"""`import edgepack` loads no framework: planning works on a machine that has none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

FRAMEWORKS = (
    "torch",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "transformers",
    "tensorflow",
    "jax",
    "tokenizers",
    "jinja2",
    "ai_edge_litert",
    "litert_lm",
    "litert_lm_builder",
    "flatbuffers",
    "google.protobuf",
)


def run(script: str) -> str:
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "converters", "runtimes"))
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


CORE = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "edgepack").rglob("*.py")
    if not path.stem.startswith("__")
    and path.parent.name not in ("cli", "report")
    and path.stem not in ("sandbox", "transformers_reference")  # what calls for a framework, in time
)


@pytest.mark.parametrize("modules", [["edgepack"], CORE], ids=["edgepack", "core"])
def test_no_framework_is_loaded(modules: list[str]) -> None:
    script = f"import sys, {', '.join(modules)}\nprint(*(n for n in {FRAMEWORKS} if n in sys.modules))"
    assert run(script).strip() == ""


def test_a_plan_is_made_without_any_framework() -> None:
    script = (
        "import sys\n"
        f"for name in {FRAMEWORKS}:\n"
        "    sys.modules[name] = None\n"
        "from edgepack.planning.planner import make_plan\n"
        "from edgepack.model.families import read_spec\n"
        "from tests.support.specs import E2B, preset_spec\n"
        "print(make_plan(preset_spec(E2B)).fits)\n"
    )
    assert run(script).strip() == "True"


def test_without_the_extras_the_way_out_is_named(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "sys.modules['onnx_ir'] = sys.modules['onnxruntime'] = None\n"
        "import edgepack\n"
        "from edgepack.errors import EdgepackError\n"
        "from edgepack.synth import write_synthetic_checkpoint\n"
        "config = {'model_type': 'gemma3_text', 'vocab_size': 32, 'hidden_size': 32, 'intermediate_size': 32,\n"
        "    'num_hidden_layers': 1, 'num_attention_heads': 1, 'num_key_value_heads': 1, 'head_dim': 32}\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "write_synthetic_checkpoint(config, folder / 'ckpt')\n"
        "try:\n"
        "    edgepack.export(folder / 'ckpt', out=folder / 'out')\n"
        "except EdgepackError as error:\n"
        "    print(error)\n"
        "print(sorted(path.name for path in folder.iterdir()))\n"
    )
    said, left = run(script).splitlines()
    assert said.startswith("onnx_ir is not installed: pip install -c constraints.txt '.[onnx]' in a clone")
    assert left == "['ckpt']"


def test_the_litert_runtimes_and_converter_need_no_torch() -> None:
    script = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = sys.modules['tensorflow'] = sys.modules['jax'] = None\n"
        "import edgepack_runtimes.litert.runtime, edgepack_runtimes.litert_lm.runtime\n"
        "import edgepack_converters.litert.emit\n"
        "print('onnxruntime' in sys.modules)\n"
    )
    assert run(script).strip() == "False"


def test_loading_a_package_imports_nothing_that_validates_or_converts() -> None:
    script = (
        "import sys, edgepack\n"
        "edgepack.load\n"
        "rooms = ('edgepack.validation', 'edgepack.report', 'edgepack.cli', 'edgepack.api', 'edgepack_converters')\n"
        "print(*(name for name in sys.modules if name.startswith(rooms)))\n"
    )
    assert run(script).strip() == ""
