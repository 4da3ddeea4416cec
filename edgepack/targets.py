"""What a package must fit into: a size, or a device whose memory and bandwidth are known."""

from __future__ import annotations

from edgepack.planner import Target
from edgepack.units import parse_bytes


def parse_target(text: str) -> Target:
    """Return the target that `text` names, for example ``2GB`` or ``1900000000``.

    Raises:
        EdgepackError: `text` is no size.
    """
    return Target(name=text, limit_bytes=parse_bytes(text))
