"""Writes gptq_llmcompressor.json: what llm-compressor's GPTQ makes of a small problem, for `tests/quant/test_gptq.py`.

    pip install --no-deps --target DIR llmcompressor==0.14.0.1 compressed-tensors==0.20.0 loguru
    PYTHONPATH=. python -m tests.vectors.make_gptq DIR

Scales and zero points are those of compressed-tensors for the least and largest weight of each group. The packages
above its GPTQ are entered hollow: what they import (datasets, accelerate, ...) has no part in it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
FILE = Path(__file__).with_name("gptq_llmcompressor.json")
ROWS, COLUMNS, POSITIONS, DAMPING = 24, 256, 640, 0.01
# Bits, columns of a group (None: whole rows), zero points.
CASES = ((4, 32, True), (4, 128, True), (4, 32, False), (4, None, False), (2, 32, True))


def problem() -> tuple[FloatArray, FloatArray]:
    """Weights [N, K] and the second moment [K, K] of inputs that are correlated and have outliers."""
    rng = np.random.default_rng(13)
    weight = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    latent = rng.standard_normal((POSITIONS, 48)) @ rng.standard_normal((48, COLUMNS))
    inputs = (latent + 2 * rng.standard_normal((POSITIONS, COLUMNS))) * np.exp(rng.standard_normal(COLUMNS))
    return weight, (inputs.T @ inputs / POSITIONS).astype(np.float32)


def problem_sha256() -> str:
    """Tells a numpy whose generator gives other numbers from a fault of ours."""
    weight, second = problem()
    return hashlib.sha256(weight.tobytes() + np.round(second, 3).tobytes()).hexdigest()


def _quantize_weight(folder: str) -> Any:
    sys.path.insert(0, folder)
    for name in ("llmcompressor", "llmcompressor.modifiers", "llmcompressor.modifiers.gptq"):
        hollow = types.ModuleType(name)
        hollow.__path__ = [str(Path(folder, *name.split(".")))]
        sys.modules[name] = hollow
    from llmcompressor.modifiers.gptq import gptq_quantize

    return gptq_quantize.quantize_weight


def _case(quantize_weight: Any, bits: int, group: int | None, zero_point: bool) -> dict[str, Any]:
    import torch
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams

    shape = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    args = QuantizationArgs(num_bits=bits, symmetric=not zero_point, **shape)
    weight, second = (torch.from_numpy(array) for array in problem())
    grouped = weight.reshape(ROWS, -1, group or COLUMNS)
    scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    zero = zero.to(torch.float32)
    values, _, fallback = quantize_weight(
        weight[None].clone(), second[None].clone(), scale[None], zero[None], None, args, percdamp=DAMPING
    )
    assert not fallback.any()
    steps = values[0].reshape(grouped.shape) / scale[..., None] + zero[..., None]
    codes = steps.round()
    assert (steps - codes).abs().max() < 1e-3
    middle = 1 << bits - 1  # its codes are signed
    return {
        "bits": bits,
        "block": group,
        "zero_point": zero_point,
        "scales": scale.to(torch.float32).numpy().astype("<f4").tobytes().hex(),
        "zero_points": (zero + middle).to(torch.uint8).numpy().tobytes().hex(),
        "codes": "".join(f"{int(code):x}" for code in (codes + middle).flatten()),
    }


def main(folder: str) -> None:
    """Write the file."""
    quantize_weight = _quantize_weight(folder)
    packages = ("llmcompressor", "compressed-tensors", "torch", "numpy")
    document = {
        "made_by": {name: metadata.version(name) for name in packages},
        "damping": DAMPING,
        "problem_sha256": problem_sha256(),
        "cases": [_case(quantize_weight, *case) for case in CASES],
    }
    FILE.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
