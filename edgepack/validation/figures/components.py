"""The components of a process's memory, as ``/proc/PID/smaps`` tells them apart, beside the plan's rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgepack.planning.plan import MemoryKind, Plan
from edgepack.planning.runtime_costs import RUNTIME_COSTS
from edgepack.validation.processes.mappings import MappedMemory
from edgepack.validation.result import ComponentComparison

LOOKED_UP = "looked-up rows"
CODE = "runtime, code"
LOADING = "loading"
GRAPH = ("runtime, heap", "runtime, graph")
# Of cache entries: tables that LiteRT opens as models of their own, and files of weights and graphs. Whatever else is
# mapped is code: libraries, Python's modules, locales.
TABLE_FILES = ("embed.tflite",)
WEIGHT_FILES = (".onnx.data", ".tflite", ".xnnpack", ".xnnpack_cache")


def compare_components(
    plan_like: Plan, at_load: MappedMemory | None, at_end: MappedMemory | None, package: Path
) -> tuple[ComponentComparison, ...]:
    """Lay the plan for a run beside what was seen of it.

    The plan is that of the peak, the measurement that of two moments. So what is given back before the end is missing:
    activations that the heap does not keep, most looked-up rows, and all of ``loading``.

    Args:
        plan_like: made for the tokens that the run filled.
        at_load: the process when the model was open.
        at_end: when the last token was there.
        package: the package's folder.
    """
    measured = _file_bytes(at_end, package) if at_end else {}
    resident = {row.name: row for row in plan_like.rows if row.resident_bytes}
    rows_of: dict[str, list[str]] = {"weights": [], LOOKED_UP: [], CODE: []}
    anonymous: list[str] = []
    for name, row in resident.items():
        if row.kind == "anonymous":
            anonymous.append(name)
        elif name != LOADING:
            rows_of[name if name in rows_of else "weights"].append(name)

    def compared(name: str, kind: MemoryKind, rows: list[str], measured_bytes: int | None) -> ComponentComparison:
        planned_bytes = sum(resident[row].resident_bytes for row in rows)
        return ComponentComparison(
            name=name,
            kind=kind,
            rows=tuple(rows),
            planned_bytes=planned_bytes,
            measured_bytes=measured_bytes,
            difference_percent=_difference(planned_bytes, measured_bytes),
        )

    found = [compared(name, "file", rows, measured.get(name)) for name, rows in rows_of.items()]
    found += _anonymous(plan_like, anonymous, at_load, at_end, compared)
    if LOADING in resident:
        found.append(compared(LOADING, "file", [LOADING], None))
    return tuple(found)


def _anonymous(
    plan: Plan,
    rows: list[str],
    at_load: MappedMemory | None,
    at_end: MappedMemory | None,
    compared: Callable[[str, MemoryKind, list[str], int | None], ComponentComparison],
) -> list[ComponentComparison]:
    """Heap after the load and what the run adds to it.

    LiteRT allocates caches, masks and part of the activations when it loads: there the two cannot be told apart.
    """
    end = at_end.anonymous_bytes if at_end else None
    if RUNTIME_COSTS[plan.runtime].whole_caches:
        return [compared("heap, caches and activations", "anonymous", rows, end)]
    start = at_load.anonymous_bytes if at_load else None
    grown = None if start is None or end is None else end - start
    return [
        compared("heap after the load", "anonymous", [row for row in rows if row in GRAPH], start),
        compared("caches and activations", "anonymous", [row for row in rows if row not in GRAPH], grown),
    ]


def _file_bytes(memory: MappedMemory, package: Path) -> dict[str, int]:
    """Resident bytes of files by component.

    Of a package's own files only tables are mapped during a run: products are read from the cache entry. LiteRT-LM maps
    the bundle as a whole; of that, too, what a step touches are rows of the tables.
    """
    folder = package.resolve()
    totals = {"weights": 0, LOOKED_UP: 0, CODE: 0}
    for path, size_bytes in memory.files.items():
        inside = Path(path).is_relative_to(folder)
        name = LOOKED_UP if inside or path.endswith(TABLE_FILES) else "weights" if path.endswith(WEIGHT_FILES) else CODE
        totals[name] += size_bytes
    return totals


def _difference(planned_bytes: int, measured_bytes: int | None) -> float | None:
    if measured_bytes is None or not planned_bytes:
        return None
    return 100.0 * (measured_bytes - planned_bytes) / planned_bytes
