"""Seeds, numbers and tokens for those who write the sampler again (docs/sampling.md): tests/vectors/sampling.json.

python -m tests.support.sampling_vectors writes the file.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from edgepack_runtimes.portable_math import SplitMix64, exp
from edgepack_runtimes.sampling import Sampler, SamplingParams
from tests.support.paths import ROOT

Source = list[float] | dict[str, int]  # logits, or arguments of `made`

FILE = ROOT / "tests" / "vectors" / "sampling.json"
SEEDS = (0, 1, 7, 1234567, 2**63, 2**64 - 1)
# Both sides of every branch, of the scaling, and of the end.
POINTS = (
    *(0.0, -(2.0**-60), -1.5 * 2.0**-53, -(2.0**-28), -1.01 * 2.0**-28, -1e-3, -0.1, -0.3465735, -0.3465735903, -0.35),
    *(-0.6931471805599453, -1.0, -1.0397, -1.04, -2.5, -10.0, -36.7, -100.25, -345.678, -707.999, -708.0),
    *(-708.0000000000001, -745.0, -1e308, -float("inf")),
)
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "seed": 0}
FEW = [0.5, -1.25, 3.0, 3.0, -0.0, 2.75, float("-inf"), 3.0, 1e-3, -30.0]
FLAT = {"seed": 5, "size": 300, "bits": 3, "fraction": 1}  # -2 to 1.5 in steps of a half: ties everywhere
WIDE = {"seed": 6, "size": 20_000, "bits": 24, "fraction": 19}  # -16 to 16
WHOLE = {"seed": 8, "size": 262_144, "bits": 24, "fraction": 20}
# What is drawn from, knobs that are not PLAIN, history, how many tokens.
CASES: tuple[tuple[Source, dict[str, Any], list[int], int], ...] = (
    (FEW, {"temperature": 0.0, "seed": None}, [], 2),
    (FEW, {"temperature": 0.0, "seed": None, "repetition_penalty": 1.1}, [2, 3, 3, 1], 6),
    (FEW, {}, [], 24),
    (FEW, {"temperature": 0.001}, [], 12),
    (FEW, {"temperature": 1e300, "seed": 2}, [], 12),
    (FEW, {"top_k": 1, "seed": 3}, [], 12),  # three are tied
    (FEW, {"top_p": 0.4, "seed": 4}, [], 12),  # two of the three
    (FEW, {"top_p": 1e-9, "seed": 5}, [], 4),  # one
    (FEW, {"top_k": 5, "top_p": 0.9, "repetition_penalty": 1.5, "temperature": 0.7, "seed": 6}, [9, 0], 24),
    (FEW, {"repetition_penalty": 0.6, "seed": 2**64 - 1}, [1], 12),
    ([3.0], {"seed": 1}, [], 2),
    (FLAT, {"seed": 9}, [], 24),
    (FLAT, {"top_k": 50, "seed": 10}, [], 24),
    (FLAT, {"top_p": 0.5, "seed": 11}, [], 24),
    (FLAT, {"top_k": 64, "top_p": 0.95, "temperature": 0.3, "repetition_penalty": 1.3, "seed": 12}, [7, 8], 24),
    (WIDE, {"temperature": 1.7, "seed": 13}, [], 4),
    (WIDE, {"temperature": 40.0, "top_p": 0.8, "seed": 2**63}, [], 4),
    (WIDE, {"top_p": 0.95, "repetition_penalty": 1.2, "seed": 15}, list(range(0, 20_000, 500)), 4),
    (WIDE, {"top_k": 64, "top_p": 0.95, "seed": 16}, [], 8),
    (WHOLE, {"temperature": 2.5, "seed": 17}, [], 1),
    (WHOLE, {"top_p": 0.9, "seed": 18}, [], 1),
)


def main() -> None:
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text(), encoding="utf-8")


def text() -> str:
    """The file: a line for each generator, point and case."""
    parts = {
        "generator": [_generator(seed) for seed in SEEDS],
        "exp": [[_hex("d", x), _hex("d", float(exp(np.array([x]))[0]))] for x in POINTS],
        "cases": [_case(*case) for case in CASES],
    }
    lines = (f'"{key}": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]" for key, rows in parts.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def made(seed: int, size: int, bits: int, fraction: int) -> np.ndarray:
    """float32 [size] logits from whole numbers of `bits` bits, `fraction` of them behind the point."""
    generator = SplitMix64(seed)
    wholes = [(generator.next_word() >> 64 - bits) - 2 ** (bits - 1) for _ in range(size)]
    return np.array(wholes, np.float32) / np.float32(2**fraction)


def _generator(seed: int) -> dict[str, Any]:
    words, floats = SplitMix64(seed), SplitMix64(seed)
    return {
        "seed": f"{seed:016x}",
        "words": [f"{words.next_word():016x}" for _ in range(4)],
        "floats": [_hex("d", floats.next_float()) for _ in range(4)],
    }


def _case(source: Source, knobs: dict[str, Any], history: list[int], count: int) -> dict[str, Any]:
    params = SamplingParams(**{**PLAIN, **knobs})
    sampler, seen, tokens = Sampler(params), set(history), []
    logits = made(**source) if isinstance(source, dict) else np.array(source, np.float32)
    for _ in range(count):
        tokens.append(sampler.sample(logits, seen))
        seen.add(tokens[-1])
    seed = None if params.seed is None else f"{params.seed:016x}"
    given = {"made": source} if isinstance(source, dict) else {"logits": [_hex("f", float(x)) for x in logits]}
    return {**given, **params.model_dump(), "seed": seed, "history": history, "tokens": tokens}


def _hex(kind: str, value: float) -> str:
    """The bits of a float32 ("f") or float64 ("d")."""
    return struct.pack(f">{kind}", value).hex()


if __name__ == "__main__":
    main()
