"""What the memory of a process is made of, mapping by mapping, as ``/proc/PID/smaps`` tells it."""

from __future__ import annotations

from pathlib import Path

from edgepack.values import Frozen

SMAPS_KB_BYTES = 1024


class MappedMemory(Frozen):
    """Resident bytes by mapping.

    Attributes:
        anonymous_bytes: heap, stacks, and pages of privately mapped files that were written to.
        files: absolute path of a mapped file -> its resident bytes, written pages aside.
    """

    anonymous_bytes: int
    files: dict[str, int]


def read_mappings(pid: int) -> MappedMemory | None:
    """The mappings of process `pid` now; None where there is no smaps: no Linux, or the process is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    return parse_smaps(text)


def parse_smaps(text: str) -> MappedMemory | None:
    """Read the text of ``/proc/PID/smaps`` (man page proc_pid_smaps); None for a process without memory of its own."""
    if not text:
        return None
    anonymous_bytes, path, resident_bytes = 0, "", 0
    files: dict[str, int] = {}
    for line in text.split("\n")[:-1]:  # names may hold what splitlines() takes for a line break
        fields = line.split(maxsplit=5)
        if not fields[0].endswith(":"):
            path = fields[5] if len(fields) == 6 else ""
        elif fields[0] == "Rss:":
            resident_bytes = int(fields[1]) * SMAPS_KB_BYTES
        elif fields[0] == "Anonymous:":  # stands behind Rss
            written_bytes = int(fields[1]) * SMAPS_KB_BYTES
            anonymous_bytes += written_bytes
            if path.startswith("/"):
                files[path] = files.get(path, 0) + resident_bytes - written_bytes
    return MappedMemory(anonymous_bytes=anonymous_bytes, files=files)
