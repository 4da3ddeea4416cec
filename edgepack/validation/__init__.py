"""Validation: run a package in fresh processes and say whether it fits, with the figures that show it.

`run.py` conducts what `request.py` has checked, and `progress.py` tells how far it is. `measure.py` starts the
processes, `supervisor.py` watches each from outside with `memory.py`, behind the limit of `limit.py`; `worker.py` is
that process and `job.py` what it is told. `figures.py` makes metrics of what they did, `quality.py` and `golden.py` ask
what the answers are worth, `thresholds.py`, `baseline.py` and `judge.py` say whether it is good enough, `missing.py`
what broke off before it was known, `advice.py` what to try next, and `result.py` is the report that comes out.
"""
