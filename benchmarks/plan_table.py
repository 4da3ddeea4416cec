"""Plan against measurement: packages run in fresh processes that fill their context, peak RSS beside the plan's total.

    python benchmarks/plan_table.py /tmp/e2b-onnx /tmp/e2b-litert --tokens 1024 4096
    python benchmarks/plan_table.py /tmp/demo-onnx --components

A LiteRT package has caches of its whole context from the start: it is compared with the plan of that, so export one for
each context. Of an ONNX package a shorter run is compared with the plan of as many tokens.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from common import machine, parser

import edgepack
from edgepack.package.folder import open_package
from edgepack.planning.plan import Plan
from edgepack.validation.figures.collect import plan_like
from edgepack.validation.figures.components import MappedMemory, compare_components
from edgepack.validation.processes.mappings import read_mappings

NEW_TOKENS = 16
CHILD = """
import random, sys
import edgepack

def wait(phase):
    print(phase, flush=True)
    sys.stdin.readline()

folder, runtime, prompt, new, threads = *sys.argv[1:3], *map(int, sys.argv[3:6])
model = edgepack.load(folder, runtime=runtime, threads=threads)
wait("load")
if runtime == "litert-lm":
    for _ in model.generate_text(model.prompt_of(prompt), max_new_tokens=new):
        pass
else:
    tokens = random.Random(0)
    logits = model.prefill([tokens.randrange(model.vocab_size) for _ in range(prompt)])
    for _ in range(new):
        logits = model.decode(int(logits.argmax()))
wait("end")
"""


@dataclass(frozen=True, slots=True)
class Run:
    """What was seen of a process: its peak RSS in bytes, and its mappings after the load and at the end."""

    peak_bytes: int
    at_load: MappedMemory | None
    at_end: MappedMemory | None


def measure(package: Path, runtime: str, tokens: int, threads: int) -> Run:
    """Run `package` in a fresh process until `tokens` are in its caches."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    sizes = map(str, (tokens - NEW_TOKENS, NEW_TOKENS, threads))
    command = [sys.executable, "-c", CHILD, str(package), runtime, *sizes]
    seen: dict[str, MappedMemory | None] = {}
    peak_bytes = 0
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None and process.stdout is not None  # both are pipes
        for line in process.stdout:
            if line.strip() not in ("load", "end"):
                continue  # what a library prints
            seen[line.strip()] = read_mappings(process.pid)
            peak_bytes = peak_rss_bytes(process.pid)
            process.stdin.write("\n")
            process.stdin.flush()
    if "end" not in seen:
        raise SystemExit(f"{package}: the run ended with exit code {process.returncode}")
    return Run(peak_bytes, seen["load"], seen["end"])


def peak_rss_bytes(pid: int) -> int:
    """The kernel's record of the largest resident set of `pid`."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("packages", type=Path, nargs="+")
    arguments.add_argument("--tokens", type=int, nargs="+", help="tokens to fill; default: the package's context")
    arguments.add_argument("--runtime", help="default: that of the package's backend")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--components", action="store_true", help="print every component too")
    chosen = arguments.parse_args()
    print(machine(chosen.threads))
    print("| package | runtime | recipe | context | filled | planned MB | measured MB | difference |")
    print("|---|---|---|---|---|---|---|---|")
    for folder in chosen.packages:
        plan = open_package(folder).manifest.plan
        runtime = chosen.runtime or plan.runtime
        edgepack.load(folder, runtime=runtime, threads=chosen.threads).close()  # the first load fills the cache
        for tokens in chosen.tokens or [plan.context_tokens]:
            if not NEW_TOKENS < tokens <= plan.context_tokens:
                continue
            like, run = plan_like(plan, tokens, runtime), measure(folder, runtime, tokens, chosen.threads)
            report(folder, like, runtime, tokens, run, components=chosen.components)


def report(folder: Path, like: Plan, runtime: str, tokens: int, run: Run, *, components: bool) -> None:
    """Print one run as a row of the table, and its components as lines below it."""
    planned, measured = like.total_bytes / 1e6, run.peak_bytes / 1e6
    where = f"{folder.name} | {runtime} | {like.recipe.name} | {like.context_tokens} | {tokens}"
    print(f"| {where} | {planned:.1f} | {measured:.1f} | {measured / planned - 1:+.1%} |", flush=True)
    if not components:
        return
    for found in compare_components(like, run.at_load, run.at_end, folder):
        seen = "not seen" if found.measured_bytes is None else f"{found.measured_bytes / 1e6:.1f}"
        print(f"    {found.name} ({found.kind}): planned {found.planned_bytes / 1e6:.1f}, at the end {seen} MB")


if __name__ == "__main__":
    main()
