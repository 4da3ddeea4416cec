"""Export a full-size checkpoint: wall, CPU, peak RSS, package size; once more inside a memory cgroup.

edgepack synth --preset gemma-3n-e2b --out /tmp/e2b
python benchmarks/export.py /tmp/e2b --to onnx --limit 1500000000
python benchmarks/export.py /tmp/e2b --to litert --limit 3000000000
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from common import drop_page_cache, machine, parser, run_child

CHILD = """
import json, resource, sys
from edgepack.exporting import export
done = export(sys.argv[1], out=sys.argv[2], recipe=sys.argv[3], threads=int(sys.argv[4]) or None, to=sys.argv[5])
usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
cpu_s = sum(usage.ru_utime + usage.ru_stime for usage in usages)
size = sum(entry.size_bytes for entry in done.package.manifest.files)
print(json.dumps({"cpu_s": cpu_s, "peak_rss_bytes": done.peak_rss_bytes, "size_bytes": size}))
"""


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("checkpoint", type=Path)
    arguments.add_argument("--to", default="onnx")
    arguments.add_argument("--recipe", default="int4")
    arguments.add_argument("--threads", type=int, default=0)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--limit", type=int, help="also run inside a memory cgroup of this many bytes")
    arguments.add_argument("--scratch", type=Path, default=Path("/tmp/edgepack-bench-export"))
    chosen = arguments.parse_args()
    print(machine(chosen.threads))
    for limit in [None] * chosen.runs + ([chosen.limit] if chosen.limit else []):
        shutil.rmtree(chosen.scratch, ignore_errors=True)
        if limit:
            drop_page_cache(chosen.checkpoint)
        else:  # the bar is for a checkpoint in page cache
            for shard in chosen.checkpoint.glob("*.safetensors"):
                with shard.open("rb", buffering=0) as file:
                    while file.read(1 << 24):
                        pass
        command = [
            sys.executable,
            "-c",
            CHILD,
            str(chosen.checkpoint),
            str(chosen.scratch),
            chosen.recipe,
            str(chosen.threads),
            chosen.to,
        ]
        done, facts = run_child(command, limit)
        if done.returncode:
            print(f"limit {limit}: exit {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
            continue
        facts.update(json.loads(done.stdout))
        where = f"cgroup of {limit / 1e9:.2f} GB, cold page cache" if limit else "checkpoint in page cache"
        print(
            f"{where}: wall {facts['wall_s']:.1f} s, CPU {facts['cpu_s']:.1f} s, "
            f"peak RSS {facts['peak_rss_bytes'] / 1e9:.3f} GB, package {facts['size_bytes'] / 1e9:.3f} GB"
            + (f", cgroup peak {facts['cgroup_peak_bytes'] / 1e9:.3f} GB" if limit else "")
        )
    shutil.rmtree(chosen.scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
