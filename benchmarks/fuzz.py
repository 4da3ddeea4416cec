"""Thousands of mutated inputs: no traceback, no exit code 70, no half package, one line for what is not usable.

python benchmarks/fuzz.py [--count 10000] [--seed 0] [--kind packages] [--only NUMBER [--keep DIR]]

A fault is printed with the command that makes its input again; `--keep` leaves the input in a folder.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from common import machine, parser

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.fuzz.bases import make_bases
from tests.fuzz.runner import MAKERS, run_alone, run_cases

# Of 100 cases; packages reach native libraries and take longest.
SHARES = {"checkpoints": 50, "packages": 20, "files": 18, "commands": 12}


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--count", type=int, default=10_000)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--kind", choices=list(MAKERS))
    arguments.add_argument("--only", type=int, help="the number of one case")
    arguments.add_argument("--keep", type=Path, help="with --only: leave its files in this folder")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgepack-fuzz-") as scratch:
        bases = make_bases(Path(scratch))
        if chosen.only is not None:
            kind = chosen.kind or arguments.error("--only needs --kind")
            case = MAKERS[kind](chosen.seed, chosen.only, chosen.keep or bases.scratch / "case", bases)
            result = run_alone(case.arguments, chosen.keep or bases.scratch / "case", bases.scratch)
            print(case, result.output.decode(errors="replace"), result.errors.decode(errors="replace"), sep="\n")
            print(f"exit code {result.code}")
            return 0
        print(machine(1), flush=True)
        begin, failed, codes, seconds = time.monotonic(), 0, Counter[tuple[str, str]](), {}
        for kind in [chosen.kind] if chosen.kind else MAKERS:
            count = chosen.count if chosen.kind else chosen.count * SHARES[kind] // 100
            outcome = run_cases(kind, chosen.seed, range(count), bases, lambda line: print(line, flush=True))
            codes += outcome.codes
            failed += len(outcome.faults)
            seconds[kind] = sum(outcome.seconds.values())
            slowest = sorted(outcome.seconds.items(), key=lambda item: -item[1])[:3]
            print(f"slowest of {kind}: {', '.join(f'{number} ({took:.1f} s)' for number, took in slowest)}", flush=True)
    _print_table(codes, seconds)
    print(f"{codes.total():,} inputs in {time.monotonic() - begin:.0f} s, seed {chosen.seed}: {failed} with faults")
    return int(failed > 0)


def _print_table(codes: Counter[tuple[str, str]], seconds: dict[str, float]) -> None:
    endings = sorted({ending for _, ending in codes})
    print(f"\n| kind | inputs | {' | '.join(endings)} | s |")
    print("|---" * (len(endings) + 3) + "|")
    for kind, took in seconds.items():
        numbers = [codes[kind, ending] for ending in endings]
        print(f"| {kind} | {sum(numbers)} | {' | '.join(map(str, numbers))} | {took:.0f} |")


if __name__ == "__main__":
    sys.exit(main())
