"""What a runtime makes of a package on its first load, kept in a user cache folder.

Runtimes repack weights for the CPU at hand, by default into anonymous memory and at every load. Kept as files that are
mapped, the packed weights are file-backed. They fit one version of one runtime on one kind of CPU, so they are a cache,
keyed by these and by the content of the files that are packed, never the package itself.

An entry is a folder of that key. A process of its own fills it, so that what packing needs does not count as memory of
the process that runs the model.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from edgepack.errors import PackageError
from edgepack.package.folder import FileEntry, Package
from edgepack.system.child import run_python
from edgepack.user_folders import home_folder, private_temporary_folder, require_utf8
from edgepack.values import Frozen
from edgepack_runtimes.cache_files import (
    STAMP,
    Held,
    Record,
    begin,
    claim,
    finish,
    give_up,
    hold,
    is_claimed,
    partial_folder,
    stamps,
)
from edgepack_runtimes.cache_fill import REFUSED
from edgepack_runtimes.cache_prune import limit_bytes, prune

CACHE_VARIABLE = "EDGEPACK_CACHE"
# With less room than this on its disk nothing is packed, and a library that ends without a word ended for that.
ROOM_BYTES = 1 << 20
# Part of every key: a higher one makes all entries anew, for another layout or for stricter checks of graphs.
FORMAT = 9


def cache_root() -> Path:
    """Folder of all cached entries: ``$EDGEPACK_CACHE``, else the user's cache folder, else one in the temporary one.

    Raises:
        EdgepackError: there is no place for it, or its name is not UTF-8, which no runtime opens.
    """
    root = _chosen_root()
    require_utf8(root, f"the cache folder (of {CACHE_VARIABLE}, else of the user)")
    return root


def _chosen_root() -> Path:
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    if sys.platform != "darwin" and (shared := os.environ.get("XDG_CACHE_HOME")):
        return Path(shared) / "edgepack"
    home = home_folder()
    if home is None:
        return private_temporary_folder("edgepack-cache", variable=CACHE_VARIABLE)
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "edgepack"


def cpu_identity() -> str:
    """What packing depends on: architecture, model and instruction set of this CPU."""
    parts = [platform.machine()]
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "flags", "Features", "CPU part")) and line not in parts:
                parts.append(line)
    except OSError:  # not Linux
        parts.append(platform.processor())  # starts a process, uname
    return "\n".join(parts)


class CacheSpec(Frozen):
    """What one runtime keeps.

    Attributes:
        runtime: its name: entries of other runtimes for the same package stay.
        version: of the library that packs, and whatever else the packed bytes depend on.
        files: those of the package that are packed.
        command: arguments of Python for the process that checks and packs: see `edgepack_runtimes.cache_fill`.
    """

    runtime: str
    version: str
    files: tuple[str, ...]
    command: tuple[str, ...]

    def sources(self, package: Package) -> list[FileEntry]:
        """The files that are packed, as the manifest lists them."""
        return [entry for entry in package.manifest.files if entry.path in self.files]


def entry_key(package: Package, spec: CacheSpec) -> str:
    """Key of the entry that fits what is packed of this package, this runtime and this CPU."""
    packed = [f"{entry.path} {entry.size_bytes} {entry.sha256}" for entry in spec.sources(package)]
    lines = [str(FORMAT), f"{spec.runtime} {spec.version}", *packed, cpu_identity()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def cached_entry(package: Package, spec: CacheSpec, *, rebuild: bool = False) -> Held:
    """Return the entry of `package`, building it first where there is none or `rebuild` asks for it.

    The entry knows which packages were hashed and checked, as they were then: another one, or one that was changed
    since, is looked at again before it uses the entry. It stays as long as the caller holds it. Whenever one is built,
    entries beyond the limit are removed.

    Raises:
        PackageError: the entry cannot be built or written, or the package is not what its manifest says.
        EdgepackError: the limit of the cache is not understood.
    """
    root, key = cache_root(), entry_key(package, spec)
    limit = limit_bytes(root)
    owner, seen = str(package.path.resolve()), package.fingerprint()
    found = None if rebuild else hold(root / key)
    held = found or _built(root, key, package, spec, seen, rebuild)
    try:
        known = is_claimed(held.path, owner, seen)
        if not known:
            _run(package, spec, seen)
        with suppress(OSError):  # a cache that cannot be written can still be used
            if not known:
                claim(root, held.path, owner, seen)
            if not known or found is None:
                prune(root, limit=limit)
    except BaseException:
        held.close()
        raise
    return held


def _built(root: Path, key: str, package: Package, spec: CacheSpec, seen: str, rebuild: bool) -> Held:
    """Build an entry, or wait for the process that does."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        while (descriptor := begin(root, key)) is None:
            if not rebuild and (held := hold(root / key)):
                return held
        try:
            if not rebuild and (held := hold(root / key)):  # built between the look and the lock
                give_up(root, key, descriptor)
                return held
            return finish(root, key, descriptor, _fill(partial_folder(root, key), package, spec, seen, descriptor))
        except BaseException:
            give_up(root, key, descriptor)
            raise
    except OSError as error:
        raise PackageError(
            f"cache {root} cannot be written: {error.strerror}; free some space or set {CACHE_VARIABLE}"
        ) from error


def _fill(partial: Path, package: Package, spec: CacheSpec, seen: str, descriptor: int) -> Record:
    """Pack into the folder `partial`, whose lock `descriptor` holds."""
    # With the lock in it: if this process is killed, nobody takes the folder over while the other still writes.
    _run(package, spec, seen, partial, (descriptor,))
    for file in partial.iterdir():
        if file.name != STAMP:
            _flush(file)
    owners, hashes = {str(package.path.resolve()): seen}, {entry.path: entry.sha256 for entry in spec.sources(package)}
    return Record(owners, spec.runtime, hashes, stamps(partial))


def _run(
    package: Package, spec: CacheSpec, seen: str, folder: Path | None = None, descriptors: tuple[int, ...] = ()
) -> None:
    """Hash and check all of `package`, and pack it into `folder` where there is one, in a process of its own.

    Raises:
        PackageError: the package is not what its manifest says, or cannot be packed.
    """
    places = [str(package.path), seen, *([str(folder)] if folder else [])]
    ended = run_python(*spec.command, *places, files=descriptors)
    if (reason := ended.problem) is None:
        return
    if ended.code == REFUSED:
        raise PackageError(reason)
    place = ""
    if folder and ("space left" in reason or shutil.disk_usage(folder).free < ROOM_BYTES):  # some libraries just end
        place = f"; the disk of the cache {folder.parent} is full: free some space or set {CACHE_VARIABLE}"
    what = "weights cannot be prepacked" if folder else "it cannot be checked"
    raise PackageError(f"{package.path}: {what}: {reason}{place}")


def _flush(file: Path) -> None:
    """Wait until `file` is on disk: after a power cut an entry must not have its full size and no content."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
