"""How many threads may be asked for: no more than there are cores to run them; and how many a product gets."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

from edgepack.errors import EdgepackError
from edgepack.shown import shown


def available_cores() -> int:
    """Logical cores on which this process may run; a control group may give less than all of their time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_blas_thread() -> AbstractContextManager[object]:
    """Every product of the process gets one thread: in which order more of them add depends on how many there are."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(limits=1, user_api="blas")
    return limits


def require_threads(threads: object) -> None:
    """Refuse a number of threads that is no use: more than one a core wait for each other, and figures would be wrong.

    Raises:
        EdgepackError: `threads` is neither None, for all cores, nor a whole number from 1 to the cores there are.
    """
    if threads is None:
        return
    most = available_cores()
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= most:
        cores = "the cores that this process may use" if most > 1 else "there is one core that this process may use"
        expected = f"1 to {most}" if most > 1 else "1"
        raise EdgepackError(f"threads is {shown(threads)}: expected {expected} ({cores}), or none for all of them")
