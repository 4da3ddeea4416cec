"""A package on disk: written whole or not at all, and checked when it is opened.

Layout: see docs/architecture.md. The manifest names every file with its size and sha256.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from edgepack.atomic_write import whole_folder
from edgepack.checkpoint.kind import what_is_in
from edgepack.errors import PackageError
from edgepack.package.trust import (
    MOST_MANIFEST_BYTES,
    check_file,
    check_list,
    check_plan_numbers,
    is_inside,
    read_regular,
)
from edgepack.planning.plan import Plan
from edgepack.reading import read_document
from edgepack.shown import printable, shown
from edgepack.system.threads import available_cores
from edgepack.text.overlap import Sketch
from edgepack.values import Frozen

MANIFEST = "manifest.json"
HASH_BLOCK_BYTES = 1 << 20
# Larger files are weights and tokenizers: to hash them takes longer than to load them.
ALWAYS_HASHED_BYTES = 1 << 20
NonNegative = Annotated[int, Field(ge=0)]


class FileEntry(Frozen):
    """One file of a package, by its path relative to the package folder."""

    path: str
    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if not is_inside(path):
            raise ValueError(f"{shown(path)} is not a path inside the package")
        return path


class Source(Frozen):
    """Where the weights came from. A local folder is not named: the same checkpoint gives the same bytes anywhere."""

    repo_id: str | None = None
    revision: str | None = None


class CalibrationSource(Frozen):
    """The calibration that the weights were rounded by.

    Attributes:
        sha256: of the file.
        text: ``builtin``, or the name of the file.
        text_sha256: of its content.
        tokens, sequence_tokens: how many were run, and how many at once.
    """

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    text: str
    text_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    tokens: int = Field(ge=0)
    sequence_tokens: int = Field(ge=0)


class Manifest(Frozen):
    """What a package is, complete enough to run and to check it.

    Attributes:
        calibration: None where the weights were rounded without one.
        calibration_sketch: of the text of the calibration, to find it in the texts of a validation.
        graphs: role of a model file (``embed``, ``decoder``) to its path.
        spans: offset and size in bytes of a model that is a part of its file, by role.
        versions: software that wrote the package.
    """

    schema_version: Literal[1] = 1
    source: Source
    plan: Plan
    calibration: CalibrationSource | None = None
    calibration_sketch: Sketch | None = None
    graphs: dict[str, str]
    spans: dict[str, tuple[NonNegative, NonNegative]] = Field(default_factory=dict)
    versions: dict[str, str]
    files: tuple[FileEntry, ...]

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return [("source", self.source), ("plan", self.plan), ("files", len(self.files))]


@dataclass(frozen=True, slots=True)
class Package:
    """An opened package: its folder and manifest."""

    path: Path
    manifest: Manifest

    def runtime(self, asked: str | None) -> str:
        """The runtime that is `asked` for; by default the one that the package was planned for."""
        return asked or self.manifest.plan.runtime

    def listed(self, role: str) -> str:
        """Path of the graph with this role, as the manifest lists it.

        Raises:
            PackageError: the package has none.
        """
        if role not in self.manifest.graphs:
            known = printable(", ".join(self.manifest.graphs)) or "none"
            raise PackageError(f"{self.path}: no graph {shown(role)}; it has {known}")
        return self.manifest.graphs[role]

    def file(self, role: str) -> Path:
        """Path of the graph with this role. Raises PackageError as `listed`."""
        return self.path / self.listed(role)

    def fingerprint(self) -> str:
        """What this package is, as far as a look tells: its manifest, and the times of the files too large to hash.

        The small ones were compared with the manifest when the package was opened, and the sizes of all.

        Raises:
            PackageError: a file is gone.
        """
        large = [entry.path for entry in self.manifest.files if entry.size_bytes > ALWAYS_HASHED_BYTES]
        try:
            times = [f"{path} {(self.path / path).stat().st_mtime_ns}" for path in large]
        except OSError as error:
            raise PackageError(f"{error.filename} cannot be read: {error.strerror}") from error
        return hashlib.sha256("\n".join([self.manifest.model_dump_json(), *times]).encode()).hexdigest()


def refuse_existing(out: Path, *, overwrite: bool) -> None:
    """Raise `PackageError` if `out` exists and may not be replaced. Only packages and empty folders ever are."""
    if not os.path.exists(out):  # unlike Path.exists it answers for names that the system refuses
        return
    if not os.path.isfile(out / MANIFEST) and not _is_empty_folder(out):
        raise PackageError(f"output {out} exists and is not a package, so it is never replaced; choose another folder")
    if not overwrite:
        raise PackageError(f"output {out} exists; choose another folder or pass --overwrite")
    if os.path.ismount(os.path.realpath(out)):
        raise PackageError(f"output {out} is a mount point, which cannot be replaced; choose a folder inside it")


def _is_empty_folder(path: Path) -> bool:
    try:
        return not os.listdir(path)
    except OSError:  # a file, or a folder that is closed to us
        return False


def package_folder(out: Path, *, overwrite: bool) -> AbstractContextManager[Path]:
    """Give a folder to fill, which becomes `out` on success: see `edgepack.atomic_write.whole_folder`.

    Raises:
        PackageError: `out` exists and `overwrite` is off, or its parent cannot be written.
        EdgepackError: its name is not UTF-8.
    """
    return whole_folder(out, lambda: refuse_existing(out, overwrite=overwrite))


def hash_file(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(HASH_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def hash_files(paths: Collection[Path], threads: int) -> dict[Path, str]:
    """Hex sha256 of every file, in parallel, the largest first: one large file is the work of one thread."""
    by_size = sorted(paths, key=lambda path: -path.stat().st_size)
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(by_size, pool.map(hash_file, by_size), strict=True))


def list_files(folder: Path, threads: int) -> tuple[FileEntry, ...]:
    """Every file under `folder` with size and hash, sorted by path; files are hashed in parallel.

    Raises:
        PackageError: a name is no text, or has control characters, which no manifest takes.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    for path in paths:
        if not is_inside(name := path.relative_to(folder).as_posix()):  # it came with the checkpoint
            raise PackageError(
                f"the file {shown(name)} of the checkpoint has no name for a package: rename or remove it"
            )
    hashes = hash_files(paths, threads)
    return tuple(
        FileEntry(path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size, sha256=hashes[path])
        for path in paths
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest and flush it to disk."""
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(manifest.model_dump_json(indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())


def open_package(path: str | Path, *, verify: bool = False) -> Package:
    """Open a package folder, which may be a stranger's, and check all that can be checked without its formats.

    Every listed file has to be there with its size. Small files, the graphs and texts that decide what a runtime does,
    are compared with their hashes too; with `verify` all files are. Nothing is kept from changing afterwards.

    Raises:
        PackageError: no package, a manifest that is not valid, or a file that is missing, truncated, changed, not a
            file or not inside the folder.
        UnsupportedError: the manifest's plan has lengths that its model cannot have.
    """
    folder = Path(path)
    if not os.path.lexists(folder / MANIFEST):
        raise PackageError(f"{folder} is not a package: {_why_no_package(folder)}")
    content = read_regular(folder / MANIFEST, MOST_MANIFEST_BYTES)
    manifest = read_document(Manifest, content, str(folder / MANIFEST), "export the package again", PackageError)
    listed = {entry.path: entry for entry in manifest.files}
    check_list(folder / MANIFEST, [entry.path for entry in manifest.files])
    root = folder.resolve()
    for entry in manifest.files:
        check_file(root, entry.path, entry.size_bytes)
    for role, graph in manifest.graphs.items():
        if graph not in listed:
            raise PackageError(
                f"{folder / MANIFEST}: graph '{printable(role)}' names {printable(graph)}, which is no file of the "
                "package"
            )
    check_plan_numbers(manifest.plan, folder / MANIFEST, sum(entry.size_bytes for entry in manifest.files))
    check_hashes(root, [e for e in manifest.files if verify or e.size_bytes <= ALWAYS_HASHED_BYTES])
    return Package(folder, manifest)


def _why_no_package(folder: Path) -> str:
    """What a folder without a manifest is, and the way to a package."""
    write = "write one with `edgepack export`"
    if not os.path.lexists(folder):
        return f"no such folder; {write}"
    if not os.path.isdir(folder):
        return f"not a folder; {write}"
    if any(os.path.isfile(folder / name) for name in ("model.safetensors", "model.safetensors.index.json")):
        return f"{MANIFEST} is missing: a checkpoint, and no package yet; {write}"
    return what_is_in(folder) or f"{MANIFEST} is missing; {write}"


def check_hashes(root: Path, entries: Sequence[FileEntry]) -> None:
    """Compare files of the package in `root` with their hashes.

    Raises:
        PackageError: one cannot be read, or was changed.
    """
    try:
        hashes = hash_files([root / entry.path for entry in entries], available_cores())
    except OSError as error:
        raise PackageError(f"{error.filename or root} cannot be read: {error.strerror}") from error
    for entry in entries:
        if hashes[root / entry.path] != entry.sha256:
            raise PackageError(
                f"{root / entry.path} was changed: its sha256 is not the manifest's; export or copy the package again"
            )
