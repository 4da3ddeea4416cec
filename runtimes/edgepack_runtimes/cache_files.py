"""Entries of the cache as folders: what makes one whole, who owns it, who uses it, and how it is taken away.

Two kinds of locks, both of the kernel (`flock`), so that a process that is killed holds none. The lock of the folder is
held for moments, by whoever renames an entry or writes its record. The lock of an entry's stamp is shared by all that
have the entry open, and exclusive while it is built.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from edgepack.errors import PackageError
from edgepack.package.folder import MANIFEST
from edgepack.package.trust import MOST_MANIFEST_BYTES, read_regular
from edgepack.reading import loads_object

RECORD, STAMP, FOLDER_LOCK = "entry.json", "used", ".lock"
# The names that edgepack gives to folders: an entry, one that is being built, and one that is being removed. Whatever
# else stands in the cache folder is not ours to remove.
NAME = re.compile(r"(?P<key>[0-9a-f]{32})(?P<passing>\.partial|\.old-[0-9a-f]{32})?")
# Pages of a file that are compared with what was written: a checksum of 2 GB would cost more time than the load itself.
SAMPLES, SAMPLE_BYTES = 64, 4096
Stamps = dict[str, list[int | str]]


@dataclass(frozen=True, slots=True)
class Record:
    """What an entry was made of.

    Attributes:
        owners: folders of the packages that use it, and the fingerprints that they had when they were checked.
        runtime: the runtime that reads it.
        sources: the files of the package that were packed, and their sha256.
        files: size, modification time and a checksum of sampled pages of every file of the entry.
    """

    owners: Mapping[str, str]
    runtime: str
    sources: Mapping[str, str]
    files: Stamps

    def living_owners(self) -> dict[str, str]:
        """The packages that are still there, and still what was packed."""
        return {owner: seen for owner, seen in self.owners.items() if self._lives(owner)}

    def _lives(self, owner: str) -> bool:
        try:
            listed = loads_object(read_regular(Path(owner, MANIFEST), MOST_MANIFEST_BYTES))["files"]
            found = {file["path"]: file["sha256"] for file in listed}
        except (PackageError, ValueError, TypeError, KeyError):
            return False
        return all(found.get(path) == sha256 for path, sha256 in self.sources.items())


def read_record(entry: Path) -> Record | None:
    """The record of an entry; None where there is none that can be read."""
    try:
        values = loads_object(read_regular(entry / RECORD, MOST_MANIFEST_BYTES))
        owners, sources, files = (dict(values[name]) for name in ("owners", "sources", "files"))
        if not all(isinstance(text, str) for text in (values["runtime"], *owners.values(), *sources.values())):
            return None
        return Record(owners, values["runtime"], sources, files)
    except (PackageError, ValueError, TypeError, KeyError):
        return None


def write_record(entry: Path, record: Record) -> None:
    """Write the record of an entry, whole or not at all."""
    values = {"owners": record.owners, "runtime": record.runtime, "sources": record.sources, "files": record.files}
    renewed = entry / f"{RECORD}.new"
    renewed.write_text(json.dumps(values), encoding="utf-8")
    renewed.replace(entry / RECORD)


def stamps(folder: Path) -> Stamps:
    """Size, modification time and a checksum of sampled pages of every file that was packed."""
    files = [file for file in sorted(folder.iterdir()) if file.name != STAMP and not file.name.startswith(RECORD)]
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


def is_complete(entry: Path) -> bool:
    """Whether all files of an entry are those that its record names."""
    record = read_record(entry)
    try:
        return record is not None and record.files == stamps(entry)
    except OSError:  # another process is replacing it
        return False


def size_bytes(folder: Path) -> int:
    """Bytes of all files of an entry."""
    total = 0
    for file in _listed(folder):
        with suppress(OSError):
            total += file.lstat().st_size
    return total


def our_folders(root: Path) -> list[tuple[Path, re.Match[str]]]:
    """The folders in `root` that edgepack made, by name. A link is not one of them, nor is a folder without a stamp."""
    found = [(path, name) for path in _listed(root) if (name := NAME.fullmatch(path.name))]
    return [
        (path, name)
        for path, name in sorted(found, key=lambda pair: pair[0].name)
        if path.is_dir()
        and not path.is_symlink()
        and (name["passing"] or (path / STAMP).is_file() or (path / RECORD).is_file())
    ]


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


# -- locks


@contextmanager
def folder_lock(root: Path) -> Iterator[None]:
    """Hold the lock of the cache folder, which has to exist.

    Raises:
        OSError: the folder cannot be written, or its file system has no locks.
    """
    descriptor = os.open(root / FOLDER_LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _open_stamp(folder: Path, flags: int = 0) -> int:
    try:
        return os.open(folder / STAMP, os.O_RDWR | flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        return os.open(folder / STAMP, os.O_RDONLY)  # a cache that is read-only here


def is_locked(folder: Path) -> bool:
    """Whether a process has this entry open, or builds it."""
    try:
        descriptor = _open_stamp(folder)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # taken, or a file system that does not tell
        return True
    finally:
        os.close(descriptor)
    return False


class Held:
    """An entry that this process uses: until it is closed, no process of edgepack removes it.

    Attributes:
        path: its folder.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._release = weakref.finalize(self, os.close, descriptor)
        self.touch()

    def touch(self) -> None:
        """Note that it is used now."""
        with suppress(OSError):  # a cache that cannot be written can still be used
            os.utime(self._descriptor)

    def close(self) -> None:
        """Give it up; calling it twice is fine."""
        if self._release.alive:
            self.touch()
        self._release()


def hold(entry: Path) -> Held | None:
    """Hold a complete entry; None where there is none."""
    try:
        descriptor = _open_stamp(entry)
    except OSError:
        return None
    with suppress(OSError):  # a file system without locks: entries are used, and never removed
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    if _is_there(entry, descriptor) and is_complete(entry):
        return Held(entry, descriptor)
    os.close(descriptor)
    return None


def _is_there(folder: Path, descriptor: int) -> bool:
    """Whether the stamp that was opened is still that of `folder`, and not that of one taken away meanwhile."""
    try:
        return os.path.samestat(os.stat(folder / STAMP), os.fstat(descriptor))
    except OSError:
        return False


# -- building and removing


def begin(root: Path, key: str) -> int | None:
    """Make the folder in which the entry `key` is built; the descriptor of its locked stamp.

    Where another process builds it this waits until that one has ended, and returns None.

    Raises:
        OSError: as `folder_lock`.
    """
    partial = partial_folder(root, key)
    with folder_lock(root):
        leftover = take_away(partial) if partial.is_dir() else None
        mine = not partial.is_dir()
        if mine:
            partial.mkdir()
        descriptor = _open_stamp(partial, os.O_CREAT if mine else 0)
        if mine:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    if leftover is not None:
        shutil.rmtree(leftover, ignore_errors=True)
    if mine:
        return descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)
    return None


def partial_folder(root: Path, key: str) -> Path:
    """Where the entry `key` is built."""
    return root / f"{key}.partial"


def finish(root: Path, key: str, descriptor: int, record: Record) -> Held:
    """Make what `begin` began the entry `key`, in place of an older one, whose packages it keeps.

    Raises:
        OSError: as `folder_lock`.
    """
    entry, partial, older = root / key, partial_folder(root, key), None
    with folder_lock(root):
        before = read_record(entry)
        earlier = before.living_owners() if before else {}
        write_record(partial, replace(record, owners={**earlier, **record.owners}))
        if entry.is_dir():
            older = _put_away(entry)  # who has it mapped keeps its bytes
        partial.rename(entry)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _leave_others(root, entry, record)
    if older is not None:
        shutil.rmtree(older, ignore_errors=True)
    return Held(entry, descriptor)


def give_up(root: Path, key: str, descriptor: int) -> None:
    """Remove what `begin` began."""
    with suppress(OSError):
        with folder_lock(root):
            gone = _put_away(partial_folder(root, key))
        shutil.rmtree(gone, ignore_errors=True)
    os.close(descriptor)


def take_away(folder: Path) -> Path | None:
    """Rename an entry that nobody uses, for its removal; None where somebody does. The caller holds the folder's lock.

    Raises:
        OSError: the folder cannot be written, or its file system has no locks.
    """
    try:
        descriptor = _open_stamp(folder)
    except FileNotFoundError:  # so nobody can hold it
        return _put_away(folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _put_away(folder)
    except BlockingIOError:
        return None
    finally:
        os.close(descriptor)


def _put_away(folder: Path) -> Path:
    """Rename a folder to one that is being removed: killed half way, it is still known as that."""
    return folder.rename(folder.with_name(f"{folder.name[:32]}.old-{uuid4().hex}"))


def is_claimed(entry: Path, owner: str, seen: str) -> bool:
    """Whether the package `owner`, with the fingerprint `seen`, was checked and uses `entry`."""
    record = read_record(entry)
    return record is not None and record.owners.get(owner) == seen


def claim(root: Path, entry: Path, owner: str, seen: str) -> None:
    """Note that the package `owner`, checked with the fingerprint `seen`, uses `entry` and no other of its runtime.

    Raises:
        OSError: the folder cannot be written.
    """
    with folder_lock(root):
        record = read_record(entry)
        if record is not None:
            write_record(entry, replace(record, owners={**record.living_owners(), owner: seen}))
            _leave_others(root, entry, replace(record, owners={owner: seen}))


def _leave_others(root: Path, entry: Path, record: Record) -> None:
    """Take the owners of `record` from the other entries of its runtime: a package has one for each runtime."""
    for folder, name in our_folders(root):
        other = None if name["passing"] or folder == entry else read_record(folder)
        if other is None or other.runtime != record.runtime or not record.owners.keys() & other.owners.keys():
            continue
        left = {owner: seen for owner, seen in other.owners.items() if owner not in record.owners}
        write_record(folder, replace(other, owners=left))
