"""`make test-arm`: set the ARM environment up and run the tests in it, or say loudly why not.

What cannot be downloaded skips the tests (exit code 0); wrong numbers fail them.
``python -m tests.arm [PYTEST OPTION...]``
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.arm.debian import UnavailableError
from tests.arm.environment import prepare


def main() -> int:
    start = time.monotonic()
    try:
        prepare([sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"])
    except UnavailableError as error:
        line = "!" * 100
        print(f"{line}\nSKIPPED, NOT TESTED: the tests on ARM cannot run here.\n{error}\n{line}", file=sys.stderr)
        return 0
    print(f"ARM environment ready after {time.monotonic() - start:.0f} s", flush=True)
    return pytest.main([str(Path(__file__).parent), *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
