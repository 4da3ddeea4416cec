"""What `validate` costs the process that it measures: time and memory, against the same process that nobody watches.

    python benchmarks/validate_overhead.py PACKAGE --runs 5

The bare worker finds every answer of its supervisor on its stdin before it begins. Both run in turn, and the medians
are compared as ratios. Asked for: under 1 % of time, under 20 MB. It has to be the same program: glibc's heap has a low
and a high mode, 20 MB apart in E2B's peak, and which one comes depends on where the heap starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from common import machine, parser

from edgepack.package.folder import open_package
from edgepack.validation.processes.job import DECODE, Step, WorkerJob
from edgepack.validation.processes.supervisor import supervise, worker_command


def bare(job: WorkerJob) -> list[float]:
    """Milliseconds of prefill and of all decode steps, and the peak RSS in bytes, of a worker on its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with tempfile.TemporaryFile() as orders:
        orders.write(job.model_dump_json().encode() + b"\ngo on" * (4 + 2 * len(job.steps)) + b"\n")
        orders.seek(0)
        with subprocess.Popen(worker_command(), stdin=orders, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            told = [json.loads(line) for line in process.stdout]
            _, _, used = os.wait4(process.pid, 0)
            process.returncode = 0
    ended = {message["end"]: message for message in told if "end" in message}
    steps_ms = ended[DECODE]["steps_ms"]
    return [ended[job.steps[0].phase]["prefill_ms"], sum(steps_ms), 1024 * used.ru_maxrss]


def watched(job: WorkerJob) -> list[float]:
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
    job = WorkerJob(
        package=str(chosen.package.resolve()),
        runtime=chosen.runtime or plan.runtime,
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
    lowest = [min(peak[2] for peak in runs) / 1e6 for runs in zip(*pairs, strict=True)]
    print(f"lowest peak RSS: bare {lowest[0]:.1f} MB, watched {lowest[1]:.1f} MB")


if __name__ == "__main__":
    main()
