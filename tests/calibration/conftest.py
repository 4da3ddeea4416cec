"""A tiny checkpoint with a tokenizer and a text, for every test anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.calibration.small import with_tokenizer
from tests.support.tiny import TinyPackages


@pytest.fixture
def small(tiny_packages: TinyPackages, tmp_path: Path) -> Path:
    return with_tokenizer(tiny_packages("untied").checkpoint, tmp_path)
