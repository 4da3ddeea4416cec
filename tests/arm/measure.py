"""The logits of packages, on whatever machine this runs: started with ``python -m tests.arm.measure JOBS.json``.

It imports nothing but the product and numpy: the same lines run here and in qemu.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import edgepack


def measure(package: Path, token_ids: Sequence[int], prompt_tokens: int, out: Path) -> None:
    """Write to `out` the logits [S, V] of `token_ids`: of every position, and as a generation meets them."""
    with edgepack.load(package, threads=1) as model:
        every = model.logits(token_ids)
        model.reset()
        steps = [model.prefill(token_ids[:prompt_tokens]), *map(model.decode, token_ids[prompt_tokens:])]
    np.savez(out, every=every, steps=np.stack(steps))


def main() -> None:
    for job in json.loads(Path(sys.argv[1]).read_text("utf-8")):
        measure(Path(job["package"]), job["token_ids"], job["prompt_tokens"], Path(job["out"]))


if __name__ == "__main__":
    main()
