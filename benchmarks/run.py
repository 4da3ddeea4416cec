"""Run a package: load, prefill and decode speed, peak RSS and its split; free and inside a memory cgroup.

    python benchmarks/run.py /tmp/e2b-int4 --prompt 1024 --new 128 --limit 2000000000
    python benchmarks/run.py /tmp/e2b-litert --runtime litert-lm --prompt 1024 --new 128

Decode is also given as a share of the roofline: bytes read per token x tokens per second / read bandwidth.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from common import drop_page_cache, machine, parser, read_bandwidth_gb_s, run_child

import edgepack
from edgepack.package.folder import open_package
from edgepack.planning.memory import kv_bytes
from edgepack.planning.plan import Plan
from edgepack.planning.planner import replan
from edgepack.planning.runtime_costs import RUNTIME_COSTS
from edgepack_runtimes.cache import cache_root

CHILD = """
import json, sys, time
import numpy as np
import edgepack

def memory():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    return {key: int(lines[key].split()[0]) * 1024 for key in ("VmHWM", "RssAnon", "RssFile")}

folder, runtime, prompt, new, threads = *sys.argv[1:3], *map(int, sys.argv[3:6])
facts = {}
start = time.perf_counter()
model = edgepack.load(folder, runtime=runtime, threads=threads or None)
facts["load_s"] = time.perf_counter() - start
if runtime == "litert-lm":
    text, rates = model.prompt_of(prompt), []
    for _ in range(3):
        answer = model.generate_text(text, max_new_tokens=new)
        next(answer, None)
        rates.append(answer.stats.prefill_tokens_per_s)
        facts["prefill"] = memory()
        for _ in answer:
            pass
    facts["prompt"], facts["prefill_tok_s"] = answer.stats.prompt_tokens, float(np.median(rates))
    facts["decode_tok_s"], facts["decode"] = answer.stats.decode_tokens_per_s, memory()
    print(json.dumps(facts))
    sys.exit()
ids = np.random.default_rng(0).integers(3, model.vocab_size, size=prompt).tolist()
model.prefill(ids[: min(8, prompt)])
rates = []
for _ in range(3):
    model.reset()
    start = time.perf_counter()
    logits = model.prefill(ids)
    rates.append(prompt / (time.perf_counter() - start))
facts["prefill_tok_s"] = float(np.median(rates))
facts["prefill"] = memory()
steps = []
for _ in range(new):
    token = int(logits.argmax())
    start = time.perf_counter()
    logits = model.decode(token)
    steps.append(time.perf_counter() - start)
facts["decode_tok_s"] = 1 / float(np.median(steps))
facts["decode"] = memory()
print(json.dumps(facts))
"""


def traffic_bytes(plan: Plan, tokens: int) -> int:
    """Bytes that a decode step behind `tokens` reads: weights as repacked, and the filled part of the caches."""
    costs = RUNTIME_COSTS[plan.runtime]
    slack = costs.window_slack_tokens
    planned, filled = (kv_bytes(plan.spec, count, slack) for count in (plan.context_tokens, tokens))
    if costs.whole_caches:
        filled = planned
    weights = plan.read_per_token_bytes - planned["sliding"] - planned["full"] // 2
    return weights + sum(filled.values())


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("package", type=Path)
    arguments.add_argument("--prompt", type=int, default=1024)
    arguments.add_argument("--new", type=int, default=64)
    arguments.add_argument("--runtime")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--limit", type=int, help="also run inside a memory cgroup of this many bytes")
    chosen = arguments.parse_args()
    package = open_package(chosen.package)
    plan = replan(package.manifest.plan, runtime=chosen.runtime)
    runtime = plan.runtime
    edgepack.load(chosen.package, runtime=runtime).close()  # the first load fills the cache
    print(machine(chosen.threads))
    per_token = traffic_bytes(plan, chosen.prompt + chosen.new // 2)
    print(f"a decode step reads {per_token / 1e9:.3f} GB; the read bandwidth is measured before and after each run")
    for limit in [None] * chosen.runs + ([chosen.limit] if chosen.limit else []):
        before = read_bandwidth_gb_s(chosen.threads)
        if limit:
            drop_page_cache(chosen.package)
            drop_page_cache(cache_root())
        sizes = map(str, (chosen.prompt, chosen.new, chosen.threads))
        done, facts = run_child([sys.executable, "-c", CHILD, str(chosen.package), runtime, *sizes], limit)
        where = f"{runtime}, cgroup {limit}" if limit else f"{runtime}, free"
        if done.returncode:
            print(f"{where}: exit {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
            continue
        bandwidth = (before + read_bandwidth_gb_s(chosen.threads)) / 2
        report(where, json.loads(done.stdout), bandwidth, per_token, facts)
    total, anonymous = plan.total_bytes / 1e9, plan.anonymous_bytes / 1e9
    print(f"planned for {plan.context_tokens} tokens: {total:.3f} GB, {anonymous:.3f} GB of it anonymous")


def report(where: str, values: dict[str, Any], bandwidth: float, per_token: float, facts: dict[str, float]) -> None:
    """Print one run."""
    share = values["decode_tok_s"] * per_token / 1e9 / bandwidth
    peak = values["decode"]
    print(
        f"{where}: load {values['load_s']:.2f} s, prefill {values['prefill_tok_s']:.1f} tok/s, "
        f"decode {values['decode_tok_s']:.2f} tok/s ({share:.0%} of {bandwidth:.1f} GB/s); "
        f"peak RSS {peak['VmHWM'] / 1e9:.3f} GB; at the end {peak['RssAnon'] / 1e9:.3f} GB anonymous, "
        f"{peak['RssFile'] / 1e9:.3f} GB file-backed"
        + (f"; cgroup peak {facts['cgroup_peak_bytes'] / 1e9:.3f} GB" if "cgroup_peak_bytes" in facts else "")
    )


if __name__ == "__main__":
    main()
