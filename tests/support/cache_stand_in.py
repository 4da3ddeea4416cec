"""A stand-in for what runtimes pack: some bytes, which a process of its own writes, as for every runtime."""

from __future__ import annotations

import os
from pathlib import Path

from edgepack.package.folder import MANIFEST, Package
from edgepack_runtimes import cache_files
from edgepack_runtimes.cache import CacheSpec, cached_entry


def spec(runtime: str, size: int = 1000, *, before: str = "", version: str = "1") -> CacheSpec:
    """A runtime whose packed weights are `size` bytes, and whose process does something before it writes them."""
    # Without a folder it is asked to check and not to pack.
    check = "import pathlib, sys, time, os\nif len(sys.argv) < 4: sys.exit()\n"
    script = f"{check}{before}\npathlib.Path(sys.argv[3], 'w').write_bytes(bytes({size}))"
    return CacheSpec(runtime=runtime, version=version, files=("config.json",), command=("-c", script))


def build(package: Package, runtime: str, size: int = 1000, *, used_s: float | None = None) -> Path:
    held = cached_entry(package, spec(runtime, size))
    held.close()
    if used_s is not None:
        os.utime(held.path / cache_files.STAMP, (used_s, used_s))
    return held.path


def copied(package: Package, folder: Path) -> Package:
    """Only what the stand-in packs and the manifest: enough to be an owner."""
    folder.mkdir()
    for name in ("config.json", MANIFEST):
        (folder / name).write_bytes((package.path / name).read_bytes())
    return Package(folder, package.manifest)
