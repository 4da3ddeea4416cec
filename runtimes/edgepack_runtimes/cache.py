"""What a runtime makes of a package on its first load, kept in a user cache folder.

Runtimes repack weights for the CPU at hand, by default into anonymous memory and at every load. Kept as files that are
mapped, the packed weights are file-backed. They fit one version of one runtime on one kind of CPU, so they are a cache,
keyed by these and by the package, never the package itself.

An entry is a folder of that key. A process of its own fills it, so that what packing needs does not count as memory of
the process that runs the model.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from edgepack.errors import PackageError
from edgepack.package import MANIFEST, Package, process_is_alive
from edgepack.spec import Frozen
from edgepack.user_folders import home_folder, private_temporary_folder, require_utf8

CACHE_VARIABLE = "EDGEPACK_CACHE"
FORMAT = 7
RECORD = "entry.json"
# The names that this module gives to folders. Whatever else stands in the cache folder is not ours to remove.
ENTRY_NAME = re.compile(r"[0-9a-f]{32}(?:\.partial-(?P<process>\d+))?")
# Pages of a file that are compared with what was written: a checksum of 2 GB would cost more time than the load itself.
SAMPLES, SAMPLE_BYTES = 64, 4096
# Threads of one process would build in the same folder; processes have a folder each.
_BUILDING = threading.Lock()


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
        command: arguments of Python for the process that fills the folder whose path comes last.
    """

    runtime: str
    version: str
    command: tuple[str, ...]


def entry_key(package: Package, spec: CacheSpec) -> str:
    """Key of the entry that fits this package, this runtime and this CPU."""
    digest = hashlib.sha256((package.path / MANIFEST).read_bytes())
    digest.update(f"{FORMAT}\n{spec.runtime} {spec.version}\n{cpu_identity()}".encode())
    return digest.hexdigest()[:32]


def cached_entry(package: Package, spec: CacheSpec, *, rebuild: bool = False) -> Path:
    """Return the entry of `package`, building it first where there is none or `rebuild` asks for it.

    Raises:
        PackageError: the entry cannot be built or written.
    """
    with _BUILDING:
        return _cached_entry(package, spec, rebuild)


def _cached_entry(package: Package, spec: CacheSpec, rebuild: bool) -> Path:
    root = cache_root()
    entry = root / entry_key(package, spec)
    if _complete(entry) and not rebuild:
        _claim(entry, package)
        return entry
    _drop_stale(root, package, spec, entry)
    partial = root / f"{entry.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-P", *spec.command, str(partial)]  # -P: nothing from the folder that the user is in
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise PackageError(f"{package.path}: weights cannot be prepacked: {reason}")
        for file in partial.iterdir():
            _flush(file)
        record = {"package": str(package.path.resolve()), "runtime": spec.runtime, "files": _stamps(partial)}
        (partial / RECORD).write_text(json.dumps(record), encoding="utf-8")
        if rebuild or not _complete(entry):  # another process may have built it meanwhile, and use it already
            shutil.rmtree(entry, ignore_errors=True)
            partial.rename(entry)
    except OSError as error:
        if rebuild or not _complete(entry):
            raise PackageError(
                f"cache {root} cannot be written: {error.strerror}; free some space or set {CACHE_VARIABLE}"
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return entry


def _flush(file: Path) -> None:
    """Wait until `file` is on disk: after a power cut an entry must not have its full size and no content."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _stamps(folder: Path) -> dict[str, list[int | str]]:
    """Size, modification time and a checksum of sampled pages of every file."""
    files = [file for file in sorted(folder.iterdir()) if not file.name.startswith(RECORD)]
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns, _sampled_checksum(file)] for file in files}


def _sampled_checksum(file: Path) -> str:
    """Checksum of pages at even distances; it notices a lost or zeroed stretch, not every flipped bit.

    ONNX Runtime itself compares packed weights with a hash at every load, but nothing that was not packed.
    """
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as opened:
        last = max(0, os.fstat(opened.fileno()).st_size - SAMPLE_BYTES)
        for i in range(SAMPLES):
            digest.update(os.pread(opened.fileno(), SAMPLE_BYTES, last * i // (SAMPLES - 1)))
    return digest.hexdigest()


def _read_record(entry: Path) -> dict[str, object] | None:
    try:
        record = json.loads((entry / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _complete(entry: Path) -> bool:
    record = _read_record(entry)
    try:
        return record is not None and record.get("files") == _stamps(entry)
    except OSError:  # another process is replacing it
        return False


def _claim(entry: Path, package: Package) -> None:
    """Note who uses `entry` now: a copy of a package has its key, and must not lose it when the original is gone."""
    record = _read_record(entry)
    owner = str(package.path.resolve())
    if record is None or record.get("package") == owner:
        return
    renewed = entry / f"{RECORD}.{os.getpid()}"
    try:
        renewed.write_text(json.dumps({**record, "package": owner}), encoding="utf-8")
        renewed.replace(entry / RECORD)
    except OSError:
        renewed.unlink(missing_ok=True)  # a cache that cannot be written can still be used


def _drop_stale(root: Path, package: Package, spec: CacheSpec, current: Path) -> None:
    """Remove this runtime's entries of this package under other keys, those of packages gone, and killed builds."""
    if not root.is_dir():
        return
    for entry in root.iterdir():
        name = ENTRY_NAME.fullmatch(entry.name)
        if name is None or entry == current:
            continue
        if process := name["process"]:
            stale = not process_is_alive(int(process))
        else:
            record = _read_record(entry)
            owner = str(record.get("package")) if record else None
            same = record is not None and (owner, record.get("runtime")) == (str(package.path.resolve()), spec.runtime)
            stale = owner is None or same or not Path(owner, MANIFEST).is_file()
        if stale:
            shutil.rmtree(entry, ignore_errors=True)
