"""What stands in the cache, and what goes: what no package uses, what killed processes left, and the longest unused.

An entry that a process has open is never removed, and nothing that edgepack did not make.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgepack.errors import EdgepackError
from edgepack.units import parse_bytes
from edgepack_runtimes.cache_files import (
    RECORD,
    STAMP,
    folder_lock,
    is_complete,
    is_locked,
    our_folders,
    read_record,
    size_bytes,
    take_away,
)

LIMIT_VARIABLE = "EDGEPACK_CACHE_LIMIT"
# Five packages of Gemma 3n E2B. A small disk (a Raspberry Pi's card) gives a quarter of itself.
DEFAULT_LIMIT_BYTES = 20_000_000_000
DISK_SHARE = 4
NO_LIMIT = frozenset({"0", "none", "off"})
Status = Literal["complete", "stale", "orphan", "building"]


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """An entry as it stands on disk.

    Attributes:
        path: its folder.
        status: complete; stale: whole, and no package that uses it is left; orphan: left by a process that was killed,
            or damaged; building: a process fills it.
        runtime: the runtime that reads it; None where that is not known.
        packages: folders of the packages that use it; of a stale entry those that did.
        size_bytes: of its files.
        used_s: when it was last used, in seconds since 1970.
        in_use: a process has it open.
    """

    path: Path
    status: Status
    runtime: str | None
    packages: tuple[str, ...]
    size_bytes: int
    used_s: float
    in_use: bool


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed, and what would have been if no process had it open."""

    removed: tuple[CacheEntry, ...]
    kept: tuple[CacheEntry, ...]
    left_bytes: int

    @property
    def freed_bytes(self) -> int:
        """Bytes of what was removed."""
        return sum(entry.size_bytes for entry in self.removed)


def limit_bytes(root: Path) -> int | None:
    """Bytes that the cache in `root` may have: ``$EDGEPACK_CACHE_LIMIT``, else 20 GB or a quarter of a smaller disk.

    None: there is no limit.

    Raises:
        EdgepackError: the variable is no size.
    """
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    if text.lower() in NO_LIMIT:
        return None
    if text:
        try:
            return parse_bytes(text)
        except EdgepackError as error:
            raise EdgepackError(f"{LIMIT_VARIABLE}: {error}, or 0 for no limit") from None
    existing = next((folder for folder in (root, *root.parents) if folder.is_dir()), Path("/"))
    try:
        return min(DEFAULT_LIMIT_BYTES, shutil.disk_usage(existing).total // DISK_SHARE)
    except OSError:
        return DEFAULT_LIMIT_BYTES


def list_entries(root: Path) -> list[CacheEntry]:
    """All entries in `root`, the last used first."""
    found = [_entry(path, name["passing"]) for path, name in our_folders(root)]
    return sorted(found, key=lambda entry: (-entry.used_s, entry.path.name))


def _entry(path: Path, passing: str | None) -> CacheEntry:
    record, in_use = read_record(path), is_locked(path)
    packages: tuple[str, ...] = ()
    status: Status = "complete"
    if passing:
        status = "building" if in_use else "orphan"
    elif record is None or not is_complete(path):
        status = "orphan"
    if record is not None:
        packages = tuple(record.living_owners())
        if status == "complete" and not packages:
            packages, status = tuple(record.owners), "stale"
    return CacheEntry(
        path, status, record.runtime if record else None, packages, size_bytes(path), _used_s(path), in_use
    )


def _used_s(path: Path) -> float:
    for file in (path / STAMP, path / RECORD, path):
        with suppress(OSError):
            return file.stat().st_mtime
    return 0.0


def prune(
    root: Path,
    *,
    limit: int | None,
    older_than_s: float | None = None,
    everything: bool = False,
    dry_run: bool = False,
) -> Pruned:
    """Remove stale entries and orphans, and of the others the longest unused until at most `limit` bytes are left.

    Args:
        root: the cache folder.
        limit: bytes; None for no limit.
        older_than_s: also remove what has not been used for so many seconds.
        everything: remove all that no process has open.
        dry_run: only say what would go.

    Raises:
        OSError: the folder cannot be written.
    """
    if not root.is_dir():
        return Pruned((), (), 0)
    if dry_run:
        found = list_entries(root)
        chosen = _choose(found, limit, older_than_s, everything)
        return _pruned(found, chosen, {entry.path for entry in chosen if not entry.in_use})
    with folder_lock(root):
        found = list_entries(root)
        chosen = _choose(found, limit, older_than_s, everything)
        gone = {entry.path: folder for entry in chosen if (folder := take_away(entry.path)) is not None}
    for folder in gone.values():
        shutil.rmtree(folder, ignore_errors=True)
    return _pruned(found, chosen, gone.keys())


def _choose(
    found: Sequence[CacheEntry], limit: int | None, older_than_s: float | None, everything: bool
) -> list[CacheEntry]:
    """What should go, in use or not, but for what is being built."""
    now = time.time()
    chosen: list[CacheEntry] = []
    others: list[CacheEntry] = []
    for entry in found:
        old = older_than_s is not None and now - entry.used_s > older_than_s
        wanted = entry.status in ("stale", "orphan") or everything or old
        (chosen if wanted and entry.status != "building" else others).append(entry)
    left = sum(entry.size_bytes for entry in others) + sum(entry.size_bytes for entry in chosen if entry.in_use)
    for entry in sorted(others, key=lambda entry: entry.used_s):
        if limit is None or left <= limit:
            break
        if entry.in_use:
            continue
        chosen.append(entry)
        left -= entry.size_bytes
    return chosen


def _pruned(found: Sequence[CacheEntry], chosen: Sequence[CacheEntry], gone: Collection[Path]) -> Pruned:
    removed = tuple(entry for entry in chosen if entry.path in gone)
    kept = tuple(entry for entry in chosen if entry.path not in gone)
    return Pruned(removed, kept, sum(entry.size_bytes for entry in found) - sum(e.size_bytes for e in removed))
