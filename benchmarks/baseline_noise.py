"""How often a baseline raises a false alarm, and how often it finds what is really slower: repeated draws of a report.

    python benchmarks/baseline_noise.py --draws 5000

Every figure of speed of a report with three lengths of prompt is drawn from a normal distribution, independent of the
others, and judged as `edgepack validate --baseline` judges it. Figures of a real report hang together, so that a false
alarm of one is often that of another: the share of reports with a false alarm is an upper bound. A machine that is
slower as a whole from one validation to the next is another matter: no repetition within a validation shows that.
"""

from __future__ import annotations

import random

from common import parser

from edgepack.validation.metrics import METRICS, Metric, measured
from edgepack.validation.verdict.regression import compare_metric

LENGTHS = (128, 1024, 3840)
ALLOWED_PERCENT = 5.0


def speeds() -> list[str]:
    """The metrics of a report whose noise is not known."""
    found: list[str] = []
    for name, kind in METRICS.items():
        if kind.noise_percent is None and kind.unit in ("ms", "tokens_per_s"):
            found += [f"{name}@{length}" for length in LENGTHS] if kind.by_prompt else [name]
    return found


def draw(chance: random.Random, name: str, runs: int, noise: float, slowdown: float = 1.0) -> Metric:
    """The metric `name` of a machine with `noise` (standard deviation as a share), `slowdown` times as slow as 100."""
    mean = 100 * slowdown if METRICS[name.partition("@")[0]].better == "lower" else 100 / slowdown
    return measured(name, [max(mean * chance.gauss(1, noise), 1e-3) for _ in range(runs)])


def alarms(
    chance: random.Random, names: list[str], runs: int, noise: float, slowdown: float, *, asked: bool = False
) -> int:
    """How many of `names` regress between two reports, the second one `slowdown` times as slow."""
    changes = (
        compare_metric(
            draw(chance, name, runs, noise), draw(chance, name, runs, noise, slowdown), ALLOWED_PERCENT, asked=asked
        )
        for name in names
    )
    return sum(change.regressed is True for change in changes)


def false_alarm_share(draws: int, runs: int, noise: float, *, asked: bool = False, seed: int = 0) -> float:
    """Share of reports of an unchanged package with at least one regression; with `asked` every metric is judged."""
    chance, names = random.Random(seed), speeds()
    return sum(alarms(chance, names, runs, noise, 1.0, asked=asked) > 0 for _ in range(draws)) / draws


def found_share(draws: int, runs: int, noise: float, slowdown: float, seed: int = 0) -> float:
    """Share of reports in which one metric that is `slowdown` times as slow counts as regressed."""
    chance, name = random.Random(seed), ["decode_tokens_per_s"]
    return sum(alarms(chance, name, runs, noise, slowdown) for _ in range(draws)) / draws


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--draws", type=int, default=5000)
    draws = options.parse_args().draws
    judged = [name for name in speeds() if METRICS[name.partition("@")[0]].headline]
    print(f"{draws} draws; judged unasked are {len(judged)} of {len(speeds())} figures of speed: {', '.join(judged)}\n")
    print("| runs a side | noise | false alarm, judged unasked | false alarm, all judged | 1.15 x | 1.3 x | 1.5 x |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for runs in (3, 4, 5, 10):
        for noise in (0.02, 0.05, 0.1):
            shares = [false_alarm_share(draws, runs, noise), false_alarm_share(draws, runs, noise, asked=True)]
            shares += [found_share(draws, runs, noise, slowdown) for slowdown in (1.15, 1.3, 1.5)]
            print(f"| {runs} | {100 * noise:.0f} % | {' | '.join(f'{100 * share:.1f} %' for share in shares)} |")


if __name__ == "__main__":
    main()
