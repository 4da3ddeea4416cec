"""How fast the schemes quantize: million elements per second and thread, and the ratio to the default's scheme.

Usage: python benchmarks/quantize_speed.py [--threads N] [--rows N] [--columns K] [--repeats N] [--json]

Rows of one random matrix are cut into chunks and handed to threads, as the exporter does it. The best of several runs
counts. CPU seconds stand beside wall seconds, because a shared machine makes the wall say little.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepack.model.spec import COMPONENTS
from edgepack.quant import FloatScheme, IntScheme, Storage, load_recipe, quantize

_CHUNK_ELEMENTS = 1 << 21


def main() -> None:
    """Measure every scheme, then print one table or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    weight = np.random.default_rng(0).standard_normal((args.rows, args.columns), dtype=np.float32)
    default, tried = load_recipe("int4").storage("ffn"), storages()
    rows = [measure(storage, weight, args.threads, args.repeats) for storage in tried]
    base = rows[tried.index(default)]["cpu_s"]
    for row in rows:
        row["time_over_default"] = row["cpu_s"] / base
    about = {
        "machine": f"{platform.machine()} {cpu_name()}",
        "threads": args.threads,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "matrix": list(weight.shape),
    }
    print(json.dumps({**about, "results": rows}, indent=1) if args.json else table(about, rows))


def storages() -> list[Storage]:
    """The schemes and roundings worth comparing, the int4 recipe's own among them."""
    found = [Storage(scheme=FloatScheme(dtype="float16"))]
    found += [Storage(scheme=IntScheme(bits=8, block=block)) for block in (128, 32)]
    schemes = [
        IntScheme(bits=4, block=block, zero_point=zero_point) for block in (128, 64, 32) for zero_point in (False, True)
    ]
    for scheme in [*schemes, IntScheme(bits=2, block=32, zero_point=True)]:
        found += [Storage(scheme=scheme), Storage(scheme=scheme, rounding="search")]
    recipe = load_recipe("int4")
    return list(dict.fromkeys([*found, *(recipe.storage(component) for component in COMPONENTS)]))


def measure(storage: Storage, weight: npt.NDArray[np.float32], threads: int, repeats: int) -> dict[str, Any]:
    """Return the best wall and CPU seconds of quantizing `weight` [N, K] in row chunks, and what follows from them."""
    step = max(1, _CHUNK_ELEMENTS // weight.shape[1])
    chunks = [weight[start : start + step] for start in range(0, len(weight), step)]
    walls, cpus = [], []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats + 1):  # the first run warms the allocator
            wall, cpu = time.perf_counter(), time.process_time()
            for _parts in pool.map(lambda chunk: quantize(chunk, storage.scheme, storage.rounding), chunks):
                pass
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    wall_s, cpu_s = min(walls[1:]), min(cpus[1:])
    return {
        "scheme": storage.scheme.name,
        "rounding": storage.rounding,
        "bits_per_weight": storage.scheme.nbytes(weight.shape) * 8 / weight.size,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "wall_melements_per_s": weight.size / wall_s / 1e6,
        "cpu_melements_per_s": weight.size / cpu_s / 1e6,
    }


def table(about: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return the results as text."""
    lines = ["  ".join(f"{key} {value}" for key, value in about.items()), ""]
    lines.append(
        f"{'scheme':<18}{'rounding':<10}{'bits/weight':>12}{'M el/s':>9}{'M el/CPU-s':>12}{'CPU / default':>16}"
    )
    lines.extend(
        f"{row['scheme']:<18}{row['rounding']:<10}{row['bits_per_weight']:>12.3f}"
        f"{row['wall_melements_per_s']:>9.0f}{row['cpu_melements_per_s']:>12.0f}{row['time_over_default']:>16.2f}"
        for row in rows
    )
    return "\n".join(lines)


def cpu_name() -> str:
    """Return the model name of the processor where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
