"""``python -m edgepack``: the command line."""

from __future__ import annotations

from edgepack.cli.main import main

if __name__ == "__main__":
    main()
