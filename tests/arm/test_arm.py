"""The runtimes on ARM: tiny packages exported here give the same logits in qemu, on both cores of Raspberry Pis.

Run by `make test-arm`; skipped where that was not done before.
"""

from __future__ import annotations

import json
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import edgepack
from edgepack.package.folder import open_package
from tests.arm import environment
from tests.arm.environment import CPUS, Cpu
from tests.arm.measure import measure
from tests.arm.tolerances import FLOAT_LOGITS, INT8_RELATIVE, INT8_SEEN
from tests.converters.test_onnx_quantized import with_float_products
from tests.support import tiny
from tests.support.raw_graphs import RawGraphs
from tests.support.tiny import FloatArray, TinyPackages

pytestmark = [
    pytest.mark.slow,  # so `make test` leaves them out where the environment happens to be
    pytest.mark.skipif(not environment.STAMP.is_file(), reason="`make test-arm` sets this up"),
]
PROMPT = 2 * tiny.WINDOW + 1  # longer than a sliding window
IDS = tiny.token_ids(PROMPT + 3)[0].tolist()
CASES = tuple(f"{to}-{recipe}" for to in ("onnx", "litert") for recipe in ("fp32", "int8", "int4"))
QUANTIZED_ONNX = ("onnx-int8", "onnx-int4")
STORY = "Once upon a time, there was"
Logits = dict[str, dict[str, FloatArray]]


def read(folder: Path) -> Logits:
    """By case, then "every" and "steps": see `tests.arm.measure`."""
    return {case: dict(np.load(folder / f"{case}.npz")) for case in CASES}


def relative(got: FloatArray, expected: FloatArray) -> float:
    return float(np.abs(got - expected).mean() / expected.std())


@pytest.fixture(scope="module")
def packages(tiny_packages: TinyPackages) -> dict[str, Path]:
    """A tiny Gemma 3n with all that it has, for both backends, in every recipe."""
    return {case: tiny_packages("shared", case.split("-")[1], to=case.split("-")[0]).package.path for case in CASES}


@pytest.fixture(scope="module")
def here(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Logits:
    """On this machine."""
    folder = tmp_path_factory.mktemp("here")
    for case, path in packages.items():
        measure(path, IDS, PROMPT, folder / f"{case}.npz")
    return read(folder)


@pytest.fixture(scope="module")
def float_products(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, FloatArray]:
    """On this machine, every position, the activations of quantized ONNX packages kept in float32."""
    logits = {}
    for case in QUANTIZED_ONNX:
        package = open_package(packages[case])
        graphs = RawGraphs(package, with_float_products(package, tmp_path_factory.mktemp(case)))
        logits[case] = graphs.logits(np.array([IDS]), [len(IDS)])[0]
    return logits


@pytest.fixture(scope="module", params=CPUS, ids=lambda cpu: cpu.name)
def cpu(request: pytest.FixtureRequest) -> Cpu:
    """One of the cores, all tests of which run before those of the next."""
    chosen: Cpu = request.param
    return chosen


@pytest.fixture(scope="module")
def both(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Logits]:
    """By core: one process each, side by side, which starts one more for each package, to fill its cache."""

    def run(cpu: Cpu) -> Logits:
        folder = folders[cpu.name]
        jobs = [
            {"package": str(path), "token_ids": IDS, "prompt_tokens": PROMPT, "out": str(folder / f"{case}.npz")}
            for case, path in packages.items()
        ]
        (folder / "jobs.json").write_text(json.dumps(jobs), "utf-8")
        done = environment.run(cpu, ["-m", "tests.arm.measure", str(folder / "jobs.json")], folder / "cache")
        assert done.returncode == 0, done.stderr
        return read(folder)

    folders = {cpu.name: tmp_path_factory.mktemp(cpu.name) for cpu in CPUS}
    with ThreadPoolExecutor(len(CPUS)) as pool:
        return dict(zip(folders, pool.map(run, CPUS), strict=True))


@pytest.fixture(scope="module")
def there(cpu: Cpu, both: dict[str, Logits]) -> Logits:
    """On that core."""
    return both[cpu.name]


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_x86(
    cpu: Cpu, case: str, there: Logits, here: Logits, float_products: dict[str, FloatArray]
) -> None:
    for key, got in there[case].items():
        assert np.isfinite(got).all()
        expected = here[case][key]
        if case in QUANTIZED_ONNX and not cpu.has_dot_product:
            # int8 activations are a choice of kernel (accuracy_level 4): this core computes in float32.
            expected = float_products[case] if key == "every" else float_products[case][PROMPT - 1 :]
            np.testing.assert_allclose(got, expected, rtol=0, atol=FLOAT_LOGITS, err_msg=key)
        elif case.endswith("fp32"):
            np.testing.assert_allclose(got, expected, rtol=0, atol=FLOAT_LOGITS, err_msg=key)
        else:
            assert relative(got, expected) < INT8_RELATIVE, key


@pytest.mark.parametrize("case", QUANTIZED_ONNX)
def test_only_a_core_with_dot_product_computes_in_int8(
    cpu: Cpu, case: str, there: Logits, float_products: dict[str, FloatArray]
) -> None:
    assert (relative(there[case]["every"], float_products[case]) > INT8_SEEN) == cpu.has_dot_product


def tell(cpu: Cpu, package: Path, runtime: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """`edgepack generate` on that core."""
    options = ["--runtime", runtime, "--prompt", STORY, "--max-new-tokens", "12"]
    return environment.run(cpu, ["-m", "edgepack.cli.main", "generate", str(package), *options], cache)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model in fp32, by runtime."""
    checkpoint, folder = environment.REPOSITORY / "edgepack/assets/demo", tmp_path_factory.mktemp("demo")
    for to in ("onnx", "litert"):
        edgepack.export(checkpoint, to=to, out=folder / to, recipe="fp32", context=128, threads=1)
    return {"onnx": folder / "onnx", "litert": folder / "litert", "litert-lm": folder / "litert"}


@pytest.mark.parametrize("runtime", ["onnx", "litert", "litert-lm"])
def test_generate_says_the_same_story(cpu: Cpu, runtime: str, demos: dict[str, Path], tmp_path: Path) -> None:
    if runtime == "litert-lm" and not cpu.has_atomics:
        pytest.skip("its one library needs atomics: see test_litert_lm_needs_atomics")
    with edgepack.load(demos[runtime], runtime=runtime, threads=1) as model:
        expected = "".join(model.generate_text(STORY, max_new_tokens=12))
    done = tell(cpu, demos[runtime], runtime, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip("\n") == expected


def test_the_gpu_library_is_there() -> None:
    # Else nothing above says that LiteRT runs beside it on the core that cannot load it.
    assert environment.GPU_LIBRARY.is_file()


def test_litert_lm_needs_atomics(demos: dict[str, Path], tmp_path: Path) -> None:
    [cpu] = [cpu for cpu in CPUS if not cpu.has_atomics]
    done = tell(cpu, demos["litert-lm"], "litert-lm", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: LiteRT-LM needs LSE atomics (Armv8.1)")
    # If this fails, LiteRT-LM has learnt to run there: docs/raspberry-pi.md should say so, and runtimes' arm.py can go.
    code = "import litert_lm as lm; lm.set_min_log_severity(lm.LogSeverity.ERROR)"
    raw = environment.run(cpu, ["-c", code], tmp_path)
    assert raw.returncode == -signal.SIGILL and "compiled with lse enabled" in raw.stderr
