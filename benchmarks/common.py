"""Shared by the benchmarks: the machine line, a memory limit, peak memory of a child, and read bandwidth."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from threading import Thread

import numpy as np

CGROUP = Path("/sys/fs/cgroup/memory")


LIBRARIES = ("onnxruntime", "onnx-ir", "ai-edge-litert", "litert-lm-api", "numpy")
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "asimddp")


def machine(threads: int | None = None) -> str:
    """One line that every figure travels with."""
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    versions = " ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    cores = f"{os.cpu_count()} cores ({threads or os.cpu_count()} threads), {ram:.0f} GB, load {os.getloadavg()[0]:.1f}"
    return f"{cpu()}, {cores}; Python {platform.python_version()} {versions}"


def cpu() -> str:
    """Model of the CPU and those of its features that decide which kernels run."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.replace("\t", "").split(":", 1) for line in reversed(lines) if ":" in line)
    flags = fields.get("flags", fields.get("Features", "")).split()
    name = fields.get("model name", platform.machine()).strip()
    return f"{name} ({', '.join(feature for feature in FEATURES if feature in flags)})"


def read_bandwidth_gb_s(threads: int = 2, size_bytes: int = 1_500_000_000, repeats: int = 5) -> float:
    """Best read bandwidth in GB/s: `threads` threads sum disjoint parts of an array larger than any cache."""
    array = np.ones(size_bytes // 8, np.float64)
    parts = np.array_split(array, threads)
    best = 0.0
    for _ in range(repeats):
        workers = [Thread(target=part.max) for part in parts]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, array.nbytes / (time.perf_counter() - start) / 1e9)
    return best


@contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[Path]:
    """A cgroup v1 memory group with a hard limit; its folder, into whose `cgroup.procs` a process is written."""
    group = CGROUP / f"edgepack.{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
        yield group
    finally:
        for _ in range(50):
            try:
                (group / "memory.force_empty").write_text("0")
                group.rmdir()
                break
            except OSError:
                time.sleep(0.1)


def drop_page_cache(folder: Path) -> None:
    """Forget the cached pages of every file below `folder`: the page cache is charged to whoever reads first."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file.resolve(), os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def run_child(
    command: list[str], limit_bytes: int | None = None
) -> tuple[subprocess.CompletedProcess[str], dict[str, float]]:
    """Run `command` in a process of its own, inside a memory cgroup if a limit is given; result and measurements."""
    facts: dict[str, float] = {}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    start = time.perf_counter()
    if limit_bytes is None:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    else:
        with memory_cgroup(limit_bytes) as group:
            script = f'echo $$ > {group}/cgroup.procs && exec "$@"'
            done = subprocess.run(
                ["sh", "-c", script, "sh", *command], capture_output=True, text=True, env=environment, check=False
            )
            facts["cgroup_peak_bytes"] = float((group / "memory.max_usage_in_bytes").read_text())
    facts["wall_s"] = time.perf_counter() - start
    return done, facts


def parser(description: str | None) -> argparse.ArgumentParser:
    """Argument parser with the benchmark's own docstring as its help."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
