"""What `validate` costs the process that it measures: time and memory, against the same run that nobody watches.

    python benchmarks/validate_overhead.py PACKAGE --runs 5

The bare child loads the package, prefills and decodes as the worker does; both run in turn, and the medians are
compared as ratios. Asked for: under 1 % of time, under 20 MB.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median

from common import machine, parser, run_child

from edgepack.package import open_package
from edgepack.validation.job import DECODE, Job, Step
from edgepack.validation.supervisor import supervise, worker_command

BARE = """
import json, random, sys, time
import edgepack

folder, runtime, threads, prompt, new = *sys.argv[1:3], *map(int, sys.argv[3:])
with edgepack.load(folder, runtime=runtime, threads=threads) as model:
    chosen = random.Random(0)
    ids = [chosen.randrange(model.vocab_size) for _ in range(prompt)]
    model.reset()
    model.decode(int(model.prefill(ids[:8]).argmax()))
    model.reset()
    start = time.perf_counter()
    logits = model.prefill(ids)
    prefill_ms = 1e3 * (time.perf_counter() - start)
    token, start = int(logits.argmax()), time.perf_counter()
    for _ in range(new):
        token = int(model.decode(token).argmax())
    decode_ms = 1e3 * (time.perf_counter() - start)
    peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([prefill_ms, decode_ms, peak]))
"""


def bare(job: Job) -> list[float]:
    step = job.steps[0]
    numbers = map(str, (job.threads, step.prompt_tokens, job.new_tokens))
    done, _ = run_child([sys.executable, "-c", BARE, job.package, job.runtime, *numbers])
    values: list[float] = json.loads(done.stdout)
    return values


def watched(job: Job) -> list[float]:
    run = supervise(worker_command(), job, timeout_s=1800)
    if run.failure is not None or run.memory.peak_rss_bytes is None:
        raise SystemExit(run.failure)
    prefill_ms = run.figures[job.steps[0].phase]["prefill_ms"]
    return [prefill_ms, sum(run.figures[DECODE]["steps_ms"]), run.memory.peak_rss_bytes]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("package", type=Path)
    arguments.add_argument("--runtime")
    arguments.add_argument("--prompt", type=int, default=128)
    arguments.add_argument("--new", type=int, default=128)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--runs", type=int, default=5)
    chosen = arguments.parse_args()
    plan = open_package(chosen.package).manifest.plan
    job = Job(
        package=str(chosen.package.resolve()),
        runtime=chosen.runtime or plan.backend,
        threads=chosen.threads,
        context_tokens=plan.context_tokens,
        new_tokens=chosen.new,
        steps=(Step(prompt_tokens=chosen.prompt, decode=DECODE),),
    )
    bare(job)  # fills the runtime's cache and the page cache
    pairs = [(bare(job), watched(job)) for _ in range(chosen.runs)]
    print(machine(chosen.threads))
    for index, name in enumerate(("prefill", "decode")):
        ratios = [seen[index] / alone[index] for alone, seen in pairs]
        print(f"{name}: watched / bare {median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f})")
    more = [seen[2] - alone[2] for alone, seen in pairs]
    print(f"peak RSS: watched - bare {median(more) / 1e6:+.1f} MB ({min(more) / 1e6:+.1f} to {max(more) / 1e6:+.1f})")


if __name__ == "__main__":
    main()
