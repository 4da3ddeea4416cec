"""Where the repository and the demo checkpoint are, whatever folder a test stands in."""

from __future__ import annotations

from pathlib import Path

import edgepack

ROOT = Path(edgepack.__file__).parents[1]
DEMO = Path(edgepack.__file__).parent / "assets" / "demo"
