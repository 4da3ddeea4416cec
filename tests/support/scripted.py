"""Workers in a few lines: `send` and `wait` speak the protocol, the rest is how they end."""

from __future__ import annotations

import sys

from edgepack.validation.processes.job import WorkerJob
from edgepack.validation.processes.limit import MemoryLimit
from edgepack.validation.processes.protocol import OnPhase
from edgepack.validation.processes.supervisor import NO_LIMIT, WorkerRun, supervise

JOB = WorkerJob(package="pkg", runtime="onnx", threads=1, context_tokens=64, new_tokens=2)
SCRIPT = """
import json, os, signal, subprocess, sys, time
sys.stdin.readline()
def send(**message): print(json.dumps(message), flush=True)
def wait(): return sys.stdin.readline()
send(begin="load")
send(end="load", load_ms=1.5)
wait()
send(begin="prefill 4")
"""


def run_script(
    ending: str, *, timeout_s: float = 30.0, limit: MemoryLimit = NO_LIMIT, on_phase: OnPhase = lambda phase: None
) -> WorkerRun:
    """Supervise a worker that loads, begins its prefill, and then does `ending`."""
    # -S: no site-packages, which would be most of the time and of the memory.
    command = [sys.executable, "-S", "-c", SCRIPT + ending]
    return supervise(command, JOB, timeout_s=timeout_s, limit=limit, on_phase=on_phase)
