"""How fast this machine reads its memory: the bound of decode, measured, so that its efficiency can be told.

Read again and again it also tells how quiet the machine is: on a shared one the neighbours use the same memory.

It fills the memory bus: never run it while a worker is being measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from edgepack.values import Frozen

CPU_FOLDER = Path("/sys/devices/system/cpu")
SMALLEST_BUFFER_BYTES = 64 * 2**20
LARGEST_BUFFER_BYTES = 256_000_000
# Virtual machines show a part of their host's cache, or more than they get: read well past what they show.
CACHE_MULTIPLE = 8
MEASURE_S = 0.3
FEWEST_PASSES = 5
_FACTORS = {"K": 2**10, "M": 2**20, "G": 2**30}


class Bandwidth(Frozen):
    """A reading of this machine's memory.

    Attributes:
        bytes_per_s: of the fastest pass: other load on the machine can only slow a pass down.
        lowest_bytes_per_s, median_bytes_per_s: of all passes: the spread, which is wide where others use the machine.
        threads: that read side by side.
        buffer_bytes: memory that they read, once a pass.
        cache_bytes: last-level caches that the system shows; None where it shows none.
    """

    bytes_per_s: float
    lowest_bytes_per_s: float
    median_bytes_per_s: float
    passes: int
    threads: int
    buffer_bytes: int
    cache_bytes: int | None = None

    @property
    def reads_memory(self) -> bool:
        """Whether the buffer is at least twice the cache: else a pass may have read the cache."""
        return self.cache_bytes is None or self.buffer_bytes >= 2 * self.cache_bytes


def measure_bandwidth(threads: int, *, clock: Callable[[], float] = perf_counter) -> Bandwidth:
    """Read a buffer larger than the caches with `threads` threads, again and again; takes about half a second.

    At most 256 MB are allocated, and freed at the end.
    """
    cache_bytes = last_level_cache_bytes()
    size = buffer_bytes(cache_bytes)
    buffer = np.ones(size // 8, np.float64)  # written, so that every page is there
    parts = np.array_split(buffer, threads)
    rates: list[float] = []
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(np.max, parts))  # the threads start here
        begin = clock()
        while len(rates) < FEWEST_PASSES or clock() - begin < MEASURE_S:
            start = clock()
            list(pool.map(np.max, parts))
            rates.append(buffer.nbytes / (clock() - start))
    return Bandwidth(
        bytes_per_s=max(rates),
        lowest_bytes_per_s=min(rates),
        median_bytes_per_s=median(rates),
        passes=len(rates),
        threads=threads,
        buffer_bytes=buffer.nbytes,
        cache_bytes=cache_bytes,
    )


def noise(readings: Sequence[Bandwidth]) -> float:
    """How much faster than the slowest of several readings the fastest was, by their medians: 0 on a quiet machine."""
    rates = [reading.median_bytes_per_s for reading in readings]
    return max(rates) / min(rates) - 1 if rates else 0.0


def buffer_bytes(cache_bytes: int | None) -> int:
    """How much to read: well past the cache, within bounds, whole float64 values."""
    wanted = LARGEST_BUFFER_BYTES if cache_bytes is None else CACHE_MULTIPLE * cache_bytes
    return min(max(wanted, SMALLEST_BUFFER_BYTES), LARGEST_BUFFER_BYTES) // 8 * 8


def last_level_cache_bytes(folder: Path = CPU_FOLDER) -> int | None:
    """All last-level caches of the machine together, each counted once; None where the system does not tell."""
    sizes: dict[tuple[int, str], int] = {}
    for index in folder.glob("cpu[0-9]*/cache/index*"):
        try:
            level = int((index / "level").read_text())
            cpus = (index / "shared_cpu_list").read_text().strip()
            text = (index / "size").read_text().strip()
            sizes[level, cpus] = int(text[:-1]) * _FACTORS[text[-1]]
        except (OSError, ValueError, KeyError, IndexError):
            continue  # boards leave some of these files out
    last = max((level for level, _ in sizes), default=None)
    return sum(size for (level, _), size in sizes.items() if level == last) or None
