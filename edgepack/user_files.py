"""Files that users name: recipes, plans, device profiles. Read whole, but never more than such a file can be."""

from __future__ import annotations

from pathlib import Path

from edgepack.errors import EdgepackError
from edgepack.shown import shown

# The plan of Gemma 3n E4B has 0.3 MB. /dev/zero and a checkpoint given by mistake would fill the machine.
MOST_BYTES = 32_000_000


def read_user_file(path: Path, what: str, way_out: str = "", most_bytes: int = MOST_BYTES) -> bytes:
    """The content of the file `path`.

    Args:
        what: what the file is to a user, such as ``recipe``.
        way_out: ends the message where the file cannot be read.

    Raises:
        EdgepackError: it cannot be read, or is larger than `most_bytes`.
    """
    ending = f"; {way_out}" if way_out else ""
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise EdgepackError(f"{what} {path} cannot be read: {error.strerror or error}{ending}") from error
    except ValueError as error:  # a name that no file can have
        raise EdgepackError(f"{what} {shown(str(path), 200)} cannot be read: {error}{ending}") from error
    if len(content) > most_bytes:
        raise EdgepackError(f"{what} {path} is too large: expected at most {most_bytes:,} bytes; is it the right file?")
    return content
