"""The folder of a calibration under way: what it was asked for, how far it is, and the hidden states between layers.

It stands beside the file that it becomes, as `<file>.partial`. Every stage ends with one atomic step, so that whatever
ends the process, the same command goes on behind the last whole stage.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.calibration.layout import Header
from edgepack.errors import EdgepackError
from edgepack.reading import read_document, read_user_file
from edgepack.shown import shown
from edgepack.values import FloatArray, Frozen

_LOCK, _JOB, _PROGRESS, _FILE, _SCRATCH = "lock", "job.json", "progress.json", "calibration.safetensors", "scratch"
BEGIN_AGAIN = "--overwrite begins again"


class Job(Frozen):
    """Everything that decides the bytes of a calibration.

    Attributes:
        header: of the file.
        ids_sha256: of all token ids.
        block_columns: columns of a block whose products are summed at once.
        versions: of what computes.
    """

    header: Header
    ids_sha256: str
    block_columns: int
    versions: dict[str, str]


class _Progress(Frozen):
    stages_done: int


class Work:
    """An open folder of work, locked for this process.

    Attributes:
        folder: the folder.
        stages_done: stages of which everything is on the disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.stages_done = folder, 0

    @property
    def file(self) -> Path:
        """The growing calibration file."""
        return self.folder / _FILE

    @property
    def scratch(self) -> Path:
        """A file for one stage, which a resumed run makes anew."""
        return self.folder / _SCRATCH

    def save(self, kind: str, stage: int, sequence: int, values: FloatArray) -> None:
        """Keep an array of one sequence; it is on the disk when this returns."""
        path = self._array(kind, stage, sequence)
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            np.save(file, np.ascontiguousarray(values), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())

    def load(self, kind: str, stage: int, sequence: int) -> FloatArray:
        """The array that `save` was given."""
        values: FloatArray = np.load(self._array(kind, stage, sequence), allow_pickle=False)
        return values

    def _array(self, kind: str, stage: int, sequence: int) -> Path:
        return self.folder / f"{kind}.{stage}" / f"{sequence}.npy"

    def forget(self, kind: str, stage: int) -> None:
        """Remove what `save` was given."""
        shutil.rmtree(self.folder / f"{kind}.{stage}", ignore_errors=True)

    def finish_stage(self) -> None:
        """One stage more is done, in one step."""
        self.stages_done += 1
        _publish(self.folder / _PROGRESS, _Progress(stages_done=self.stages_done))

    def _begin(self, job: Job) -> None:
        for entry in self.folder.iterdir():
            if entry.name == _LOCK:
                continue
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        _publish(self.folder / _JOB, job)

    def _resume(self, job: Job) -> str | None:
        """Go on where `job` was left; what keeps it from that, where something does."""
        way_out = BEGIN_AGAIN
        own = read_document(Job, read_user_file(self.folder / _JOB, "job"), str(self.folder / _JOB), way_out)
        if own != job:
            return _difference(own, job)
        if not self.file.exists():  # killed before its first stage, or behind the last, when the file was in its place
            return None
        progress = self.folder / _PROGRESS
        if progress.exists():
            content = read_user_file(progress, "progress")
            self.stages_done = read_document(_Progress, content, str(progress), way_out).stages_done
        return None


def partial_folder(out: Path) -> Path:
    """Where the work for the file `out` stands."""
    return out.with_name(f"{out.name}.partial")


@contextmanager
def open_work(out: Path, job: Job, *, overwrite: bool) -> Iterator[Work]:
    """The folder of work for the file `out`, begun or resumed; it stays where the body fails, and goes where it ends.

    Raises:
        EdgepackError: another process has it, or it is of another job and may not be overwritten.
        OSError: it cannot be written.
    """
    folder = partial_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        work = Work(folder)
        if not (folder / _JOB).exists():
            work._begin(job)
        else:
            different = _told(work, job, overwrite)
            if different is not None and not overwrite:
                raise EdgepackError(
                    f"{folder}: an unfinished calibration with other settings: {different}; ask for the same to go on "
                    f"with it, or {BEGIN_AGAIN}"
                )
            if different is not None:
                work._begin(job)
        yield work
        shutil.rmtree(folder)


def _told(work: Work, job: Job, overwrite: bool) -> str | None:
    try:
        return work._resume(job)
    except EdgepackError as error:
        if not overwrite:
            raise
        return str(error)


def remove_finished(out: Path) -> None:
    """Remove the folder of a run that was killed when `out` was in its place already.

    Raises:
        OSError: it cannot be removed.
        EdgepackError: another process has it.
    """
    folder = partial_folder(out)
    if (folder / _PROGRESS).exists() and not (folder / _FILE).exists():
        with _locked(folder):
            shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes off `folder`; the lock goes with the process, however it ends."""
    path = folder / _LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise EdgepackError(
                    f"{folder}: another process calibrates into this file: wait for it, or choose another --out"
                ) from error
            if _is_still(path, descriptor):
                yield
                return
        finally:
            os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the opened file stands at `path`: whoever had the lock before may have removed it with the folder."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _publish(path: Path, document: Frozen) -> None:
    partial = path.with_name(f"{path.name}.new")
    with partial.open("w", encoding="utf-8") as file:
        file.write(document.model_dump_json())
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _difference(own: Job, asked: Job) -> str:
    """The first setting that differs, in one line."""
    was, now = _flat(own), _flat(asked)
    name = next(key for key in now if was.get(key) != now[key])
    return f"{name} was {shown(was.get(name))}, now it is {shown(now[name])}"


def _flat(job: Job) -> dict[str, Any]:
    return {**dict(job.header), **{f"version of {k}": v for k, v in job.versions.items()}, **dict(job)}
