"""Validation: run a package in a fresh process and say whether it fits, with the figures that show it.

`run.py` conducts and judges, `supervisor.py` watches the child from outside, `worker.py` is that child, `memory.py`
reads the resident set of a process, `job.py` and `report.py` are what goes in and what comes out.
"""

from __future__ import annotations

from edgepack.validation.report import Report
from edgepack.validation.run import validate

__all__ = ["Report", "validate"]
