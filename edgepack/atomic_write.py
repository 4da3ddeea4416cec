"""Files and folders that are written whole or not at all: a full disk or a signal leaves what was there before."""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgepack.errors import PackageError
from edgepack.shown import printable
from edgepack.user_folders import require_utf8


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8; a link stays, and the file that it leads to is replaced in one step.

    The new file has the permissions of the old one. What nothing can take the place of, such as a pipe, a terminal or a
    file that is mounted by itself, is written where it is.

    Raises:
        OSError: it cannot be written; what stood there before still does.
    """
    try:
        # Asked of the path itself: what /dev/stdout leads to has no name that could be asked for again.
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        path.write_text(text, encoding="utf-8", newline="\n")
        return
    real = Path(os.path.realpath(path))
    partial = real.with_name(f".{real.name}.partial-{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        if mode is not None:
            partial.chmod(stat.S_IMODE(mode))
        os.replace(partial, real)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        real.write_text(text, encoding="utf-8", newline="\n")
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(out: Path, check: Callable[[], None]) -> Iterator[Path]:
    """Give a folder to fill; on success it becomes `out` in one rename, on any failure it is removed.

    Where `out` is a link, the folder is written where the link leads, on that disk, and the link stays.

    Args:
        check: refuses an `out` that may not be replaced; called once what killed runs left is gone.

    Raises:
        PackageError: its parent cannot be written.
        EdgepackError: its name is not UTF-8.
    """
    require_utf8(out, "the output")
    try:
        real = out.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a folder that was removed, a null byte
        reason = getattr(error, "strerror", None) or printable(str(error))
        raise PackageError(f"output {printable(str(out))} cannot be written: {reason}; choose another") from error
    try:
        remove_leftovers(real)
        check()
        partial = real.with_name(f"{real.name}.partial-{os.getpid()}")
        partial.mkdir(parents=True)
    except OSError as error:
        raise PackageError(f"output {out} cannot be written: {error.strerror}") from error
    try:
        yield partial
        _sync_folder(partial)
        _replace(partial, real)
    except OSError as error:
        raise PackageError(f"output {out} cannot be written: {error.strerror}; nothing was changed") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(partial: Path, out: Path) -> None:
    """Rename `partial` to `out`; an older `out` is removed only after the new one stands."""
    old = out.with_name(f"{out.name}.partial-old-{os.getpid()}")
    if out.exists():
        out.rename(old)
    try:
        partial.rename(out)
    except BaseException:  # Ctrl-C between the two renames as well
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
    _sync_folder(out.parent)


def remove_leftovers(out: Path) -> None:
    """Remove what a killed run left: partial folders of processes that are gone. A replaced package is restored."""
    for leftover in out.parent.glob(f"{glob.escape(out.name)}.partial-*"):
        match = re.fullmatch(r"(old-)?(\d+)", leftover.name.removeprefix(f"{out.name}.partial-"))
        if match is None:
            continue
        # This process has not begun yet: a folder of its number is from an earlier one. In containers numbers repeat.
        if int(match.group(2)) != os.getpid() and process_is_alive(int(match.group(2))):
            continue
        if match.group(1) and not out.exists():
            leftover.rename(out)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def process_is_alive(pid: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
